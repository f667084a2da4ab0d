"""Read the folder of a run: finished, interrupted or damaged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..documents import from_json, from_yaml
from ..errors import UserError
from .drift import drift
from .metrics import parse_line
from .samples import FILE, Comparison, Estimate, parse_samples
from .text import short

Lines = list[dict[str, Any]]
KINDS = ("sample", "score", "pair")
"""The kinds of stages that make data, each the key of its settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What the folder of a stage tells; a missing file gives an empty field."""

    name: str
    asked: Mapping[str, Any]  # its settings in the recipe
    metrics: Lines
    counts: Mapping[str, Mapping[str, int]]
    """{"train" | "held_out": {what: examples}}; of a stage with terms, "dpo/train"."""
    updates: int | None  # updates asked for
    timings: Mapping[str, float]  # {phase: seconds}
    held_out: Mapping[str, Estimate]
    """The exported weights, or else the last evaluation; the error is nan if unknown."""
    held_out_examples: int | None
    best: Mapping[str, Any]  # the record of an exported update that was chosen as the best
    model: Path | None  # exported
    adapter: Path | None
    failed: tuple[int, ...]  # updates whose loss or gradient was not finite

    @property
    def done(self) -> int:
        """Updates made, as far as the metrics tell."""
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def state(self) -> str:
        """Whether the stage is finished, in words."""
        if self.model is not None:
            return "finished"
        if self.failed and self.failed[-1] > self.done:
            return f"failed: the loss or gradient of update {self.failed[-1]} was not finite"
        if not (self.metrics or self.timings or self.counts):
            return "not started"
        total = "" if self.updates is None else f" of {self.updates:,}"
        return f"unfinished: {self.done:,}{total} updates recorded"

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms of a stage with several objectives; else none."""
        return tuple(map(str, _mapping(self.asked.get("terms"))))

    @property
    def choice(self) -> str:
        """How the exported update was chosen, in words; empty if it is the last one."""
        names = ("update", "made", "planned", "value")
        update, made, planned, value = (_number(self.best.get(name)) for name in names)
        if math.isnan(update + made + planned):
            return ""
        early = f"stopped early after {made:,.0f} of {planned:,.0f} updates; "
        return (
            f"{early if made < planned else ''}update {update:,.0f} is exported, with the "
            f"{self.best.get('want')} held-out {self.best.get('metric')}, {short(value)}"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about own answers of the exported update, or else of the last."""
        until = _number(self.best.get("update"))
        lines = [line for line in self.metrics if not line["step"] > until]
        count = _mapping(self.asked.get("eval_samples")).get("count")
        return tuple(drift(lines, _whole(count) or 0).values())

    def evaluations(self, name: str) -> list[float]:
        """The held-out values of a metric, oldest first."""
        return [line[f"eval/{name}"] for line in self.metrics if f"eval/{name}" in line]

    @property
    def tokens_per_second(self) -> float | None:
        """The median rate over the recorded updates."""
        name = "time/tokens_per_second"
        rates = sorted(r for x in self.metrics if math.isfinite(r := x.get(name, math.nan)))
        return rates[len(rates) // 2] if rates else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What the folder of a stage that makes data tells."""

    name: str
    kind: str  # sample, score or pair
    finished: bool
    summary: Mapping[str, Any]

    def words(self) -> str:
        """The numbers of the summary, one after another."""
        flat: dict[str, Any] = {}
        for name, value in self.summary.items():
            flat |= (
                {f"{name}: {k}": v for k, v in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
        shown = [f"{name.replace('_', ' ')} {v:,.6g}" for name, v in flat.items() if _is_number(v)]
        return ", ".join(shown)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the folder of a run tells."""

    folder: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    stages: tuple[Stage, ...]  # that train
    made: tuple[Made, ...]  # that make data
    comparison: Comparison | None
    problems: tuple[str, ...]  # sentences about missing and damaged files

    @property
    def state(self) -> str:
        """Whether the run is finished, in words."""
        for stage in self.stages:
            if stage.state != "finished":
                return f"stage {stage.name} {stage.state}"
        for made in self.made:
            if not made.finished:
                return f"stage {made.name} unfinished"
        return "finished" if self.stages else "no stages"

    @property
    def model(self) -> Path | None:
        """The newest exported model."""
        return next((s.model for s in reversed(self.stages) if s.model is not None), None)


def read_run(folder: Path) -> Run:
    """Read whatever is in the folder of a run.

    Raises:
      UserError: the folder is missing, or holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run, its run.dir")
    metrics = sorted([*folder.glob("*/metrics.jsonl"), *folder.glob("*/*/metrics.jsonl")])
    if not (folder / "recipe.yaml").exists() and not metrics:
        raise UserError(
            f"{folder}: holds no run (no recipe.yaml, and no stage with a metrics.jsonl); "
            "give the run.dir of a recipe"
        )
    reader = _Reader(folder)
    text = reader.text("recipe.yaml")
    recipe = reader.recipe(text)
    asked = _mapping(recipe.get("stages"))
    names = [str(name) for name in asked] or [
        str(path.parent.relative_to(folder)) for path in metrics
    ]
    environment = reader.json("environment.json", expected=True)
    comparison = None
    if raw := reader.json(FILE):
        try:
            comparison = parse_samples(raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reader.problems.append(f"{FILE} is damaged ({error!r}); no samples are shown.")
    kinds = {name: next(filter(_mapping(asked.get(name)).get, KINDS), None) for name in names}
    made = [reader.made(name, kind) for name, kind in kinds.items() if kind]
    trained = [name for name, kind in kinds.items() if kind is None]
    stages = [reader.stage(name, _mapping(asked.get(name))) for name in trained]
    return Run(
        folder=folder,
        recipe=recipe,
        recipe_text=text,
        environment=environment,
        stages=tuple(stage for stage in stages if stage is not None),
        made=tuple(stage for stage in made if stage is not None),
        comparison=comparison,
        problems=tuple(reader.problems),
    )


class _Reader:
    """Reads files of one folder; each fault becomes a sentence in `problems`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.problems: list[str] = []

    def text(self, name: str, *, expected: bool = True) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            if expected:
                self.problems.append(f"{name} is missing.")
        except OSError as error:
            self.problems.append(f"{name} cannot be read ({error.strerror}).")
        return ""

    def recipe(self, text: str) -> Mapping[str, Any]:
        try:
            found = from_yaml(text)
        except ValueError:
            found = None
        if text and not isinstance(found, dict):
            self.problems.append("recipe.yaml is damaged; the settings are not shown as a table.")
        return _mapping(found)

    def json(self, name: str, *, expected: bool = False) -> Mapping[str, Any]:
        text = self.text(name, expected=expected)
        if not text:
            return {}
        try:
            found = from_json(text, finite=False)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.problems.append(f"{name} is damaged and left out.")
        return _mapping(found)

    def is_folder(self, name: str) -> bool:
        """Whether a stage may have this name, which begins with the name of its round, if any."""
        parts = name.split("/")
        fits = len(parts) <= 2 and all(
            p not in ("", ".", "..") and Path(p).name == p for p in parts
        )
        if not fits:
            self.problems.append(f"The stage name {name!r} is no name of a folder.")
        return fits

    def made(self, name: str, kind: str) -> Made | None:
        if not self.is_folder(name):
            return None
        finished = (self.folder / name / "data.jsonl").is_file()
        summary = self.json(f"{name}/summary.json")
        return Made(name=name, kind=kind, finished=finished, summary=summary)

    def stage(self, name: str, asked: Mapping[str, Any]) -> Stage | None:
        if not self.is_folder(name):
            return None
        own = self.folder / name
        data = self.json(f"{name}/data.json")
        rows = {k: data[k] for k in data if k.rpartition("/")[2] in ("train", "held_out")}
        for key in [k for k in rows if k.endswith("train")]:
            # Of data that are streamed, data.json counts the first part alone.
            term = "".join(f"-{part}" for part in key.split("/")[:-1])
            if streamed := self.json(f"{name}/stream{term}.json").get("counts"):
                rows[key] = streamed
        metrics = self._metrics(f"{name}/metrics.jsonl")
        held_out = self.json(f"{name}/held_out.json")
        timings = self.json(f"{name}/timings.json")
        best = self.json(f"{name}/best.json")
        for text in _accepted(self.json(f"{name}/inputs.json")):
            self.problems.append(f"{name} {text}")
        total = asked.get("steps") or data.get("updates")
        return Stage(
            name=name,
            asked=asked,
            metrics=metrics,
            counts={k: _counts(v) for k, v in rows.items()},
            updates=total if isinstance(total, int) else None,
            timings={str(k): v for k, v in timings.items() if _is_number(v)},
            held_out=_last_evaluation(metrics, held_out),
            held_out_examples=_whole(held_out.get("examples")),
            best=best,
            model=own / "model" if (own / "model").is_dir() else None,
            adapter=own / "adapter" if (own / "adapter").is_dir() else None,
            failed=_failed(own),
        )

    def _metrics(self, name: str) -> Lines:
        lines = self.text(name, expected=False).splitlines()
        found = [parse_line(line) for line in lines]
        damaged = sum(record is None for record in found[:-1])
        if damaged:
            self.problems.append(f"{damaged} lines of {name} are damaged and left out.")
        return [record for record in found if record is not None]


def _failed(stage: Path) -> tuple[int, ...]:
    """The updates whose batch was written down because the loss was not finite."""
    steps = [path.stem.partition("-")[2] for path in stage.glob("not_finite-*.json")]
    return tuple(sorted(int(step) for step in steps if step.isdecimal()))


def _last_evaluation(metrics: Lines, recorded: Mapping[str, Any]) -> dict[str, Estimate]:
    """The last held-out value of each metric, with its standard error where it is recorded.

    Of a stage that chose the best update, the values of the exported weights are recorded too.
    """
    last: dict[str, float] = {}
    step = None
    for line in metrics:
        found = {k.removeprefix("eval/"): v for k, v in line.items() if k.startswith("eval/")}
        step = line["step"] if found else step
        last |= found
    exported = {k: v for k, v in _mapping(recorded.get("exported")).items() if _is_number(v)}
    last = exported or last
    current = bool(exported) or recorded.get("step") == step
    errors = _mapping(recorded.get("standard_errors")) if current else {}
    known = {name: float(e) for name, e in errors.items() if _is_number(e)}
    return {name: Estimate(value, known.get(name, math.nan)) for name, value in last.items()}


def _accepted(inputs: Mapping[str, Any]) -> Iterator[str]:
    """What a stage went on with although it had changed, from its ledger."""
    entries = inputs.get("accepted")
    for entry in entries if isinstance(entries, list) else ():
        changes = _mapping(entry).get("changes")
        names = [str(_mapping(c).get("name")) for c in changes] if isinstance(changes, list) else []
        yield f"continued with changed inputs: {', '.join(names)}."


def _counts(raw: Any) -> dict[str, int]:
    """The row counts of a data set as {what: examples}, from the nested ones of data.json."""
    words = {
        "kept": "examples kept",
        "dropped": "dropped: {}",
        "prompt_cut": "prompt cut on the left",
        "response_cut": "{} cut on the right",
        "noted": "{}",
    }
    found = {}
    for key, form in words.items():
        value = _mapping(raw).get(key)
        named = value if isinstance(value, dict) else {"": value}
        found |= {form.format(name): n for name, n in named.items() if _is_number(n)}
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else math.nan


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
