"""The weights of a stage: its start, the base under adapters, a live reference."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax

from ..errors import UserError
from ..files import read_json, write_whole
from ..hf import load
from ..hf.reward import new_head
from ..models.decoder import Params
from ..models.families import read_config
from ..models.quantized import quantize
from ..update.state import TrainState, initial_state
from ..update.step import Fixed
from .stage import StageRun


def starting_params(stage: StageRun) -> Params:
    """The weights that the stage starts from, quantized where its adapters want them so."""
    kind = stage.quantized
    keep = functools.partial(quantize, kind=kind) if kind else None
    return load.load_params(stage.source, stage.model, keep)


def fixed_weights(stage: StageRun) -> Fixed:
    """The weights that training reads and never changes.

    Raises:
      UserError: the base is not the one that the stage began with, or the live reference is
        another architecture than the policy.
    """
    base = None if stage.adapted is None else _base(stage)
    return Fixed(base, None if stage.moving else live_reference(stage, base))


def first_state(stage: StageRun) -> TrainState:
    """The training state before the first update; a moving reference starts as `reference.path`."""
    ref_params = live_reference(stage) if stage.moving else None
    return initial_state(
        _first_params(stage), stage.task.objective, stage.tx, stage.state_spec, ref_params
    )


def _base(stage: StageRun) -> Params:
    """The frozen weights under adapters.

    A checkpoint holds adapters alone, so the stage's folder records which weights they belong to.
    """
    path, found = stage.folder / "base.json", load.weights_fingerprint(stage.source)
    if path.exists():
        before = read_json(path).get("weights")
        if before != found:
            raise UserError(
                f"{stage.source}: its weights have changed since stage {stage.name} began "
                f"(SHA-256 {before} in {path}, now {found}); restore them, or delete the folder of "
                "the stage"
            )
    else:
        write_whole(path, json.dumps({"weights": found}))
    return starting_params(stage)


def _first_params(stage: StageRun) -> Params:
    """The trained parameters before the first update: the starting weights, or new adapters.

    A reward head that the starting weights lack is new.
    """
    number = list(stage.recipe.stages).index(stage.name)
    key = jax.random.fold_in(jax.random.key(stage.recipe.run.seed), number)
    if stage.adapted is not None:
        return stage.adapted.init(key)
    head = new_head(stage.source, stage.model, key)
    return load.load_params(stage.source, stage.model, made=head)


def reference_source(stage: StageRun) -> Path:
    """The folder of the reference's checkpoint: `reference.path`, or the start of the stage."""
    path = stage.settings.reference.path
    if path is None:
        return stage.source
    return load.resolve(stage.recipe.locate(path), f"stages.{stage.name}.reference.path")


def live_reference(stage: StageRun, base: Params | None = None) -> Params | None:
    """The parameters of a live reference; None if the reference is not live.

    With adapters the reference is their frozen base, so this returns an empty adapter tree and
    loads no second copy.
    """
    if stage.reference_mode != "live":
        return None
    if base is not None:
        return {}
    source = reference_source(stage)
    if read_config(load.load_config(source)) != stage.model.config:
        raise UserError(
            f"stages.{stage.name}.reference: {source} is another architecture than the policy; "
            "a live reference must be the same, use mode: cached"
        )
    if source == stage.source:
        return starting_params(stage)
    return load.load_params(source, stage.model)
