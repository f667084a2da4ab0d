"""A language model, or reward model, on the devices: log-probabilities, text and scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from . import settings
from .collect.decode import refuse_scores
from .collect.sample import Prompt, answer, prompt_ids
from .collect.statistics import Measure, precision
from .core.layouts import DEMOS
from .core.types import SequenceStats
from .data.ask import prompt_row
from .data.encode import Encoder
from .data.store import Examples
from .data.tokenize import make_examples
from .errors import UserError
from .hf.open import open_model


class LanguageModel:
    """A decoder with its weights on the devices, and its tokenizer; `jaxalign.open` makes it.

    Prompts and responses are texts, or lists of messages `{"role": ..., "content": ...}` for the
    chat template of the tokenizer. They become the same tokens, in the same packed rows, as in
    training.
    """

    def __init__(self, folder: Path, mesh: Mesh, dtype: str):
        """Read a checkpoint or an adapter onto the mesh.

        Args:
          folder: a Hugging Face folder.
          mesh: the device mesh.
          dtype: dtype of parameters and matrix products, float32 or bfloat16.
        """
        self.folder, self.dtype = folder, dtype
        self._opened = open_model(folder, mesh, dtype=dtype)
        self._model, self._params, self.tokenizer, _ = self._opened
        self._measure = Measure(self._model, self._params, dtype)

    def __repr__(self) -> str:
        return f"<LanguageModel {self.folder}, {self.dtype}>"

    def logp(
        self, prompts: Sequence[Prompt], responses: Sequence[Prompt], *, batch_size: int = 64
    ) -> np.ndarray:
        """Log-probability of each response given its prompt, summed over its tokens, in nats.

        Args:
          prompts: N prompts.
          responses: N responses, one to each prompt.
          batch_size: responses per forward pass, rounded up to the shards of the batch.

        Returns:
          [N] float32.

        Raises:
          UserError: the model gives scores, or a prompt or response does not fit it.
        """
        if self._model.spec.scores:
            raise UserError(f"logp: {self.folder} is a reward model; call score")
        found = self._statistics(prompts, responses, batch_size)
        return np.concatenate([stats.logp[:, 0] for stats in found])

    def score(
        self, prompts: Sequence[Prompt], responses: Sequence[Prompt], *, batch_size: int = 64
    ) -> np.ndarray:
        """Scores of a reward model.

        Args:
          prompts: N prompts.
          responses: N responses, one to each prompt.
          batch_size: responses per forward pass, rounded up to the shards of the batch.

        Returns:
          [N] float32, or [N, k] if the head gives k > 1 scores.

        Raises:
          UserError: the model gives no scores, or a prompt or response does not fit it.
        """
        scores = self._model.spec.scores
        if not scores:
            raise UserError(f"score: {self.folder} is not a reward model; call logp")
        found = self._statistics(prompts, responses, batch_size)
        values = np.concatenate([stats.token["logit"][:, 0, :scores] for stats in found])
        return values[:, 0] if scores == 1 else values

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        chat: bool = False,
        system: str | None = None,
        max_new: int = 128,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[str]:
        """Sample one answer to each prompt.

        Args:
          prompts: the prompts.
          chat: whether a text becomes the message of a user, by the chat template; otherwise it
            goes to the model as it is. Messages are always a chat.
          system: text of a system message before each chat.
          max_new: maximum number of new tokens.
          temperature: divisor of the logits; 0 takes the most likely token.
          top_k: sample from this many most likely tokens; 0: from all.
          top_p: sample from the most likely tokens with this total probability.
          seed: seed of the first answer; answer i has this number plus i.
          batch_size: answers drawn at a time.

        Raises:
          UserError: the model gives scores, or a prompt or a value does not fit.
        """
        refuse_scores(self._model.spec)
        if isinstance(prompts, str):
            raise UserError("generate: prompts is a list; put the text into one")
        encoder = Encoder(self.tokenizer, stops=self._opened.stop)
        rows = [prompt_row({"prompt": _plain(p)}, f"prompts[{i}]") for i, p in enumerate(prompts)]
        ids = prompt_ids(encoder, rows, chat=chat, system=system)
        with precision(self.dtype):
            return answer(
                self._model,
                self._params,
                encoder,
                ids,
                max_new=max_new,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                batch_size=batch_size,
            ).texts

    def _statistics(
        self, prompts: Sequence[Prompt], responses: Sequence[Prompt], batch_size: int
    ) -> list[SequenceStats]:
        """Statistics of each batch of responses, [n, 1], in the order of the prompts."""
        return self._measure.batches(self._examples(prompts, responses), batch_size)

    def _examples(self, prompts: Sequence[Prompt], responses: Sequence[Prompt]) -> Examples:
        """The tokenized responses, by the reader of training data."""
        if isinstance(prompts, str) or isinstance(responses, str):
            raise UserError("prompts and responses are lists; put each text into one")
        if len(prompts) != len(responses) or not prompts:
            raise UserError(
                f"got {len(prompts)} prompts and {len(responses)} responses; give one response "
                "to each prompt"
            )
        longest = self._model.spec.max_positions
        limits = settings.Data(
            path="responses",
            max_length=longest,
            max_prompt=longest - 1,
            min_response=1,
            too_long="error",
        )
        rows = (
            (f"responses[{i}]", {"prompt": _plain(p), "completion": _plain(r)})
            for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
        )
        encoder = Encoder(self.tokenizer, limits, stops=self._opened.stop)
        examples = make_examples(limits, rows, "responses", encoder, DEMOS, seed=0)
        kept = {example.where for example in examples}
        for i in range(len(prompts)):
            if (name := f"responses[{i}]") not in kept:
                raise UserError(f"{name}: no token follows another, so none is scored; drop it")
        return examples


def _plain(text: Prompt) -> str | list[dict[str, str]]:
    """A text, or messages as a data set holds them."""
    return text if isinstance(text, str) else [dict(message) for message in text]
