"""The folder of a run: its stages, metrics, models and report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import settings
from ..errors import UserError, near_miss
from ..recipe.read import recipe_values
from ..report import write_report
from ..report.metrics import read_metrics
from ..report.read import KINDS


def compile_cache_folder(run: settings.Run) -> str | None:
    """The folder of compiled programs; None: they are not kept."""
    shared = str(Path(run.dir).absolute().parent / "compile_cache")
    folder = run.compile_cache or os.environ.get("JAX_COMPILATION_CACHE_DIR") or shared
    return None if folder == "off" else folder


class Series(NamedTuple):
    """A metric over a stage; `plt.plot(*series)` draws it."""

    steps: np.ndarray  # [n] int: updates made
    values: np.ndarray  # [n] float64


class Run:
    """The folder of a run that has been trained, or that is being trained."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Open the folder of a run.

        Raises:
          UserError: the folder holds no run.
        """
        self.folder = Path(folder)
        path = self.folder / "recipe.yaml"
        if not path.is_file():
            raise UserError(f"{self.folder}: no run is here (no recipe.yaml); train first")
        stages = recipe_values(str(path)).get("stages", {})
        self._stages = tuple(stages)
        self._training = [n for n, values in stages.items() if not {*KINDS} & {*values}]

    def __repr__(self) -> str:
        return f"<Run {self.folder}: {', '.join(self.stages)}>"

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in order."""
        return self._stages

    def metrics(self, stage: str) -> dict[str, Series]:
        """The metrics of a stage by name.

        Training metrics have a value for each logged update. Held-out metrics, whose names begin
        with `eval/`, have one for each evaluation; so every metric has steps of its own.

        Raises:
          UserError: the run has no such stage, or the stage has not begun.
        """
        lines = read_metrics(self._file(stage, "metrics.jsonl"))
        names = dict.fromkeys(name for line in lines for name in line if name != "step")
        found = {}
        for name in names:
            pairs = [(line["step"], line[name]) for line in lines if name in line]
            steps, values = zip(*pairs, strict=True)
            found[name] = Series(np.array(steps), np.array(values, np.float64))
        return found

    def model(self, stage: str | None = None) -> Path:
        """The Hugging Face folder of the model of a stage; none: of the last one that trains.

        Raises:
          UserError: the run has no such stage, or the stage has not finished.
        """
        return self._file(stage or self._training[-1], "model")

    def report(self) -> Path:
        """Write the report of the run; returns the path of its page."""
        return write_report(self.folder)

    def _file(self, stage: str, name: str) -> Path:
        if stage not in self._stages:
            raise UserError(f"{self.folder}: no stage '{stage}'; {near_miss(stage, self._stages)}")
        path = self.folder / stage / name
        if not path.exists():
            raise UserError(f"{path}: not there yet; train the stage first")
        return path
