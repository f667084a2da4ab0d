"""The update of a stage that is exported: the last one, or with `keep_best` the best one.

The best update so far is a function of the evaluations in the stage's metrics.jsonl up to an
update, so a resumed stage knows it as an unbroken one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ..core.batch import Batch
from ..errors import RunError, UserError, near_miss
from ..files import write_whole
from ..report.metrics import read_metrics
from ..sealed import read_own, sealed
from ..settings import KeepBest
from ..update.forward import Params, Task
from ..update.state import TermState
from ..update.step import eval_step
from .checkpoint import Checkpoints
from .plan import blank_stats
from .samples import METRICS
from .stage import StageRun
from .term import TermRun

FILE = "best.json"
"""The record of the exported update, in the folder of a stage that has made its last update."""


class Exported(NamedTuple):
    """The content of `best.json`."""

    update: int
    """The exported update."""
    value: float
    """Its value of the metric, under the weights in training."""
    metric: str
    want: str
    made: int
    """Updates made."""
    planned: int
    """Updates of the stage; more than `made` if it stopped early."""

    def __str__(self) -> str:
        stopped = f"stopped early after {self.made:,} of {self.planned:,} updates; "
        return (
            f"{stopped if self.made < self.planned else ''}update {self.update:,} of "
            f"{self.made:,} is exported, with the {self.want} held-out {self.metric}, "
            f"{self.value:.6g}"
        )


class Best:
    """The best update of a stage so far, and whether its patience is used up.

    Attributes:
      update: the best update; None: none yet, or the stage exports the last one.
    """

    def __init__(self, stage: StageRun, start: int):
        """Read the evaluations up to an update.

        Args:
          stage: the stage.
          start: the update that training resumes after; 0: it begins.

        Raises:
          RunError: metrics.jsonl lacks an evaluation up to that update.
        """
        self._stage, self._how = stage, stage.settings.keep_best
        self.update: int | None = None
        self._value = math.nan
        self._since = 0  # evaluations in a row that were no better
        self._made = start
        if self._how is not None and start:
            for step, metrics in _evaluations(stage, start).items():
                self._take(self._how, step, metrics.get(f"eval/{self._how.metric}", math.nan))

    @property
    def chooses(self) -> bool:
        """Whether the stage exports its best update, which need not be the last."""
        return self._how is not None

    @property
    def over(self) -> bool:
        """Whether training stops, since no better update has come for so long."""
        return self._how is not None and 0 < self._how.patience <= self._since

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Compare an evaluation with the best one.

        Args:
          step: the update.
          metrics: its held-out metrics.

        Raises:
          UserError: the first evaluation has no such metric; names the near miss.
        """
        if (how := self._how) is None:
            return
        if how.metric not in metrics and self.update is None and not self._since:
            raise _unknown(self._stage, metrics)
        self._made = step
        self._take(how, step, metrics.get(how.metric, math.nan))

    def _take(self, how: KeepBest, step: int, value: float) -> None:
        sign = 1 if how.want == "highest" else -1
        better = self.update is None or sign * value > sign * self._value
        if math.isfinite(value) and better:
            self.update, self._value, self._since = step, value, 0
        else:
            self._since += 1

    def check(self, checkpoints: Checkpoints) -> None:
        """Refuse to continue without the checkpoint of the best update.

        Raises:
          UserError: it is not there.
        """
        steps = checkpoints.steps()
        if self.update is not None and self.update not in steps:
            folder = self._stage.folder / "checkpoints"
            raise UserError(
                f"{folder}: the best update so far, {self.update}, has no checkpoint; restore it "
                "from a copy, or delete the folder of the stage to train it again"
            )

    def end(self) -> Exported:
        """The choice, once training has ended; it is written down.

        Raises:
          RunError: no evaluation had a finite value.
        """
        how, stage = self._how, self._stage
        assert how is not None
        if self.update is None:
            raise RunError(
                f"stages.{stage.name}.keep_best.metric: no evaluation has a finite '{how.metric}', "
                "so no update is the best; `jaxalign export` writes the newest checkpoint"
            )
        found = Exported(self.update, self._value, how.metric, how.want, self._made, stage.updates)
        write_whole(stage.folder / FILE, sealed(found._asdict()))
        return found


def exported_update(folder: Path) -> Exported | None:
    """What the folder of a stage says about its exported update; None: it is the last one.

    Raises:
      RunError: the record is damaged.
    """
    file = folder / FILE
    return read_own(file, Exported) if file.exists() else None


def _evaluations(stage: StageRun, start: int) -> dict[int, dict[str, Any]]:
    """The evaluations up to an update, by their updates."""
    path, every = stage.folder / "metrics.jsonl", stage.settings.eval_every
    lines = read_metrics(path) if path.exists() else []
    found = {
        line["step"]: line
        for line in lines
        if line["step"] <= start and any(name.startswith("eval/") for name in line)
    }
    for step in range(every, start + 1, every):
        if step not in found:
            raise RunError(
                f"{path}: has no evaluation of update {step}, which keep_best compares; restore "
                "the file from a copy, or delete the folder of the stage to train it again"
            )
    return found


def check_metric(stage: StageRun) -> None:
    """Refuse a metric that no evaluation of a stage has.

    With diagnostics, whose metrics depend on the data, the first evaluation finds it.

    Raises:
      UserError: names the near miss.
    """
    how = stage.settings.keep_best
    if how is None or any(term.settings.diagnostics for term in stage.terms):
        return
    if how.metric not in (known := _names(stage)):
        raise _unknown(stage, known)


def _unknown(stage: StageRun, known: Mapping[str, Any]) -> UserError:
    how = stage.settings.keep_best
    assert how is not None
    return UserError(
        f"stages.{stage.name}.keep_best.metric: no held-out metric '{how.metric}'; "
        f"{near_miss(how.metric, known)}"
    )


def _names(stage: StageRun) -> dict[str, Any]:
    """The held-out metrics of a stage, by name, from the shapes of an evaluation."""
    found: dict[str, Any] = dict.fromkeys(METRICS) if stage.settings.eval_samples else {}
    spec = stage.state_spec
    with jax.set_mesh(stage.mesh):
        for term, state in zip(stage.terms, spec.terms, strict=True):
            if term.held_out is not None:
                loader = term.loader(term.held_out, blank_stats(term, term.held_out))
                shapes = _shapes(stage, term, loader.batch(0), spec.params, state)
                found |= term.task.named({"loss": None, **shapes})
    whole = all(term.held_out is not None for term in stage.terms)
    return found | ({"loss": None} if whole else {})


def _shapes(
    stage: StageRun, term: TermRun, batch: Batch, params: Params, state: TermState
) -> dict[str, Any]:
    """The shapes of the metrics of a term, from a batch and the shapes of a training state."""
    base = None if stage.adapted is None else stage.model.abstract
    reference = state.ref_params
    if term.reference_mode == "live" and not term.moving:
        reference = stage.model.abstract if base is None else {}

    def sums(base: Any, params: Any, objective_state: Any, batch: Any, reference: Any) -> Any:
        policy: Task = term.policy.with_base(base)
        return eval_step(policy, params, objective_state, batch, reference)[0].metrics

    return jax.eval_shape(sums, base, params, state.objective_state, batch, reference)
