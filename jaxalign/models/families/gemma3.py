"""The text part of Gemma 3 (Gemma Team 2025, arXiv:2503.19786) with images."""

from __future__ import annotations

import dataclasses

from ..spec import Spec
from ._family import TOWER, Family, TextPart
from ._fields import Fields
from .gemma3_text import NAMES as GEMMA3
from .gemma3_text import read as read_text


def read(f: Fields) -> Spec:
    """The decoder of text, without its soft cap of logits, which transformers leaves out here."""
    return dataclasses.replace(read_text(f), logit_softcap=None)


TEXT = TextPart(
    ("gemma3_text",),
    ignored=frozenset(
        {
            *("vision_config", "mm_tokens_per_image"),
            *("image_token_index", "boi_token_index", "eoi_token_index"),
        }
    ),
    defaults={
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "max_position_embeddings": 131_072,
    },
)
NAMES = dataclasses.replace(GEMMA3, **TOWER)
FAMILY = Family(
    "gemma3",
    read,
    NAMES,
    classifier="Gemma3ForSequenceClassification",
    checkpoints="Gemma 3 4B to 27B, with images",
    text=TEXT,
)
