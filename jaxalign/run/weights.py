"""The weights of a stage: its start, the base under adapters, a live reference."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from ..digests import kept_sha256
from ..errors import UserError
from ..hf import load
from ..hf.reward import new_head
from ..models.decoder import Params
from ..models.families import read_config
from ..models.quantized import quantize
from ..update.state import TrainState, initial_state
from ..update.step import Fixed
from .read_data import store_folder
from .stage import StageRun
from .term import TermRun


def starting_params(stage: TermRun) -> Params:
    """The weights that the stage starts from, quantized where its adapters want them so."""
    if kind := stage.quantized:
        return load.load_params(stage.source, stage.model, functools.partial(quantize, kind=kind))
    kept = stage.kept.of(stage.source, stage.model)
    return load.load_params(stage.source, stage.model) if kept is None else kept


def fixed_weights(stage: StageRun) -> Fixed:
    """The weights that training reads and never changes.

    Raises:
      UserError: the live reference is another architecture than the policy.
    """
    base = None if stage.adapted is None else starting_params(stage)
    return Fixed.of(base, fixed_references(stage, base))


def fixed_references(stage: StageRun, base: Params | None = None) -> list[Params | None]:
    """The live reference of each term that does not move; terms with one checkpoint share it.

    Raises:
      UserError: a live reference is another architecture than the policy.
    """
    read: dict[Path, Params | None] = {}
    found: list[Params | None] = []
    for term in stage.terms:
        if term.reference_mode != "live" or term.moving:
            found.append(None)
            continue
        source = reference_source(term)
        if source not in read:
            read[source] = live_reference(term, base)
        found.append(read[source])
    return found


def first_state(stage: StageRun) -> TrainState:
    """The training state before the first update; a moving reference starts as `reference.path`."""
    references = [live_reference(term) if term.moving else None for term in stage.terms]
    params, tasks = _first_params(stage), stage.policies
    return initial_state(params, tasks, stage.tx, stage.state_spec, references)


def _first_params(stage: StageRun) -> Params:
    """The trained parameters before the first update: the starting weights, or new adapters.

    A reward head that the starting weights lack is new.
    """
    number = list(stage.recipe.training).index(stage.name)
    key = jax.random.fold_in(jax.random.key(stage.recipe.run.seed), number)
    if stage.adapted is not None:
        return stage.adapted.init(key)
    kept = stage.kept.of(stage.source, stage.model)
    if kept is not None:
        return jax.tree.map(jnp.copy, kept)  # the state is donated
    head = new_head(stage.source, stage.model, key)
    return load.load_params(stage.source, stage.model, made=head)


def kept_digest(stage: TermRun) -> load.Digest:
    """The SHA-256 of a file, kept with the tokens, so that large weights are read once for it."""
    return functools.partial(kept_sha256, folder=store_folder(stage.recipe.run))


def reference_source(stage: TermRun) -> Path:
    """The folder of the reference's checkpoint: `reference.path`, or the start of the stage.

    Raises:
      UserError: there is no such checkpoint, or a live one is another architecture than the policy.
    """
    path = stage.settings.reference.path
    if path is None:
        return stage.source
    source = load.resolve(stage.recipe.locate(path), f"{stage.where}.reference.path")
    live = stage.reference_mode == "live"
    if live and read_config(load.load_config(source)) != stage.model.spec:
        raise UserError(
            f"{stage.where}.reference: {source} is another architecture than the policy; "
            "a live reference must be the same, use mode: cached"
        )
    return source


def live_reference(stage: TermRun, base: Params | None = None) -> Params | None:
    """The parameters of a live reference; None if the reference is not live.

    With adapters the reference is their frozen base, so this returns an empty adapter tree and
    loads no second copy.
    """
    if stage.reference_mode != "live":
        return None
    if base is not None:
        return {}
    source = reference_source(stage)
    if source == stage.source:
        return starting_params(stage)
    return load.load_params(source, stage.model)
