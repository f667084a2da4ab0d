"""Plain torch: 2B padded rows, AdamW; the usual form, and the fastest.

    python -m benchmarks.race.torch_side FOLDER full|compact

`full`: logits of every position, a frozen copy of the model as reference in every step. `compact`:
logits of the scored positions only, reference log-probabilities computed beforehand. On a GPU
products are bfloat16 (autocast) of float32 weights; nothing is rematerialized.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import work
from .pipe import Pipe, run

if TYPE_CHECKING:
    from torch import Tensor


class Rows(NamedTuple):
    """A batch: the chosen sequences, then the rejected ones, padded on the right."""

    ids: Tensor  # [2B, T]
    attention: Tensor  # [2B, T]
    scored: Tensor  # [2B, T - 1] bool: this position predicts a token of a response


def padded(pairs: Sequence[work.Pair]) -> Rows:
    """The rows of a batch, padded to its longest."""
    import torch

    rows = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (prompt, response) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(response)
        ids[i, :start], ids[i, start:end] = torch.tensor(prompt), torch.tensor(response)
        attention[i, :end] = 1
        scored[i, start:end] = True
    return Rows(ids, attention, scored[:, 1:])


def full(model: Any, rows: Rows) -> Tensor:
    """Log-probability of each row's response, [2B], from the logits of every position."""
    logits = model(input_ids=rows.ids, attention_mask=rows.attention).logits[:, :-1].float()
    chosen = logits.gather(-1, rows.ids[:, 1:, None])[..., 0]
    return ((chosen - logits.logsumexp(-1)) * rows.scored).sum(-1)


def compact(model: Any, rows: Rows) -> Tensor:
    """The same from the logits of the scored positions only."""
    import torch

    hidden = model.base_model(input_ids=rows.ids, attention_mask=rows.attention).last_hidden_state
    logits = model.get_output_embeddings()(hidden[:, :-1][rows.scored])
    token = rows.ids[:, 1:][rows.scored]
    logp = -torch.nn.functional.cross_entropy(logits.float(), token, reduction="none")
    row = rows.scored.nonzero()[:, 0]
    return torch.zeros(len(rows.ids), device=row.device).index_add(0, row, logp)


def side(pipe: Pipe) -> None:
    """Load, then serve."""
    import torch
    import transformers

    folder, way = Path(sys.argv[1]), sys.argv[2]
    pipe.imported()
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    if gpu:
        pipe.peak = lambda: torch.cuda.max_memory_allocated() / 1e6
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="sdpa"
    )
    model.to(device).train()
    rate = work.terms(folder).rate
    rule = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    batches = [padded(pairs) for pairs in work.batches(folder)]
    batches = [Rows(*(x.to(device) for x in rows)) for rows in batches]
    score = {"full": full, "compact": compact}[way]

    def logp(model: Any, rows: Rows) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=gpu):
            return score(model, rows)

    frozen = copy.deepcopy(model).requires_grad_(False) if way == "full" else model
    with torch.no_grad():
        cached = [None if way == "full" else logp(model, rows) for rows in batches]
    stream = itertools.cycle(zip(batches, cached, strict=True))

    def step() -> tuple[float, float]:
        rows, ref = next(stream)
        if ref is None:
            with torch.no_grad():
                ref = logp(frozen, rows)
        chosen, rejected = (logp(model, rows) - ref).chunk(2)
        loss = -torch.nn.functional.logsigmoid(work.BETA * (chosen - rejected)).mean()
        rule.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), work.CLIP)
        rule.step()
        return loss.item(), norm.item()

    pipe.serve(step, "torch", "transformers")


if __name__ == "__main__":
    run(side)
