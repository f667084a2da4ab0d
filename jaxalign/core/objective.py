"""The contract between a loss function and everything else."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, ParamSpec, cast

from ..errors import near_miss
from .layouts import Layout
from .stats import LayerStat, TokenStat, logit, logp
from .types import Responses

P = ParamSpec("P")
INPUTS = ("policy", "ref", "start", "batch", "state", "key")


@dataclasses.dataclass(frozen=True, eq=False)
class Objective(Generic[P]):
    """A loss function, and what must be true for it to be called.

    The function takes, by name, any of `policy` (a layout of `SequenceStats`), `ref` (the same
    under the reference, a constant), `start` (under the weights that the stage starts from, which
    the reference is not if it has a checkpoint of its own), `batch` (`columns`, [B] each; `weight`
    is always there), `state` and `key` ([B] keys for random numbers, one per example and update).
    It returns a
    `Loss` and [B] metrics. Everything keyword-only is a hyper-parameter.

    A function with a `state` computes its loss from the state it is given, and returns, third,
    the state with this batch added, through which no gradient flows. The training step calls it
    twice: for the next state, then for the loss under that state. Evaluation calls it once, and
    drops the state it returns. So, given the state, examples do not meet.
    """

    fn: Callable[P, Any]
    """The loss function."""
    data: type[Responses]
    """Layout of responses it reads, of `types`: `Demos`, `Pairs`, `Labeled`, `Ranked`, ..."""
    source: str
    """Paper and equation."""
    needs: tuple[TokenStat, ...] = (logp,)
    """Token statistics it reads; joint ones are of the policy and its reference together."""
    layers: tuple[LayerStat, ...] = ()
    """Statistics of the reference's layers that it reads, in addition to its token statistics."""
    columns: tuple[str, ...] = ()
    """Columns of the batch it reads, [B] each; examples of `weight` 0 are padding.

    `label` comes from the layout and `weight` from the packer; any other is read from the data by
    its name, a finite number, but `scores`, [B, R], which has one for each response.
    """
    check: Callable[[Mapping[str, Any]], str] | None = None
    """What is wrong with the columns of an example, in words, or nothing: ""; before training."""
    rules: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None
    """All hyper-parameters -> what is wrong with them together, in words, by the name of one."""
    couples_examples: bool = False
    """Whether the loss of an example, or the next state, depends on other examples."""
    init_state: Callable[[], Any] | None = None
    """The state before the first batch, a pytree of arrays."""
    scores: Callable[[Mapping[str, Any]], int] | None = None
    """Hyper-parameters -> how many numbers its reward head gives; None: it reads the vocabulary."""
    inputs: tuple[str, ...] = ()
    """Inputs its signature names, of `INPUTS`."""
    hyper: Mapping[str, inspect.Parameter] = dataclasses.field(default_factory=dict)
    """Hyper-parameters its signature names."""

    @property
    def name(self) -> str:
        """The name a recipe calls it by."""
        return self.fn.__name__

    @property
    def layout(self) -> Layout:
        """Which responses its examples have."""
        return self.data.LAYOUT

    @property
    def uses_ref(self) -> bool:
        """Whether it compares the policy with a reference."""
        return "ref" in self.inputs

    @property
    def uses_start(self) -> bool:
        """Whether it compares the policy with the weights that the stage starts from."""
        return "start" in self.inputs

    @property
    def reference(self) -> Literal["none", "cached", "live"]:
        """The least its reference may be: none, cached on disk (or live), or live in memory."""
        if self.layers or any(stat.joint for stat in self.needs):
            return "live"
        return "cached" if self.uses_ref else "none"

    def head(self, hyper: Mapping[str, Any]) -> int:
        """How many numbers its reward head gives; 0 where it reads the vocabulary.

        Hyper-parameters that are not given have their defaults.
        """
        if self.scores is None:
            return 0
        return self.scores({k: p.default for k, p in self.hyper.items()} | dict(hyper))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the loss function itself."""
        return self.fn(*args, **kwargs)

    def bind(self, **hyper: Any) -> Callable[..., Any]:
        """Fix the hyper-parameters; numbers may be traced, their range is the config's to check.

        Returns:
          A function that takes `INPUTS` by name, ignores those the
          objective does not declare, and returns (`Loss`, metrics) or (`Loss`, metrics, state).
          It raises a TypeError that names the inputs it lacks.

        Raises:
          TypeError: a hyper-parameter is unknown or missing, or a word is none of its choices;
            the near miss is named.
        """
        types = typing.get_type_hints(self.fn, include_extras=True)
        for key, value in hyper.items():
            if key not in self.hyper:
                hint = near_miss(key, self.hyper)
                raise TypeError(f"objective '{self.name}' has no hyper-parameter '{key}'; {hint}")
            if isinstance(value, str) and value not in (words := _words(types[key])):
                wrong = f"has no choice '{value}'; {near_miss(value, words)}"
                wrong = wrong if words else f"is a number; got '{value}'"
                raise TypeError(f"objective '{self.name}': {key} {wrong}")
        missing = [k for k, p in self.hyper.items() if p.default is p.empty and k not in hyper]
        if missing:
            raise TypeError(f"objective '{self.name}' needs {missing}: they have no default")
        fn = cast(Callable[..., Any], self.fn)

        def bound(**available: Any) -> Any:
            if absent := [k for k in self.inputs if k not in available]:
                raise TypeError(f"objective '{self.name}' reads {absent}; got {sorted(available)}")
            return fn(**{k: available[k] for k in self.inputs}, **hyper)

        return bound


def _words(annotation: Any) -> tuple[str, ...]:
    """The strings that an annotation allows."""
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return tuple(a for a in args if isinstance(a, str))
    return tuple(w for a in args for w in _words(a))


def objective(
    data: type[Responses],
    *,
    source: str,
    needs: tuple[TokenStat, ...] = (logp,),
    layers: tuple[LayerStat, ...] = (),
    columns: tuple[str, ...] = (),
    check: Callable[[Mapping[str, Any]], str] | None = None,
    rules: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None,
    couples_examples: bool = False,
    init_state: Callable[[], Any] | None = None,
    scores: Callable[[Mapping[str, Any]], int] | None = None,
) -> Callable[[Callable[P, Any]], Objective[P]]:
    """Turn a loss function into an `Objective`, checking what it declares, at import.

    Args:
      data: the layout of responses it reads (`Demos`, `Pairs`, `Labeled`, ...).
      source: paper and equation.
      needs: see `Objective`, as for the rest.
      layers: statistics of the reference's layers.
      columns: columns of the batch.
      check: columns of an example -> what is wrong with them.
      rules: hyper-parameters -> what is wrong with them together, by the name of one.
      couples_examples: whether examples meet.
      init_state: makes the state before the first batch.
      scores: how many numbers its reward head gives.

    Raises:
      TypeError: the signature and the declarations do not fit together.
    """

    def wrap(fn: Callable[P, Any]) -> Objective[P]:
        params = inspect.signature(fn).parameters
        inputs = tuple(k for k, p in params.items() if p.kind is not p.KEYWORD_ONLY)
        hyper = {k: p for k, p in params.items() if p.kind is p.KEYWORD_ONLY}
        made = Objective(
            fn,
            data,
            source,
            needs=needs,
            layers=layers,
            columns=columns,
            check=check,
            rules=rules,
            couples_examples=couples_examples,
            init_state=init_state,
            scores=scores,
            inputs=inputs,
            hyper=hyper,
        )
        if wrong := _contradiction(made) or _misdeclared(made):
            raise TypeError(f"{fn.__module__}.{fn.__name__}: {wrong}")
        return made

    return wrap


def _contradiction(o: Objective[...]) -> str:
    """How the signature differs from what the decorator says, in words; empty: it does not."""
    if not o.fn.__doc__:
        return "an objective needs a docstring"
    if bad := [k for k in o.inputs if k not in INPUTS]:
        return f"inputs are {INPUTS}, got {bad}; make the rest keyword-only"
    if "policy" not in o.inputs:
        return "an objective needs a `policy` input"
    if ("state" in o.inputs) != (o.init_state is not None):
        return "a `state` input and `init_state` come together"
    if bool(o.columns) != ("batch" in o.inputs):
        return "a `batch` input and `columns` come together"
    if o.layers and not o.uses_ref:
        return "statistics of the reference's layers need a `ref` input"
    return ""


def _misdeclared(o: Objective[...]) -> str:
    """How the decorator contradicts itself, in words; empty: it does not."""
    if o.init_state is not None and not o.couples_examples:
        return "a running state summarises a batch; set couples_examples"
    if o.check is not None and not o.columns:
        return "a `check` is of `columns`; declare them"
    if any(stat.joint for stat in o.needs) and (not o.uses_ref or o.couples_examples):
        return "joint statistics need a `ref` input and separate examples"
    if o.scores is None and logp not in o.needs:
        return "`needs` must hold stats.logp; sequence sums come from it"
    if o.scores is not None and (o.needs != (logit,) or o.uses_ref or o.uses_start):
        return "a reward head gives stats.logit alone, and has no reference"
    return ""
