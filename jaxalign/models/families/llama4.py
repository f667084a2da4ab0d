"""The text part of Llama 4 (Meta 2025) with images."""

from __future__ import annotations

import dataclasses

from ._family import INSIDE, Family, TextPart
from .llama4_text import NAMES as LLAMA4
from .llama4_text import read

FAMILY = Family(
    "llama4",
    read,
    dataclasses.replace(LLAMA4, **INSIDE, copied=("vision_model.", "multi_modal_projector.")),
    classifier=None,
    checkpoints="Llama 4 Scout and Maverick, with images",
    text=TextPart(
        ("llama4_text",),
        ignored=frozenset(
            {"vision_config", "image_token_index", "boi_token_index", "eoi_token_index"}
        ),
    ),
)
