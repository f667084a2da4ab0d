"""The text part of Qwen3.5 with experts (Qwen Team 2026), with images and videos."""

from __future__ import annotations

import dataclasses

from ._delta import IMAGES, TOWER
from ._family import Family, TextPart
from .qwen3_5_moe_text import NAMES, read

FAMILY = Family(
    "qwen3_5_moe",
    read,
    dataclasses.replace(NAMES, **TOWER),
    classifier=None,
    checkpoints="Qwen3.5 with experts, with images",
    text=TextPart(("qwen3_5_moe_text",), ignored=IMAGES),
)
