"""What a training loop reports: metrics.jsonl, the terminal, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..console import Terminal
from ..data.pack import TokenCounts
from ..errors import UserError, writing
from ..files import whole_file
from ..report.drift import drift
from ..report.metrics import read_metrics
from .phases import Phases

PLAIN_SECONDS = 5.0  # between two lines of progress where no terminal is attached
HEADLINES = {  # the metrics of a plain line, and their names there
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "grad_norm": "grad_norm",
    "learning_rate": "lr",
    "time/tokens_per_second": "tok/s",
}


class Tracker:
    """Records the metrics of one stage; a context manager around its loop.

    Every `log` appends one line to `folder/metrics.jsonl`, `{"step": 7, "loss": 0.5, ...}`, at
    once, so that a kill loses at most the line being written. Names of evaluations begin with
    `eval/`. Values under `time/` depend on the clock and the machine; a repeated run gives all
    others again. JSON has no non-finite numbers: they are written as the strings "NaN",
    "Infinity" and "-Infinity", which `read_metrics` turns back.

    Entering with `start` > 0 removes the lines (and TensorBoard points) of later steps, which the
    resumed loop writes again; with `start` = 0 it removes what an earlier run left.

    On a terminal a live view shows the bar, the phase, the time left and every metric. Without a
    terminal there is one line for the first step, the last, every evaluation, and at most one per
    `PLAIN_SECONDS`. The time left counts no compilation.

    Args:
      folder: the folder of the stage; made if missing.
      stage: the name of the stage, for display.
      total: the number of updates of the stage.
      start: the number of updates already done.
      every: updates between two lines of `update`; the last update always has one.
      tensorboard: whether to write event files to `folder` too.
      wandb: the Weights & Biases project to log to; none: not used.
      config: the resolved recipe, for Weights & Biases.
      answers: the number of own answers of an evaluation.
      phases: the clock of the stage; none: a new one.
      console: where to print; none: standard output.
      enabled: False on all processes but the first: nothing is written or printed.

    Raises:
      UserError: on entering, when `wandb` is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stage: str,
        total: int,
        start: int = 0,
        every: int = 1,
        tensorboard: bool = False,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
        answers: int = 0,
        phases: Phases | None = None,
        console: Console | None = None,
        enabled: bool = True,
    ):
        self.path = folder / "metrics.jsonl"
        self._stage, self._total, self._start, self._every = stage, total, start, every
        self._tensorboard, self._wandb, self._config = tensorboard, wandb, config
        self._console = console or Terminal()
        self.phases = phases or Phases(folder, stage, self._console)
        self._enabled, self._answers = enabled, answers
        self._file = self._writer = self._run = self._live = None
        self._step = start
        self._latest: dict[str, float] = {}
        self._first: tuple[int, float] | None = None  # an update, and `_clock` at its end
        self._printed = -math.inf
        self._warned: set[str] = set()
        self._pending: tuple[int, Callable[[], dict[str, float]], TokenCounts] | None = None
        self._restart_clock()

    def __enter__(self) -> Self:
        self._restart_clock()
        if not self._enabled:
            return self
        folder = self.path.parent
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        first = self._start + 1 if self._start else 0
        if self._wandb is not None:
            self._run = _start_wandb(self._wandb, folder, self._stage, self._config, bool(first))
        _drop_from(self.path, first)
        with writing(self.path):
            self._file = self.path.open("a", buffering=1, encoding="utf-8")
        if self._tensorboard:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=first)
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._view, console=self._console)
            self._live.start()
            self.phases.in_live_view = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self.phases.in_live_view = False
        if self._file is not None:
            # After a write that failed, closing fails in the same way.
            with writing(self.path) if kind is None else contextlib.suppress(OSError):
                self._file.close()
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)

    def update(self, step: int, read: Callable[[], dict[str, float]], tokens: TokenCounts) -> None:
        """Report the update before this one, and keep this one until the next call.

        Args:
          step: number of the update.
          read: waits for its metrics and returns them; called on every process, once.
          tokens: the token counts of its batch.
        """
        self.flush()
        self._pending = step, read, tokens

    def flush(self) -> None:
        """Report the pending update, if there is one."""
        if self._pending is None:
            return
        (step, read, tokens), self._pending = self._pending, None
        values = read()
        self._real += tokens.real
        self._slots += tokens.slots
        if step % self._every and step != self._total:
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        values["time/tokens_per_second"] = self._real / seconds
        values["time/slots_per_second"] = self._slots / seconds
        self.log(step, values)
        self._restart_clock()

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record held-out metrics, if there are any; their time is left out of the rates.

        Own answers that leave the held-out data behind are a warning, once for each metric.
        """
        if metrics:
            self.log(step, metrics, evaluation=True)
        if self._file is not None and self._answers:
            found = drift(read_metrics(self.path), self._answers)
            for text in (text for name, text in found.items() if name not in self._warned):
                self.message(f"{self._stage}: {text}")
            self._warned |= found.keys()
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._since = time.monotonic()
        self._real = self._slots = 0

    def log(self, step: int, metrics: Mapping[str, float], *, evaluation: bool = False) -> None:
        """Record the metrics of update `step`: scalars by name, `eval/` prefixed to evaluations."""
        if self._file is None:
            return
        prefix = "eval/" if evaluation else ""
        values = {prefix + name: float(value) for name, value in metrics.items()}
        with writing(self.path):
            self._file.write(_to_json(step, values))
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log({"step": step, **values})
        self._step = step
        self._latest |= values
        if not evaluation:
            self._first = self._first or (step, self._clock())
        if self._live is None:
            self._print_line(values, evaluation)

    def message(self, text: str) -> None:
        """Print `text` as it is, above the live view if there is one."""
        if self._enabled:
            self._console.print(Text(text), soft_wrap=True)

    def _clock(self) -> float:
        """Seconds without the compilation, which the updates to come do not repeat."""
        return time.monotonic() - self.phases.seconds.get("compiling", 0.0)

    def _seconds_left(self) -> float | None:
        if self._first is None or self._step <= self._first[0]:
            return None
        step, since = self._first
        return (self._clock() - since) / (self._step - step) * (self._total - self._step)

    def _print_line(self, values: Mapping[str, float], evaluation: bool) -> None:
        now = time.monotonic()
        due = now - self._printed >= PLAIN_SECONDS or self._step >= self._total
        if not due and not evaluation:
            return
        prefix = "eval/" if evaluation else ""
        shown = {HEADLINES[n]: values[prefix + n] for n in HEADLINES if prefix + n in values}
        parts = [f"{self._stage}{' held-out' if evaluation else ''} {self._step}/{self._total}"]
        parts += [f"{name} {_short(value)}" for name, value in shown.items()]
        left = self._seconds_left()
        if not evaluation:
            self._printed = now
            parts += [] if left is None else [f"left {_duration(left)}"]
        self.message("  ".join(parts))

    def _view(self) -> Group:
        left = self._seconds_left()
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            Text(self._stage, style="bold"),
            ProgressBar(self._total, self._step, width=36),
            f"{self._step}/{self._total}",
            Text(self.phases.current, style="dim"),
            "" if left is None else f"{_duration(left)} left",
        )
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for column in ("", "training", "held out"):
            table.add_column(column, justify="right" if column else "left")
        latest = dict(self._latest)  # the loop may add to it while this thread draws
        for name in dict.fromkeys(name.removeprefix("eval/") for name in latest):
            cells = [latest.get(prefix + name) for prefix in ("", "eval/")]
            table.add_row(Text(name), *("" if c is None else _short(c) for c in cells))
        return Group(bar, table)


def _to_json(step: int, values: Mapping[str, float]) -> str:
    words = {math.inf: "Infinity", -math.inf: "-Infinity"}
    finite = {k: v if math.isfinite(v) else words.get(v, "NaN") for k, v in values.items()}
    return json.dumps({"step": step, **finite}, allow_nan=False) + "\n"


def _drop_from(path: Path, first: int) -> None:
    """Rewrite a metrics.jsonl without the lines of step `first` and later."""
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record["step"] < first] if first else []
    with whole_file(path) as file:
        file.write("".join(_to_json(r.pop("step"), r) for r in kept).encode())


def import_wandb(project: str) -> Any:
    """The package of Weights & Biases, for a project of `run.wandb`.

    Raises:
      UserError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"run.wandb: '{project}' asks for Weights & Biases, which is not installed; "
            "pip install 'jaxalign[wandb]', or set run.wandb to null"
        ) from error


def _start_wandb(
    project: str, folder: Path, stage: str, config: Mapping[str, Any] | None, resumed: bool
) -> Any:
    wandb = import_wandb(project)
    name = folder / "wandb_id.txt"
    if not (resumed and name.exists()):
        name.write_text(uuid.uuid4().hex, encoding="utf-8")
    run = wandb.init(
        project=project,
        group=folder.resolve().parent.name,
        name=stage,
        id=name.read_text(encoding="utf-8"),
        resume="allow",
        dir=str(folder),
        config=dict(config or {}),
    )
    # Its own step counter refuses the steps that a resumed run logs again.
    run.define_metric("*", step_metric="step")
    return run


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
