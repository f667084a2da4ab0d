"""The report of a run as one page that needs no other file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import writing
from ..files import whole_file
from . import figures, html
from .read import Run, Stage, read_run
from .samples import SHOWN, Comparison
from .text import seconds, setting, short

RECIPE = 100_000  # characters of a recipe that are shown
SETTINGS = {  # of a stage: the words for them, by their place in the recipe
    "held-out data": "data.eval_path",
    "longest prompt + response, tokens": "data.max_length",
    "longest prompt, tokens": "data.max_prompt",
    "too long": "data.too_long",
    "batch size, examples": "batch_size",
    "microbatches": "microbatches",
    "epochs": "epochs",
    "updates": "steps",
    "optimizer": "optimizer.name",
    "peak learning rate": "optimizer.learning_rate",
    "schedule": "optimizer.schedule",
    "warm-up updates": "optimizer.warmup",
    "weight decay": "optimizer.weight_decay",
    "largest gradient norm": "optimizer.clip_norm",
    "adapters": "lora",
}
RUN_SETTINGS = {
    "starting checkpoint": "model.path",
    "dtype": "model.dtype",
    "dtype of parameters": "model.param_dtype",
    "mesh": "mesh",
    "seed": "run.seed",
}


def write_report(folder: Path) -> Path:
    """Write `report/report.html` and its figures as PNG files, from the folder of a run alone.

    Args:
      folder: the folder of a run: finished, interrupted or damaged.

    Returns:
      The path of the page.

    Raises:
      UserError: the folder holds no run.
      RunError: the report cannot be written.
    """
    folder = Path(folder)
    run = read_run(folder)
    out = folder / "report"
    with writing(out):
        out.mkdir(exist_ok=True)
        for old in (*out.glob("stage_*.png"), *out.glob("answers*.png")):
            old.unlink()
    drawn = _draw(run)
    for name, group in drawn.items():
        for panel, png in group.items():
            with whole_file(out / f"{_file_name(name)}_{panel}.png") as file:
                file.write(png)
    with whole_file(out / "report.html") as file:
        file.write(_page(run, drawn).encode())
    return out / "report.html"


def _draw(run: Run) -> dict[str, dict[str, bytes]]:
    """The figures of the comparison and of each stage: {group: {panel: PNG}}."""
    drawn = {"answers": figures.answers(run.comparison) if run.comparison else {}}
    return drawn | {_group(i, s): _curves(s) for i, s in enumerate(run.stages, 1)}


def _curves(stage: Stage) -> dict[str, bytes]:
    """The figures of a stage, and of each of its terms."""
    drawn = figures.curves(stage.metrics)
    for term in stage.terms:
        own = [_of_term(line, f"{term}/") for line in stage.metrics]
        drawn |= {f"{term}_{panel}": png for panel, png in figures.curves(own).items()}
    return drawn


def _of_term(line: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The metrics of a term in a line of metrics.jsonl, without its name."""
    found = {"step": line["step"]}
    for begin in ("", "eval/"):
        own = {
            k.removeprefix(begin + prefix): v
            for k, v in line.items()
            if k.startswith(begin + prefix)
        }
        found |= {begin + name: value for name, value in own.items()}
    return found


def _group(number: int, stage: Stage) -> str:
    return f"stage {number} {stage.name}"


def _file_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _page(run: Run, drawn: Mapping[str, Mapping[str, bytes]]) -> str:
    title = f"{run.folder.resolve().name}: report of a run"
    kind = "good" if run.state == "finished" else "bad"
    parts = [
        html.heading(1, run.folder.resolve().name),
        html.element("p", f"{html.element('b', html.text(run.state), kind)}"),
        *(html.paragraph(problem, "problem") for problem in run.problems),
    ]
    if run.comparison is not None:
        parts.append(_comparison(run.comparison, drawn.get("answers", {})))
    parts += [_asked(run)]
    parts += [_stage(i, s, drawn.get(_group(i, s), {})) for i, s in enumerate(run.stages, 1)]
    parts += [_made(run)] if run.made else []
    parts += [_times(run), _models(run), _environment(run.environment), _recipe(run)]
    return html.page(title, "".join(parts))


def _comparison(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    """The result: numbers before and after, and samples next to each other."""
    count, shown = len(comparison.samples), comparison.samples[:SHOWN]
    rows = [(r.name, r.before, r.after, r.change) for r in comparison.rows()]
    parts = [html.heading(2, "Result")]
    if rows:
        parts.append(html.table(("", "before", "after", "change"), rows, "numbers wide"))
    parts += [
        html.paragraph(
            f"Before: the model of stage {comparison.before}. After: the model of stage "
            f"{comparison.after}. {count} held-out prompts; ± is one standard error; the change "
            "of the reward is paired by prompt.",
            "note",
        ),
        html.pictures({name.replace("_", ": "): png for name, png in pictures.items()}),
        html.heading(2, "Samples"),
    ]
    for sample in shown:
        sides = "".join(
            html.element(
                "div",
                html.element("div", html.text(name), "label")
                + html.element("div", html.text(answer, keep="\n\t"), "text"),
            )
            for name, answer in (
                (_labeled("before", sample.reward_before), sample.before),
                (_labeled("after", sample.reward_after), sample.after),
            )
        )
        prompt = html.element("div", html.text(sample.prompt, keep="\n\t"), "prompt text")
        parts.append(html.element("div", prompt + html.element("div", sides, "sides"), "sample"))
    parts.append(
        html.paragraph(f"The first {len(shown)} prompts, one sample each, not selected.", "note")
    )
    return "".join(parts)


def _labeled(name: str, reward: float | None) -> str:
    return name if reward is None else f"{name}, true reward {reward:.2f}"


def _asked(run: Run) -> str:
    """The settings of the run, and of each stage in a column of its own."""
    if not run.recipe:
        return ""
    rows = [(name, _at(run.recipe, place)) for name, place in RUN_SETTINGS.items()]
    parts = [html.heading(2, "Settings"), html.table((), (r for r in rows if r[1]), "settings")]
    columns = [_settings(stage.asked) for stage in run.stages]
    names = dict.fromkeys(name for column in columns for name in column)
    # The hyper-parameters of the objectives come before what all stages have.
    ordered = sorted(names, key=lambda name: not name.startswith("objective"))
    by_stage = [(name, *(column.get(name, "") for column in columns)) for name in ordered]
    head = ("stage", *(stage.name for stage in run.stages))
    parts.append(html.table(head, by_stage, "settings") if by_stage else "")
    return "".join(parts)


def _settings(asked: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a stage that a reader asks for first; all of them are in the recipe."""
    terms = asked.get("terms")
    found = _goal(asked)
    for term, goal in terms.items() if isinstance(terms, dict) else ():
        own = {"weight": _at(goal, "weight")} | _goal(goal) if isinstance(goal, dict) else {}
        found |= {f"{term}: {name}": value for name, value in own.items()}
    if asked.get("steps") is not None:
        found.pop("epochs")
    return {name: value for name, value in found.items() if value}


def _goal(asked: Mapping[str, Any]) -> dict[str, str]:
    """The objective, its hyper-parameters and its data."""
    objective = asked.get("objective")
    hyper = dict(objective) if isinstance(objective, dict) else {}
    found = {"objective": str(hyper.pop("name", ""))}
    found |= {f"objective: {name}": setting(value) for name, value in hyper.items()}
    found["data"] = _at(asked, "data.path") or _at(asked, "data.mixture")
    return found | {name: _at(asked, place) for name, place in SETTINGS.items()}


def _at(values: Mapping[str, Any], place: str) -> str:
    """The value at a dotted place; empty if there is none."""
    found: Any = values
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return "" if found is None else setting(found)


def _stage(number: int, stage: Stage, pictures: Mapping[str, bytes]) -> str:
    """Counts of the data, curves and held-out values of a stage."""
    parts = [html.heading(2, f"Stage {number}: {stage.name}")]
    rate = stage.tokens_per_second
    total = "" if stage.updates is None else f" of {stage.updates:,}"
    facts = [stage.state, f"{stage.done:,}{total} updates recorded"]
    facts += [] if rate is None else [f"{rate:,.0f} tokens/s (median)"]
    facts += [stage.choice] if stage.choice else []
    parts.append(html.paragraph("; ".join(dict.fromkeys(facts)) + "."))
    parts += [html.paragraph(warning, "problem") for warning in stage.warnings]
    if stage.counts:
        names = dict.fromkeys(name for counts in stage.counts.values() for name in counts)
        head = ("examples", *map(_data_set, stage.counts))
        rows = [(n, *(_count(c.get(n)) for c in stage.counts.values())) for n in names]
        parts += [html.heading(3, "Data"), html.table(head, rows, "numbers right")]
    if stage.metrics:
        parts.append(html.heading(3, "Training"))
        parts.append(html.pictures({n.replace("_", " "): png for n, png in pictures.items()}))
        parts.append(
            html.paragraph(
                "Faint: every recorded update; line: running mean; circles: held-out data.", "note"
            )
        )
    if stage.held_out:
        parts += [html.heading(3, "Held-out data"), _held_out(stage)]
    return "".join(parts)


def _data_set(name: str) -> str:
    """The heading of a data set: `dpo/held_out` is `dpo: held out`."""
    *term, which = name.split("/")
    return ": ".join([*term, "held out" if which == "held_out" else "training"])


def _made(run: Run) -> str:
    """What the stages made that sample, score or pair."""
    rows = [(m.name, m.kind, m.words() if m.finished else "unfinished") for m in run.made]
    return html.heading(2, "Data made") + html.table(("stage", "kind", "result"), rows, "settings")


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _held_out(stage: Stage) -> str:
    """The first evaluation, and the last or the exported one with its standard error."""
    rows = []
    for name, value in stage.held_out.items():
        error = "" if math.isnan(value.error) else f"± {short(value.error)}"
        rows.append((name, short(stage.evaluations(name)[0]), short(value.mean), error))
    known = any(row[3] for row in rows)
    last = "exported" if stage.choice else "last"
    head = ("metric", "first", last, *(("standard error",) if known else ()))
    count = stage.held_out_examples
    note = "First and last evaluation of the training."
    if stage.choice:
        note = "First evaluation of the training, and the exported weights."
    note += "" if count is None else f" {count:,} examples."
    note += "" if known else " The standard errors are not recorded."
    cut = [row[: len(head)] for row in rows]
    return html.table(head, cut, "numbers right") + html.paragraph(note, "note")


def _times(run: Run) -> str:
    """Seconds by phase and stage, and in all."""
    timed = [stage for stage in run.stages if stage.timings]
    parts = [html.heading(2, "Time")]
    if not timed and run.comparison is None:
        return "".join([*parts, html.paragraph("The times of the phases are not recorded.")])
    names = dict.fromkeys(name for stage in timed for name in stage.timings)
    rows = [
        (name, *(seconds(s.timings[name]) if name in s.timings else "" for s in timed))
        for name in names
    ]
    if timed:
        rows.append(("all", *(seconds(sum(s.timings.values())) for s in timed)))
        parts.append(html.table(("phase", *(s.name for s in timed)), rows, "numbers right"))
    if run.comparison is not None:
        spent = seconds(run.comparison.seconds)
        parts.append(html.paragraph(f"Sampling and measuring of the answers: {spent}.", "note"))
    return "".join(parts)


def _models(run: Run) -> str:
    """Where the exported models are."""
    rows = [(f"{stage.name}: model", str(stage.model)) for stage in run.stages if stage.model]
    rows += [(f"{s.name}: adapter", str(s.adapter)) for s in run.stages if s.adapter]
    parts = [html.heading(2, "Exported models")]
    parts.append(html.table((), rows, "settings") if rows else html.paragraph("None yet."))
    return "".join(parts)


def _environment(environment: Mapping[str, Any]) -> str:
    """Versions, devices and the commit."""
    known = {"devices": "devices", "python": "Python", "git": "commit"}
    rows = [(w, setting(environment[k])) for k, w in known.items() if environment.get(k)]
    packages = environment.get("packages")
    rows += (
        [(str(k), setting(v)) for k, v in packages.items()] if isinstance(packages, dict) else []
    )
    content = html.table((), rows, "settings") if rows else html.paragraph("Not recorded.")
    return html.heading(2, "Versions and devices") + content


def _recipe(run: Run) -> str:
    """The recipe with every value, folded."""
    if not run.recipe_text:
        return ""
    lines = run.recipe_text[:RECIPE].splitlines()
    recipe = html.element("pre", "\n".join(html.text(line) for line in lines))
    summary = html.element("summary", "recipe.yaml, with every value")
    return html.heading(2, "Recipe") + html.element("details", summary + recipe)
