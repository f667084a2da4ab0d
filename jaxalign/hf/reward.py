"""The reward head of a checkpoint, which gives scores in place of logits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from ..errors import UserError
from ..models.decoder import Model, Params
from ..models.families import FAMILIES, read_config
from ..models.spec import Spec
from .load import load_config


def with_scores(spec: Spec, scores: int, where: Path) -> Spec:
    """The configuration of a checkpoint, with a head of the given kind.

    Args:
      spec: the configuration of the checkpoint.
      scores: number of outputs of the head; 0: logits over the vocabulary.
      where: folder of the checkpoint, for messages.

    Raises:
      UserError: the checkpoint already has a reward head, of another kind, or transformers has no
        reward head for its family.
    """
    if scores and FAMILIES[spec.family].classifier is None:
        raise UserError(
            f"{where}: transformers has no reward model of model_type '{spec.family}' and could "
            "not read the export; start from a checkpoint of another family"
        )
    if spec.scores == scores or not spec.scores:
        return dataclasses.replace(spec, scores=scores)
    if not scores:
        raise UserError(
            f"{where}: a reward model, whose head gives scores ({spec.scores}) and no next "
            "tokens; choose a causal language model"
        )
    raise UserError(
        f"{where}: its reward head gives {spec.scores} scores, and the objective reads {scores}; "
        "choose another checkpoint, or the objective that it was trained with"
    )


def lacks_head(where: Path, spec: Spec) -> bool:
    """Whether a decoder has a reward head and the checkpoint in a folder has none."""
    return bool(spec.scores) and not read_config(load_config(where)).scores


def new_head(where: Path, model: Model, key: jax.Array) -> Params | None:
    """A random reward head, initialized as in transformers; None if the checkpoint has a head.

    Args:
      where: folder of the checkpoint.
      model: a decoder with a reward head.
      key: random key of the initialization.
    """
    raw = load_config(where)
    if not lacks_head(where, model.spec):
        return None
    leaf = model.abstract["head"]["kernel"]
    spread = float(raw.get("initializer_range", 0.02))

    def draw(key: jax.Array) -> jax.Array:
        return (spread * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)

    return {"head": {"kernel": jax.jit(draw, out_shardings=leaf.sharding)(key)}}


def classifier_keys(spec: Spec) -> dict[str, Any]:
    """The keys of `config.json` that make a checkpoint a reward model for transformers."""
    labels = {str(i): f"LABEL_{i}" for i in range(spec.scores)}
    return {
        "architectures": [FAMILIES[spec.family].classifier],
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
        "num_labels": spec.scores,
    }
