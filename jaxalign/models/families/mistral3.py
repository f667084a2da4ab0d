"""The text part of Mistral Small 3.1 and of Ministral 3 (Mistral AI 2025) with images."""

from __future__ import annotations

import dataclasses

from ..spec import Spec
from . import ministral3, mistral
from ._family import TOWER, Family, TextPart
from ._fields import Fields
from .llama import NAMES as LLAMA

READERS = {"mistral": mistral.read, "ministral3": ministral3.read}


def read(f: Fields) -> Spec:
    """The decoder of text, of the kind that its settings name."""
    return READERS[f.raw["model_type"]](f)


TEXT = TextPart(
    tuple(READERS),
    ignored=frozenset(
        {
            *("vision_config", "vision_feature_layer", "spatial_merge_size", "image_token_index"),
            *("multimodal_projector_bias", "projector_hidden_act"),
        }
    ),
)
FAMILY = Family(
    "mistral3",
    read,
    dataclasses.replace(LLAMA, **TOWER),
    classifier=None,
    checkpoints="Mistral Small 3.1 and 3.2, Ministral 3 3B to 14B, with images",
    text=TEXT,
    refused="the files of Ministral 3 in FP8; those in BF16 are read",
)
