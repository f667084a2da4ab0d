"""The text part of Qwen3.5 (Qwen Team 2026) with images and videos."""

from __future__ import annotations

import dataclasses

from ._delta import IMAGES, TOWER
from ._family import Family, TextPart
from .qwen3_5_text import NAMES, read

FAMILY = Family(
    "qwen3_5",
    read,
    dataclasses.replace(NAMES, **TOWER),
    classifier="Qwen3_5ForSequenceClassification",
    checkpoints="dense Qwen3.5, with images",
    text=TextPart(("qwen3_5_text",), ignored=IMAGES),
)
