"""The contract between a diagnostic and the evaluation that calls it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ..core.objective import Objective
from ..core.stats import TokenStat
from ..core.types import Demos, Labeled, Metrics, Mismatched, Pairs, Responses, SequenceStats

INPUTS = ("policy", "ref", "margins", "beta", "gradients")
EVERY = (Demos, Pairs, Labeled, Mismatched)
"""Layouts whose rows are one response per example."""


@dataclasses.dataclass(frozen=True)
class Diagnostic:
    """A measurement on held-out data, with the conditions under which it can be computed.

    The function takes, by name, any of `policy` and `ref` (layouts of `SequenceStats`), `margins`
    (the objective's `rewards/margins`, [B]), `beta` (the objective's) and `gradients` (by response:
    the gradient of its log-probability, averaged over the batch, with the tree of the parameters).
    Keyword-only parameters are options. It returns {metric: values}: [B], NaN where an example has
    no value, or [B, values]; scalars from `gradients`. The values are averaged over all examples of
    all batches and passed to `finish`.
    """

    fn: Callable[..., Metrics]
    """The function."""
    data: tuple[type, ...]
    """Layouts that it accepts."""
    source: str
    """The paper."""
    needs: tuple[TokenStat, ...] = ()
    """Token statistics of the policy that it reads, in addition to log-probabilities."""
    finish: Callable[[Any], float] = float
    """From the average over examples, [] or [K] float64, to the reported number."""
    inputs: tuple[str, ...] = ()
    """Inputs in its signature, a subset of `INPUTS`."""

    @property
    def name(self) -> str:
        """Its name in a recipe."""
        return self.fn.__name__

    def __call__(self, **available: Any) -> Metrics:
        """Call the function with its inputs; other values are ignored."""
        if absent := [k for k in self.inputs if k not in available]:
            raise TypeError(f"diagnostic '{self.name}' reads {absent}; got {sorted(available)}")
        return self.fn(**{k: available[k] for k in self.inputs})

    def misfit(self, objective: Objective[...], *, ref: str | None) -> str:
        """The reason why it cannot be computed next to an objective; empty if it can.

        Args:
          objective: the objective that trains the policy.
          ref: the available reference, `cached` or `live`; None if there is none.
        """
        if objective.scores is not None:
            return f"'{self.name}' reads log-probabilities, and '{objective.name}' gives scores"
        if objective.data not in self.data:
            reads = " or ".join(kind.LAYOUT.name for kind in self.data)
            return (
                f"'{self.name}' reads {reads}, and '{objective.name}' has {objective.layout.name}"
            )
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
    data: type[Responses] | tuple[type[Responses], ...],
    *,
    source: str,
    needs: tuple[TokenStat, ...] = (),
    finish: Callable[[Any], float] = float,
) -> Callable[[Callable[..., Metrics]], Diagnostic]:
    """Turn a function into a `Diagnostic`; the arguments are its fields.

    Raises:
      TypeError: the signature has an input that evaluation does not provide.
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
    """The names and statistics of the responses that a layout trains on."""
    for name in stats.LAYOUT.responses:
        if name not in stats.LAYOUT.frozen:
            yield name, getattr(stats, name)
