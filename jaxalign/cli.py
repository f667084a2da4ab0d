"""The command line: arguments, devices, logging, exit codes.

Exit codes: 0 done; 1 the run failed (a full disk, a loss of NaN); 2 a mistake in what was given;
130 interrupted (Ctrl-C); 143 stopped by SIGTERM. In training both are answered after saving.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import RunError, UserError, near_miss
from .settings import Mesh, Run

RECIPE = "recipe, a YAML file; its values are flags too: `RECIPE --help` lists them"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # XLA reports every compilation detail at INFO; warnings of ours and theirs still show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    # Only its tokenizers are used; that torch is missing is no news.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # Orbax logs with a traceback what it then raises.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        return _dispatch(argv)
    except UserError as e:
        print(f"jaxalign: {e}", file=sys.stderr)
        return 2
    except (RunError, OSError) as e:
        print(f"jaxalign: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("jaxalign: interrupted; the last checkpoint is intact", file=sys.stderr)
        return 130


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [
            f"  {name:<10} {(f.__doc__ or '').splitlines()[0]}" for name, f in COMMANDS.items()
        ]
        print("usage: jaxalign COMMAND ...\n\n" + "\n".join(lines))
        print("\n`jaxalign COMMAND --help` tells more.")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        raise UserError(f"no command '{argv[0]}'; {near_miss(argv[0], COMMANDS)}")
    return COMMANDS[argv[0]](argv[1:])


def _recipe(command: str, argv: list[str], *extra: tuple[str, dict[str, Any]]) -> tuple[Any, Any]:
    """Arguments of a command that takes a recipe -> (the command's own, the recipe)."""
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


def compile_cache_folder(run: Run) -> str | None:
    """Where compiled programs are kept; None: nowhere."""
    shared = str(Path(run.dir).absolute().parent / "compile_cache")
    folder = run.compile_cache or os.environ.get("JAX_COMPILATION_CACHE_DIR") or shared
    return None if folder == "off" else folder


def _start(run: Run, mesh: Mesh, dtype: str) -> tuple[Any, Any]:
    """Join the other hosts, set jax up and build (mesh, console)."""
    import jax
    from rich.console import Console

    from .core.sharding import make_mesh

    jax.config.update("jax_compilation_cache_dir", compile_cache_folder(run))
    if dtype == "float32":
        # Accelerators round float32 operands to fewer bits unless they are told not to.
        jax.config.update("jax_default_matmul_precision", "highest")
    if run.distributed:
        # jax recognises TPU pods, Slurm, Kubernetes and MPI; elsewhere, as for the address of the
        # coordinator, the environment says who is who.
        count, number = (os.environ.get(k) for k in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if number is None else int(number),
        )
    return make_mesh(mesh), Console(quiet=jax.process_index() != 0, soft_wrap=True)


def _train(argv: list[str]) -> int:
    """Train the stages of a recipe, or go on where an earlier process stopped."""
    _, recipe = _recipe("train", argv)
    from .quickstart import show as showcase
    from .quickstart.start import make_world
    from .recipe.schema import objective_settings
    from .run import train

    mesh, console = _start(recipe.run, recipe.mesh, recipe.model.dtype)
    make_world(recipe, mesh)
    try:
        train.train(recipe, mesh, console)
    except train.Stopped as e:
        print(f"jaxalign: {e}; the same command goes on from there", file=sys.stderr)
        return 128 + e.number
    last, _ = objective_settings(list(recipe.stages.values())[-1])
    if recipe.world is not None and last.scores is None:
        showcase.show(recipe, mesh, console)
    return 0


STAGE: tuple[str, dict[str, Any]] = ("--stage", {"help": "name of a stage; none: the last"})


def _chosen(
    argv: list[str], command: str, *extra: tuple[str, dict[str, Any]]
) -> tuple[Any, Any, str]:
    """Arguments of a command about one stage -> (the command's own, the recipe, the stage)."""
    own, recipe = _recipe(command, argv, STAGE, *extra)
    name = own.stage or list(recipe.stages)[-1]
    if name not in recipe.stages:
        miss = near_miss(name, recipe.stages)
        raise UserError(f"--stage {name}: the recipe has no such stage; {miss}")
    return own, recipe, name


def _stage(recipe: Any, name: str) -> tuple[Any, Any]:
    """A stage of a recipe with its model and data, and the console."""
    from .hf.load import resolve
    from .run import train
    from .run.plan import settled
    from .run.stage import prepare

    mesh, console = _start(recipe.run, recipe.mesh, recipe.model.dtype)
    train.claim(recipe)
    names = list(recipe.stages)
    before = names[: names.index(name)]
    source = train.model_folder(recipe, before[-1]) if before else recipe.locate(recipe.model.path)
    if before and not Path(source).exists():
        raise UserError(f"--stage {name}: it starts from {source}, which is not there; train first")
    stage = prepare(recipe, name, resolve(str(source)), mesh, console)
    return settled(stage, console), console


def _reference(argv: list[str]) -> int:
    """Compute the reference statistics of a stage, which training then reads from disk."""
    import jax

    stage, console = _stage(*_chosen(argv, "reference")[1:])
    from .run.reference import cached_reference

    with jax.set_mesh(stage.mesh):
        splits = ["train"] + (["held_out"] if stage.held_out is not None else [])
        if cached_reference(stage, "train", console) is None:
            name, objective = stage.name, stage.task.objective.name
            raise UserError(f"--stage {name}: '{objective}' reads no cached reference")
        for split in splits:
            cached_reference(stage, split, console)
    console.print(f"reference statistics are in {stage.folder / 'reference'}")
    return 0


def _evaluate(argv: list[str]) -> int:
    """Evaluate a stage's model, or any checkpoint of its architecture, on the held-out data."""
    where = "Hugging Face folder or hub repository"
    own, recipe, name = _chosen(
        argv,
        "evaluate",
        ("--checkpoint", {"help": f"{where}; none: the stage's model"}),
        ("--against", {"help": f"{where} of the reference; none: the stage's, if it has one"}),
        ("--diagnostics", {"nargs": "+", "help": "what else to measure; none: what the stage has"}),
    )
    import jax

    from .diagnostics import problem
    from .hf.load import resolve
    from .hf.peft import load_merged
    from .recipe.schema import objective_settings, reference_mode
    from .run import export, train
    from .run.evaluate import evaluator
    from .run.reference import cached_reference
    from .run.weights import live_reference
    from .update.step import Fixed

    stage = recipe.stages[name]
    objective, _ = objective_settings(stage)
    names = stage.diagnostics if own.diagnostics is None else own.diagnostics
    at_hand = reference_mode(stage) if own.against is None else "live"
    if wrong := problem(names, objective, ref=at_hand):
        raise UserError(f"--diagnostics: {wrong}")
    if own.against is not None and objective.scores is not None:
        raise UserError(f"--against: '{objective.name}' gives scores and has no reference")
    if stage.data.eval_path is None:
        raise UserError(f"stages.{name}.data.eval_path: give data to evaluate on")
    # Before the data, which may take long to read.
    trained = train.model_folder(recipe, name)
    if own.checkpoint is None and not trained.exists():
        raise UserError(
            f"--stage {name}: {trained} is not there; train first, or name a --checkpoint"
        )
    checkpoint = resolve(own.checkpoint or str(trained), "--checkpoint")
    against = None if own.against is None else resolve(own.against, "--against")
    ready, console = _stage(recipe, name)
    with jax.set_mesh(ready.mesh):
        if against is None:
            cached = cached_reference(ready, "held_out", console)
            reference = None if ready.moving else live_reference(ready)
        else:
            cached, reference = None, load_merged(against, ready.model)
        batches = ready.loader(ready.held_out, cached).sequential()
        params = load_merged(checkpoint, ready.model)
        objective_state = moved = None
        if objective.init_state is not None or ready.moving:
            # What moves, such as BCO's shift, is no part of a Hugging Face checkpoint.
            state = export.newest_state(ready)[1]
            objective_state, moved = state.objective_state, state.ref_params
        run = evaluator(ready.task, ready.mesh, Fixed(None, reference), names)
        metrics = run(params, objective_state, batches, None if own.against else moved)
    for line in _table(metrics):
        console.print(line, end="")
    return 0


def _export(argv: list[str]) -> int:
    """Write the newest checkpoint of an unfinished stage as a Hugging Face folder."""
    own, recipe, name = _chosen(
        argv,
        "export",
        ("--out", {"required": True, "help": "folder to write; it must not exist"}),
        ("--adapter", {"action": "store_true", "help": "write the adapters alone, for PEFT"}),
    )
    import jax

    from .run import export

    stage, console = _stage(recipe, name)
    with jax.set_mesh(stage.mesh):
        step = export.write_checkpoint(stage, Path(own.out), adapter=own.adapter)
    what = "adapter" if own.adapter else "model"
    console.print(f"the {what} after update {step} is in {own.out}")
    return 0


def _generate(argv: list[str]) -> int:
    """Sample answers from a model, one JSON line for each prompt."""
    import tyro

    from .collect.sample import Sampling, read_prompts, sample
    from .diagnostics import diversity
    from .hf.load import resolve

    settings = tyro.cli(
        Sampling, args=argv, prog="jaxalign generate", description=_generate.__doc__
    )
    prompts = read_prompts(settings)
    mesh, _ = _start(Run(dir=".", compile_cache="off"), settings.mesh, settings.dtype)
    answers = sample(resolve(settings.model, "model"), settings, mesh, prompts)
    lines = [
        json.dumps({"prompt": p, "answer": a}, ensure_ascii=False) + "\n"
        for p, a in zip(prompts, answers.texts, strict=True)
    ]
    if settings.out is None:
        sys.stdout.writelines(lines)
    else:
        Path(settings.out).write_text("".join(lines), encoding="utf-8")
    if settings.diversity:
        measured = diversity([ids.tolist() for ids in answers.tokens], answers.vocab)
        sys.stderr.writelines(_table(measured))
    return 0


def _density(argv: list[str]) -> int:
    """Add to labelled data the density ratio of every prompt, which `bco_udm` reads."""
    import tyro

    from .collect.density import Density, write_ratios
    from .hf.load import resolve

    settings = tyro.cli(Density, args=argv, prog="jaxalign density", description=_density.__doc__)
    mesh, console = _start(Run(dir=".", compile_cache="off"), settings.mesh, settings.dtype)
    count = write_ratios(resolve(settings.model, "model"), settings, mesh)
    console.print(f"{count} rows are in {settings.out}")
    return 0


def _table(metrics: dict[str, float]) -> list[str]:
    """A line for each metric."""
    return [f"{name:<28} {value:.6g}\n" for name, value in metrics.items()]


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "reference": _reference,
    "evaluate": _evaluate,
    "generate": _generate,
    "export": _export,
    "density": _density,
}

if __name__ == "__main__":
    sys.exit(main())
