"""DPO against a plain torch step with full logits: the same examples, loss by loss.

    python -m benchmarks.dpo_torch [--data PAIRS] [--updates N]

Both sides start from one small random GPT-NeoX checkpoint. torch pads every sequence, keeps the
logits of all positions and runs a frozen copy as reference; jaxalign packs, shares prompts,
computes logits of responses only and reads a cached reference. Exits with 1 if one of the first 10
losses differs by more than 2e-4, or one of their gradient norms by more than 1e-3 of itself.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from rich.console import Console

from jaxalign import settings
from jaxalign.core.sharding import make_mesh, put_batch
from jaxalign.data.examples import Example
from jaxalign.data.loader import Loader
from jaxalign.recipe.schema import section
from jaxalign.run.reference import cached_reference
from jaxalign.run.stage import StageRun, prepare
from jaxalign.update.step import Fixed

from . import common
from .checkpoint import make_checkpoint
from .steps import update_and_state
from .tables import table

BETA = 0.1
BATCH = 8
CLIP = 1.0
RULE = settings.Optimizer(learning_rate=1e-3, weight_decay=0.01, clip_norm=CLIP, schedule="linear")
CHECKED = 10
LOSS, NORM = 2e-4, 1e-3  # largest differences: nats; of the norm itself


class Update(NamedTuple):
    """One side's figures of an update."""

    loss: float
    grad_norm: float
    seconds: float  # NaN if most of the time is compilation


def padded(items: Sequence[Example], r: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompt + response r of each example, padded on the right: ids, attention, scored [B, L]."""
    lengths = [len(item.prompt) + len(item.branches[r].ids) for item in items]
    ids = torch.zeros(len(items), max(lengths), dtype=torch.long)
    attention, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (item, length) in enumerate(zip(items, lengths, strict=True)):
        ids[row, :length] = torch.tensor(np.concatenate([item.prompt, item.branches[r].ids]))
        attention[row, :length] = 1
        scored[row, len(item.prompt) : length] = True
    return ids, attention, scored


def torch_logp(model: Any, items: Sequence[Example], r: int) -> torch.Tensor:
    """Log-probability of response r of each example, [B], nats."""
    ids, attention, scored = (x.to(model.device) for x in padded(items, r))
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    token = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (token * scored[:, 1:]).sum(-1)


def torch_updates(folder: Path, batches: Sequence[Sequence[Example]]) -> Iterator[Update]:
    """DPO in torch, as one would write it from the paper."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    frozen = copy.deepcopy(model).requires_grad_(False)
    parameters = dict(model.named_parameters())
    plain = {name for name in parameters if name.endswith("bias") or "norm" in name}
    groups = [
        {"params": [parameters[n] for n in names], "weight_decay": decay}
        for names, decay in ((parameters.keys() - plain, RULE.weight_decay), (plain, 0.0))
    ]
    rule = torch.optim.AdamW(groups, lr=RULE.learning_rate)
    schedule = transformers.get_linear_schedule_with_warmup(rule, 0, len(batches))
    for items in batches:
        began = time.perf_counter()
        chosen, rejected = (
            torch_logp(model, items, r) - torch_logp(frozen, items, r) for r in (0, 1)
        )
        loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
        rule.zero_grad()
        loss.backward()
        # torch's own clipping norm is off by about 1e-5: it sums squares in float32.
        squares = [
            p.grad.double().square().sum() for p in parameters.values() if p.grad is not None
        ]
        torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        rule.step()
        schedule.step()
        norm = torch.stack(squares).sum().sqrt()
        yield Update(loss.item(), norm.item(), time.perf_counter() - began)


def recipe(source: Path, data: settings.Data, folder: Path, updates: int) -> settings.Recipe:
    """The recipe a user would write for the same updates in jaxalign."""
    stage = settings.Stage(
        objective=section("dpo")(name="dpo", beta=BETA),
        data=data,
        optimizer=RULE,
        batch_size=BATCH,
        steps=updates,
    )
    return settings.Recipe(
        run=settings.Run(dir=str(folder)),
        model=settings.Model(path=str(source), dtype="float32", remat="none"),
        stages={"dpo": stage},
    )


def jaxalign_updates(stage: StageRun, loader: Loader, updates: int) -> Iterator[Update]:
    """The same updates with jaxalign's own parts."""
    step, state = update_and_state(stage, updates)
    compiled = 0
    for batch in loader.batches(0, updates):
        began = time.perf_counter()
        state, out = step(state, [put_batch(batch, stage.mesh)], Fixed())
        loss, norm = float(out.loss), float(out.grad_norm)
        seconds = time.perf_counter() - began
        yield Update(loss, norm, seconds if len(loader.shapes_seen) == compiled else np.nan)
        compiled = len(loader.shapes_seen)


def compare(theirs: Sequence[Update], ours: Sequence[Update]) -> tuple[str, bool]:
    """The table, and whether every checked update agrees."""
    heading: list[str] = ["step", "loss torch", "loss jaxalign", "difference"]
    heading += ["grad_norm torch", "grad_norm jaxalign", "relative difference"]
    rows, agree = [heading], True
    for number, (a, b) in enumerate(zip(theirs, ours, strict=True), 1):
        loss, norm = b.loss - a.loss, b.grad_norm / a.grad_norm - 1
        if number <= CHECKED:
            agree &= abs(loss) <= LOSS and abs(norm) <= NORM  # false for NaN
        pairs = (f"{a.loss:.6f}", f"{b.loss:.6f}", f"{loss:+.1e}")
        norms = (f"{a.grad_norm:.6f}", f"{b.grad_norm:.6f}", f"{norm:+.1e}")
        rows.append([str(number), *pairs, *norms])
    return table(rows), agree


def both(given: Path | None, count: int) -> tuple[list[Update], list[Update]]:
    """The updates of torch and of jaxalign, on the GPU if there is one."""
    mesh = make_mesh(settings.Mesh(), jax.devices()[:1])
    with tempfile.TemporaryDirectory() as name, jax.set_mesh(mesh):
        folder = Path(name)
        data = common.pairs(given, folder / "data")
        source = folder / "start"
        make_checkpoint(source, data, layers=4)
        run = recipe(source, data, folder / "run", count)
        stage = prepare(run, "dpo", source, mesh, Console(quiet=True))
        loader = stage.loader(stage.train, cached_reference(stage, "train", Console(quiet=True)))
        items = stage.train
        batches = [[items[i] for i in loader.indices(step)] for step in range(count)]
        theirs = list(torch_updates(source, batches))
        return theirs, list(jaxalign_updates(stage, loader, count))


def main() -> int:
    """Run both sides, print the table; the exit code."""
    parser = common.arguments(__doc__)
    parser.add_argument("--updates", type=int, default=12)
    args = parser.parse_args()
    common.start()
    theirs, ours = both(args.data, args.updates)
    printed, agree = compare(theirs, ours)
    print(f"{common.versions('torch')}\n\n{printed}\n")
    for who, side in (("torch", theirs), ("jaxalign", ours)):
        seconds = [u.seconds for u in side if np.isfinite(u.seconds)]
        median = f"{np.median(seconds):.3f}" if seconds else "-"
        print(f"{who}: {median} s per update, median of {len(seconds)} that compiled nothing")
    print("they agree" if agree else f"THEY DIFFER by more than {LOSS} nats or {NORM} of the norm")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
