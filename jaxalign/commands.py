"""The commands: their arguments and what they print; each is one call of `api`."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .run.train import Stopped

RECIPE = "recipe: a YAML file, or `quickstart`; `RECIPE --help` lists its settings as flags"


def _recipe(command: str, argv: list[str], *extra: tuple[str, dict[str, Any]]) -> tuple[Any, Any]:
    """Parse the arguments of a command with a recipe -> (its own arguments, the recipe)."""
    parser = argparse.ArgumentParser(
        f"jaxalign {command}", usage="%(prog)s RECIPE [FLAGS]", add_help=False, allow_abbrev=False
    )
    parser.add_argument("recipe", help=RECIPE)
    for flag, options in extra:
        parser.add_argument(flag, **options)
    if not argv:
        raise UserError(f"{command}: no recipe; give the path of a YAML file, see --help")
    if argv[0] in ("-h", "--help"):
        print(COMMANDS[command].__doc__)
        parser.print_help()
        raise SystemExit(0)
    own, flags = parser.parse_known_args(argv)
    from .recipe.read import read

    return own, read(own.recipe, flags, prog=f"jaxalign {command} {own.recipe}")


def _say(text: str) -> None:
    """Print on the first host only."""
    from .files import first_process

    if first_process():
        print(text)


ACCEPT: tuple[str, dict[str, Any]] = (
    "--accept-changes",
    {"action": "store_true", "help": "continue although inputs of a stage changed since it began"},
)


def _train(argv: list[str]) -> int:
    """Train the stages of a recipe, or resume where an earlier process stopped."""
    dry = {"action": "store_true", "help": "check everything, print the plan of the run, and stop"}
    own, recipe = _recipe("train", argv, ACCEPT, ("--dry-run", dry))
    from . import api
    from .run.train import Stopped

    if own.dry_run:
        api.train(recipe, accept_changes=own.accept_changes, dry_run=True)
        return 0
    try:
        api.train(recipe, accept_changes=own.accept_changes)
    except Stopped as e:
        return _stopped(e)
    return 0


def _stopped(stopped: Stopped) -> int:
    """Say that a run has stopped; returns the exit code."""
    print(f"jaxalign: {stopped}; the same command resumes from there", file=sys.stderr)
    return 128 + stopped.number


def _sweep(argv: list[str]) -> int:
    """Train runs of a recipe that differ in a few settings, and compare their metrics."""
    vary = {
        "action": "append",
        "default": [],
        "metavar": "PATH=VALUES",
        "help": "a setting and its values: stages.dpo.objective.beta=0.1,0.3 or run.seed=0..4; "
        "give it once for each setting that varies",
    }
    own, recipe = _recipe("sweep", argv, ("--vary", vary), ACCEPT)
    from . import api
    from .run.train import Stopped
    from .sweeps.grid import parse_vary

    try:
        found = api.sweep(recipe, parse_vary(own.vary), accept_changes=own.accept_changes)
    except Stopped as e:
        return _stopped(e)
    return 1 if any(run.problem for run in found.runs) else 0


STAGE: tuple[str, dict[str, Any]] = ("--stage", {"help": "name of the stage; none: the last"})


def _reference(argv: list[str]) -> int:
    """Compute the reference log-probabilities of a stage, which training then reads from disk."""
    own, recipe = _recipe("reference", argv, STAGE, ACCEPT)
    from . import api

    folder = api.reference(recipe, own.stage, accept_changes=own.accept_changes)
    _say(f"reference statistics are in {folder}")
    return 0


def _evaluate(argv: list[str]) -> int:
    """Evaluate the model of a stage, or another checkpoint, on the held-out data."""
    where = "Hugging Face folder or hub repository"
    own, recipe = _recipe(
        "evaluate",
        argv,
        STAGE,
        ACCEPT,
        ("--checkpoint", {"help": f"{where} of the model; none: the model of the stage"}),
        ("--against", {"help": f"{where} of the reference; none: that of the stage, if any"}),
        ("--diagnostics", {"nargs": "+", "help": "measurements to add; none: those of the stage"}),
    )
    from . import api

    metrics = api.evaluate(
        recipe,
        own.stage,
        checkpoint=own.checkpoint,
        against=own.against,
        diagnostics=own.diagnostics,
        accept_changes=own.accept_changes,
    )
    _say(_table(metrics))
    return 0


def _export(argv: list[str]) -> int:
    """Write the newest checkpoint of an unfinished stage as a Hugging Face folder."""
    own, recipe = _recipe(
        "export",
        argv,
        STAGE,
        ACCEPT,
        ("--out", {"required": True, "help": "folder to write; it must not exist"}),
        ("--adapter", {"action": "store_true", "help": "write the adapters only, for PEFT"}),
    )
    from . import api

    step = api.export(
        recipe, own.out, own.stage, adapter=own.adapter, accept_changes=own.accept_changes
    )
    _say(f"the {'adapter' if own.adapter else 'model'} after update {step} is in {own.out}")
    return 0


def _generate(argv: list[str]) -> int:
    """Sample answers from a model, one JSON line for each prompt."""
    import tyro

    from . import api
    from .collect.sample import Sampling, answered, read_prompts
    from .diagnostics import diversity
    from .files import check_out, write_text

    how = tyro.cli(Sampling, args=argv, prog="jaxalign generate", description=_generate.__doc__)
    if how.out is not None:
        check_out(how.out)
    rows = read_prompts(how)
    answers = api.sample_answers(how, rows)
    lines = [
        json.dumps(answered(row, text), ensure_ascii=False, default=str) + "\n"
        for row, text in zip(rows, answers.texts, strict=True)
    ]
    if how.out is None:
        sys.stdout.writelines(lines)
    else:
        write_text(Path(how.out), "".join(lines))
    if how.diversity:
        measured = diversity([ids.tolist() for ids in answers.tokens], answers.vocab)
        print(_table(measured), file=sys.stderr)
    return 0


def _chat(argv: list[str]) -> int:
    """Chat with a model in the terminal; other standard input has one message per line."""
    import tyro

    from . import api
    from .collect.chat import Chatting, lines_of

    how = tyro.cli(Chatting, args=argv, prog="jaxalign chat", description=_chat.__doc__)
    try:
        say = functools.partial(print, end="", flush=True)
        api.chat(how, lines_of(sys.stdin), say, patient=sys.stdin.isatty())
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


def _sample(argv: list[str]) -> int:
    """Sample several answers to each prompt of a file, with their log-probabilities."""
    import tyro

    from . import api
    from .collect.flags import SampleFlags

    how = tyro.cli(SampleFlags, args=argv, prog="jaxalign sample", description=_sample.__doc__)
    _say(_table(api.sample(**how.arguments())))
    return 0


def _score(argv: list[str]) -> int:
    """Score every answer of a file: by rules, models, programs or a judge."""
    import tyro

    from . import api
    from .collect.flags import ScoreFlags

    how = tyro.cli(ScoreFlags, args=argv, prog="jaxalign score", description=_score.__doc__)
    _say(_table(api.score(**how.arguments())))
    return 0


def _pair(argv: list[str]) -> int:
    """Make training data of scored answers: pairs, demonstrations, labels, rankings."""
    import tyro

    from . import api
    from .collect.flags import PairFlags

    how = tyro.cli(PairFlags, args=argv, prog="jaxalign pair", description=_pair.__doc__)
    _say("\n".join(api.pair(**how.arguments()).lines()))
    return 0


def _compare(argv: list[str]) -> int:
    """Compare models by their answers to the same prompts: scores, win rates, lengths, KL."""
    import tyro

    from . import api
    from .collect.flags import CompareFlags
    from .comparison.page import terminal
    from .console import Terminal
    from .files import first_process

    how = tyro.cli(CompareFlags, args=argv, prog="jaxalign compare", description=_compare.__doc__)
    found = api.compare(**how.arguments())
    if how.json:
        _say(json.dumps(found.to_json()))
    elif first_process():
        Terminal(soft_wrap=True, highlight=False).print(terminal(found))
    return 0


def _density(argv: list[str]) -> int:
    """Add to labeled data the density ratio of every prompt, which `bco_udm` reads."""
    import tyro

    from . import api
    from .collect.density import Density

    how = tyro.cli(Density, args=argv, prog="jaxalign density", description=_density.__doc__)
    count = api.density(how)
    _say(f"{count} rows are in {how.out}")
    return 0


def _inspect(argv: list[str]) -> int:
    """Show what data becomes in training: columns, rows, lengths, packing, repeats, examples."""
    from .recipe.read import is_recipe

    if argv and is_recipe(argv[0]):
        own, recipe = _recipe(
            "inspect",
            argv,
            ("--stage", {"help": "name of the stage, or stage.term; none: the last stage"}),
            ("--examples", {"type": int, "default": 2, "help": "number of examples to show"}),
            ("--row", {"type": int, "help": "show only this row of the file; none: all of it"}),
            ("--json", {"action": "store_true", "help": "print one JSON object"}),
        )
        data, values = recipe, {"stage": own.stage}
    else:
        import tyro

        from .run.inspect import Flags

        about = (
            f"{_inspect.__doc__} No weights are read. For the training data of a recipe: "
            "jaxalign inspect RECIPE [--stage STAGE] [--examples N] [--row N] [--json]."
        )
        own = tyro.cli(Flags, args=argv, prog="jaxalign inspect", description=about)
        values = dataclasses.asdict(own)
        data = values.pop("path")
        values = {k: v for k, v in values.items() if k not in ("examples", "row", "json")}
    from . import api
    from .console import Terminal
    from .run.inspect_terminal import row_terminal, terminal

    if own.row is None:
        found = api.inspect(data, examples=own.examples, **values)
        shown = terminal(found)
    else:
        found = api.inspect_row(data, own.row, **values)
        shown = row_terminal(found)
    if own.json:
        print(json.dumps(found.to_json(), default=str))
    else:
        Terminal(soft_wrap=True, highlight=False).print(shown)
    return 0


def _report(argv: list[str]) -> int:
    """Write the report of a run, finished or not, from its folder: curves, metrics, answers."""
    parser = argparse.ArgumentParser("jaxalign report", description=_report.__doc__)
    parser.add_argument("run", help="folder of the run")
    own = parser.parse_args(argv)
    from .console import Terminal
    from .report import terminal, write_report

    # Not by `Run`, which needs a recipe: a damaged run has a report too.
    page = write_report(Path(own.run))
    Terminal().print(terminal(Path(own.run)))
    print(f"report: {page}")
    return 0


def _table(metrics: Mapping[str, float]) -> str:
    """One line for each metric."""
    numbers = {k: f"{v:,}" if isinstance(v, int) else f"{v:.6g}" for k, v in metrics.items()}
    return "\n".join(f"{name:<28} {number}" for name, number in numbers.items())


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sweep": _sweep,
    "reference": _reference,
    "evaluate": _evaluate,
    "generate": _generate,
    "chat": _chat,
    "sample": _sample,
    "score": _score,
    "pair": _pair,
    "compare": _compare,
    "export": _export,
    "density": _density,
    "inspect": _inspect,
    "report": _report,
}
