"""Scorers with models on the devices: log-ratios, reward models, process rewards."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from jax.sharding import Mesh

from ...core.layouts import RANKED
from ...core.types import SequenceStats
from ...data.cut import Limits, make_example
from ...data.encode import Encoded, Encoder
from ...data.examples import Example
from ...data.tally import Reasons, Tally
from ...errors import UserError
from ...hf.load import resolve
from ...hf.open import fingerprints, open_config, open_encoder, open_weights
from ...objectives.implicit_prm import process_rewards
from ...settings import score
from ..statistics import Measure
from .answers import Answered, Scored

Record = TypeVar("Record", bound=score.Scorer)
OVER: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "sum": sum,
    "last": lambda rewards: rewards[-1],
    "mean": lambda rewards: sum(rewards) / len(rewards),
}
"""The score of an answer from the rewards of its steps."""


class Judged:
    """A checkpoint that reads answers; its weights are on the devices only while it does."""

    def __init__(
        self, path: str, mesh: Mesh, dtype: str, setting: str, template: str | None = None
    ):
        """Find a checkpoint and read its configuration.

        Args:
          path: Hugging Face folder or hub repository, of a model or of an adapter.
          mesh: the device mesh.
          dtype: dtype of parameters and matrix products, float32 or bfloat16.
          setting: the name of the setting, for messages.
          template: a chat template instead of the tokenizer's.

        Raises:
          UserError: it is missing or not supported.
        """
        self.folder, self._mesh, self._dtype = resolve(path, setting), mesh, dtype
        self._template = template
        self.spec = open_config(self.folder)

    @property
    def fingerprint(self) -> dict[str, str]:
        """What the scores depend on, next to the answers."""
        return fingerprints(self.folder) | {"dtype": self._dtype}

    def examples(self, rows: Sequence[Answered], *, ended: bool) -> list[Example]:
        """The tokens of the answers, as in training; where all answers are equal, of the first.

        Args:
          rows: the rows.
          ended: whether answers that were cut while they were drawn, `length` in the column
            `finishes`, end with a stop token too.

        Raises:
          UserError: an answer does not fit the model; names the row.
        """
        encoder = open_encoder(self.folder, self._template)
        longest = self.spec.max_positions
        limits = Limits(longest, longest - 1, 1, "error")
        encoded = encoder.encode([row.record for row in rows], Reasons())
        return [
            _example(row, found if ended else _unended(row, found), limits, encoder)
            for row, (_, found) in zip(rows, encoded, strict=True)
        ]

    def statistics(self, examples: Sequence[Example]) -> list[SequenceStats]:
        """Statistics of every example, leading axis [R]."""
        model, params = open_weights(self.folder, self._mesh, dtype=self._dtype)
        return Measure(model, params, self._dtype).each(examples)


def _unended(row: Answered, sequences: list[Encoded]) -> list[Encoded]:
    """The sequences without the stop token of answers that were cut."""
    if not row.record.is_group or "finishes" not in row.row:
        return sequences
    cut = [finish == "length" for finish in row.of_answers("finishes")]
    last = {sequence.response: i for i, sequence in enumerate(sequences)}
    found = list(sequences)
    for r, i in last.items():
        ids, spans, _ = sequences[i]
        start, end = spans[-1]
        if cut[r] and end - start > 1:
            spans = (*spans[:-1], (start, end - 1))
            found[i] = Encoded(ids[: end - 1], spans, r)
    return found


def _example(row: Answered, sequences: list[Encoded], limits: Limits, encoder: Encoder) -> Example:
    plain = [
        [(s.ids, s.spans) for s in sequences if s.response == r] for r in range(len(row.responses))
    ]
    if all(one == plain[0] for one in plain):
        sequences = [s for s in sequences if s.response == 0]
    names = RANKED.responses
    found = make_example(row.record, sequences, limits, encoder.front, names, Tally())
    if found is None:
        raise UserError(
            f"{row.where}: no token of an answer follows another, so none is scored; drop the row"
        )
    # The record's own columns are for training.
    return found._replace(columns={}, weight=1.0)


def spread(values: Any, row: Answered) -> list[Any]:
    """A value for each answer of a row.

    Args:
      values: a value for each response of its example, or one for answers that are all equal.
      row: the row.
    """
    found = list(values)
    return found * len(row.responses) if len(found) == 1 else found


class _ByModels(Generic[Record]):
    """What scorers with models have in common."""

    _record: Record
    _models: Sequence[Judged]

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The options and the models."""
        paths = ("model", "reference")
        options = {k: v for k, v in dataclasses.asdict(self._record).items() if k not in paths}
        return options | {"models": [model.fingerprint for model in self._models]}

    def report(self) -> dict[str, float]:
        """Nothing: the scores say all."""
        return {}


class LogRatio(_ByModels[score.LogRatio]):
    """Implicit rewards: beta times the log-ratio of two models."""

    def __init__(self, record: score.LogRatio, mesh: Mesh, dtype: str):
        """Take the settings, the device mesh and the dtype of the models."""
        self._record = record
        self._models = _causal_models(record, mesh, dtype)

    def score(self, rows: Sequence[Answered]) -> Scored:
        """Score the answers of every row; see `Scorer`."""
        own, reference = (
            model.statistics(model.examples(rows, ended=False)) for model in self._models
        )
        beta, per_token = self._record.beta, self._record.per_token

        def of(stats: SequenceStats) -> np.ndarray:
            return np.asarray(stats.logp / stats.length if per_token else stats.logp, np.float64)

        ratios = [beta * (of(a) - of(b)) for a, b in zip(own, reference, strict=True)]
        return Scored([spread(x.tolist(), row) for x, row in zip(ratios, rows, strict=True)])


class RewardModel(_ByModels[score.RewardModel]):
    """The score of a reward head."""

    def __init__(self, record: score.RewardModel, mesh: Mesh, dtype: str):
        """Take the settings, the device mesh and the dtype of the model.

        Raises:
          UserError: the model is missing, or does not give one score.
        """
        self._record = record
        self._models = [Judged(record.model, mesh, dtype, "reward_model.model")]
        if (count := self._models[0].spec.scores) != 1:
            raise UserError(
                f"reward_model.model: {record.model} gives {count} scores; "
                "wanted a reward model, whose head gives one"
            )

    def score(self, rows: Sequence[Answered]) -> Scored:
        """Score the answers of every row; see `Scorer`."""
        (model,) = self._models
        found = model.statistics(model.examples(rows, ended=True))
        return Scored(
            [
                spread(np.asarray(stats.token["logit"][:, 0]).tolist(), row)
                for stats, row in zip(found, rows, strict=True)
            ]
        )


class Process(_ByModels[score.Process]):
    """Implicit process rewards of the steps of an answer; the column `steps` has all of them."""

    def __init__(self, record: score.Process, mesh: Mesh, dtype: str):
        """Take the settings, the device mesh and the dtype of the models.

        Raises:
          UserError: a model is missing, or the models have different tokenizers.
        """
        self._record = record
        self._models = _causal_models(record, mesh, dtype)

    def score(self, rows: Sequence[Answered]) -> Scored:
        """Score the answers of every row; see `Scorer`."""
        how, (model, reference) = self._record, self._models
        examples, others = (m.examples(rows, ended=False) for m in self._models)
        for row, a, b in zip(rows, examples, others, strict=True):
            same = all(np.array_equal(a.scored(r), b.scored(r)) for r in range(a.responses))
            if a.responses != b.responses or not same:
                raise UserError(
                    f"{row.where}: {how.model} and {how.reference} make other tokens of it; "
                    "process rewards need two models with the same tokenizer"
                )
        encoder = open_encoder(model.folder)
        own, ref = model.statistics(examples), reference.statistics(others)
        steps: list[list[list[float]]] = []
        for row, example, a, b in zip(rows, examples, own, ref, strict=True):
            totals = np.asarray(process_rewards(a, b, how.beta), np.float64)
            ends = [
                step_ends(example.scored(r), how.split, encoder) for r in range(example.responses)
            ]
            found = [
                np.diff(q[np.array(at) - 1], prepend=0.0).tolist()
                for q, at in zip(totals, ends, strict=True)
            ]
            steps.append(spread(found, row))
        values = [[float(OVER[how.over](rewards)) for rewards in row] for row in steps]
        return Scored(values, {"steps": steps})


def step_ends(ids: np.ndarray, split: str, encoder: Encoder) -> list[int]:
    """How many tokens of an answer there are up to the end of each of its steps.

    A step ends with the token that completes the text between it and the next; blank steps belong
    to the step after them, or to the last, which ends with the answer.

    Args:
      ids: the scored tokens of the answer, [length], at least one.
      split: the text between two steps.
      encoder: the tokenizer.
    """
    parts = encoder.text(ids).split(split)
    filled = [i for i, part in enumerate(parts) if part.strip()]
    lengths = range(len(ids) + 1)
    ends = [
        bisect.bisect_left(lengths, i + 1, key=lambda n: encoder.text(ids[:n]).count(split))
        for i in filled[:-1]
    ]
    return [*itertools.accumulate(ends, max), len(ids)]


def _causal_models(record: score.LogRatio | score.Process, mesh: Mesh, dtype: str) -> list[Judged]:
    """The model and the reference.

    Raises:
      UserError: one is missing or gives scores.
    """
    found = []
    kind = "process" if isinstance(record, score.Process) else "log_ratio"
    for name in ("model", "reference"):
        path = getattr(record, name)
        model = Judged(path, mesh, dtype, f"{kind}.{name}")
        if model.spec.scores:
            raise UserError(
                f"{kind}.{name}: {path} is a reward model, which has no log-probabilities; give a "
                "causal language model, or use the scorer reward_model"
            )
        found.append(model)
    return found


OPEN: dict[type[score.Scorer], Callable[..., Any]] = {
    score.LogRatio: LogRatio,
    score.RewardModel: RewardModel,
    score.Process: Process,
}
"""The scorer of each kind with models: (settings, mesh, dtype) -> scorer."""
