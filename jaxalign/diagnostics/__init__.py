"""The index of diagnostics: measurements that a recipe adds to the metrics of its objective."""

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
    """The problem with the diagnostics that a stage names, in words; empty if there is none.

    Args:
      names: the names in the recipe.
      objective: the objective of the stage.
      ref: the available reference, `cached` or `live`; None if there is none.
    """
    for name in names:
        if name not in DIAGNOSTICS:
            return f"no diagnostic '{name}'; {near_miss(name, DIAGNOSTICS)}"
        if misfit := DIAGNOSTICS[name].misfit(objective, ref=ref):
            return f"{misfit}; leave it out"
    return ""
