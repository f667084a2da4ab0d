"""The index of diagnostics: what a recipe may ask for beside the metrics of its objective."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.objective import Objective
from ..errors import near_miss
from ._common import Diagnostic
from .pairs import calibration, difficulty, entanglement, ranking, three_d
from .tokens import diversity, dynamic_target, logit_shift, shift, topk

__all__ = ["DIAGNOSTICS", "Diagnostic", "diversity", "problem"]

DIAGNOSTICS = {
    d.name: d
    for d in (
        ranking,
        difficulty,
        three_d,
        shift,
        logit_shift,
        topk,
        dynamic_target,
        calibration,
        entanglement,
    )
}


def problem(names: Sequence[str], objective: Objective[...], *, ref: str | None) -> str:
    """What is wrong with the diagnostics that a stage names, in words; empty if nothing is.

    Args:
      names: as the recipe has them.
      objective: of the stage.
      ref: the reference at hand, `cached` or `live`; None: there is none.
    """
    for name in names:
        if name not in DIAGNOSTICS:
            return f"no diagnostic '{name}'; {near_miss(name, DIAGNOSTICS)}"
        if misfit := DIAGNOSTICS[name].misfit(objective, ref=ref):
            return f"{misfit}; leave it out"
    return ""
