"""The parts of the check, the most valuable first, with their time limits on one H100."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from .race import SIDES
from .runner import Part
from .speed import MODELS

RACED = ("Llama-3.2-1B", "Qwen2.5-0.5B")


def parts(folder: Path, *, data: Path | None, quick: bool) -> list[Part]:
    """Every part.

    Args:
      folder: that results go to; what the parts share is in its `work`.
      data: preference pairs for those that read any; None: made by the project.
      quick: tiny models, on any device.
    """
    given = [] if data is None else ["--data", str(data.resolve())]

    def part(
        module: str, limit: float, *argv: str, name: str | None = None, alone: bool = False
    ) -> Part:
        name = name or module
        shared = ["--out", str(folder / f"{name}.jsonl"), "--work", str(folder / "work")]
        shared += ["--quick"] if quick else []
        # A busy CPU with few cores is slow; nothing is rented there.
        patience = 4 if quick else 1
        program = (f"benchmarks.gpu_check.{module}", *shared, *argv)
        return Part(name, program, patience * limit, alone)

    raced = ("tiny",) if quick else RACED
    values = [
        part("attention", 150),
        part("step", 150),
        *(part("resume", 180, t, name=f"resume-{t}") for t in ("bfloat16", "float32")[: 2 - quick]),
        part("losses", 150, *given),
        part("head", 60),
        part("prepare", 150, *given, *raced),
    ]
    speed = [
        part("speed", 120, *model, name=f"speed-{model[0]}", alone=True)
        for model in ([("tiny", "lora")] if quick else MODELS)
    ]
    race = [
        [part("race", 90, m, side, name=f"race-{m}-{side}", alone=True) for side in SIDES]
        for m in raced
    ]
    main_job = part("quickstart", 240, alone=True)
    return [*values, main_job, speed[0], *race[0], *speed[1:], *itertools.chain(*race[1:])]


def chosen(every: Sequence[Part], only: Sequence[str]) -> list[Part]:
    """The parts whose names begin with one of `only`; all if there are none.

    Raises:
      SystemExit: a name is of no part.
    """
    for name in only:
        if not any(part.name.startswith(name) for part in every):
            raise SystemExit(f"--only {name}: the parts are {', '.join(p.name for p in every)}")
    return [p for p in every if not only or p.name.startswith(tuple(only))]
