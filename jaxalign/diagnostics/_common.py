"""The contract between a diagnostic and the evaluation that calls it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ..core.objective import Objective
from ..core.stats import TokenStat
from ..core.types import Demos, Labeled, Metrics, Mismatched, Pairs, SequenceStats

INPUTS = ("policy", "ref", "margins", "beta", "gradients")
EVERY = (Demos, Pairs, Labeled, Mismatched)
"""Layouts whose rows are one response per example."""


@dataclasses.dataclass(frozen=True)
class Diagnostic:
    """A measurement on held-out data, and what must be true for it to be called.

    The function takes, by name, any of `policy` and `ref` (layouts of `SequenceStats`), `margins`
    (the objective's `rewards/margins`, [B]), `beta` (the objective's) and `gradients` ({row: of the
    batch's average log-probability of that response, as the parameters}). What is keyword-only is
    a choice of the caller's. It returns {metric: values}: [B], NaN where an example has none, or
    [B, K]; scalars from `gradients`. Values are averaged over all examples of all batches, then
    finished.
    """

    fn: Callable[..., Metrics]
    """The function."""
    data: tuple[type, ...]
    """Layouts of responses it reads."""
    source: str
    """Paper."""
    needs: tuple[TokenStat, ...] = ()
    """Token statistics of the policy it reads, besides log-probabilities."""
    finish: Callable[[Any], float] = float
    """The average over examples, [] or [K] float64, to the number that is reported."""
    inputs: tuple[str, ...] = ()
    """Inputs its signature names, of `INPUTS`."""

    @property
    def name(self) -> str:
        """The name a recipe calls it by."""
        return self.fn.__name__

    def __call__(self, **available: Any) -> Metrics:
        """Call the function with what it reads; the rest is ignored."""
        if absent := [k for k in self.inputs if k not in available]:
            raise TypeError(f"diagnostic '{self.name}' reads {absent}; got {sorted(available)}")
        return self.fn(**{k: available[k] for k in self.inputs})

    def misfit(self, objective: Objective[...], *, ref: str | None) -> str:
        """Why it cannot be computed beside an objective; empty if it can.

        Args:
          objective: that the policy is trained with.
          ref: the reference at hand, `cached` or `live`; None: there is none.
        """
        layout = objective.data
        if objective.scores is not None:
            return f"'{self.name}' reads log-probabilities, and '{objective.name}' gives scores"
        if layout not in self.data:
            reads = " or ".join(kind.__name__ for kind in self.data)
            return f"'{self.name}' reads {reads}, and '{objective.name}' has {layout.__name__}"
        if "beta" in self.inputs and not (objective.uses_ref and "beta" in objective.hyper):
            return (
                f"'{self.name}' reads the `beta` of an objective with a reference, and "
                f"'{objective.name}' has none"
            )
        if "ref" in self.inputs and not ref:
            return (
                f"'{self.name}' compares with a reference, and '{objective.name}' has none; "
                "`jaxalign evaluate --against` gives it one"
            )
        if ref != "live" and any(stat.joint for stat in self.needs):
            return (
                f"'{self.name}' reads the reference's logits, which are not cached; "
                "`reference.mode: live` or `jaxalign evaluate --against` gives them"
            )
        return ""


def diagnostic(
    data: type | tuple[type, ...],
    *,
    source: str,
    needs: tuple[TokenStat, ...] = (),
    finish: Callable[[Any], float] = float,
) -> Callable[[Callable[..., Metrics]], Diagnostic]:
    """Turn a function into a `Diagnostic`; arguments as its fields.

    Raises:
      TypeError: the signature asks for what evaluation does not have.
    """

    def wrap(fn: Callable[..., Metrics]) -> Diagnostic:
        params = inspect.signature(fn).parameters
        inputs = tuple(k for k, p in params.items() if p.kind is not p.KEYWORD_ONLY)
        if bad := [k for k in inputs if k not in INPUTS]:
            raise TypeError(
                f"{fn.__name__}: inputs are {INPUTS}, got {bad}; make them keyword-only"
            )
        layouts = data if isinstance(data, tuple) else (data,)
        return Diagnostic(fn, layouts, source, needs, finish, inputs)

    return wrap


def responses(stats: Any) -> Iterator[tuple[str, SequenceStats]]:
    """The responses of a layout that are trained on, by name."""
    for name in stats.ROWS:
        if name not in stats.FROZEN:
            yield name, getattr(stats, name)
