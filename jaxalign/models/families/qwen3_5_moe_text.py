"""Qwen3.5 with experts (Qwen Team 2026), text only: all layers have them, and a shared one."""

from __future__ import annotations

import dataclasses

from ..spec import Dense, Layer, Spec
from ._delta import mixers
from ._experts import experts, names, number, router
from ._family import Family
from ._fields import Fields
from ._parts import activation, decoder, rms
from .qwen3_5_text import NAMES as DENSE


def read(f: Fields) -> Spec:
    """The factors of the experts are always normalized."""
    inner, norm = f.get("moe_intermediate_size", int, 512), rms(f, scale="1 + w")
    f.read.add("intermediate_size")  # of dense layers, of which there are none
    mlp = Dense(inner, activation(f))
    always = dataclasses.replace(mlp, width=f.get("shared_expert_intermediate_size", int, 512))
    chooses = router(f, chosen=8, normalized=True)
    total = number(f, 256)
    mixture = experts(f, total, chooses, mlp, inner, shared=always, shared_gate=True)
    return decoder(f, [Layer(mixer, mixture, norm) for mixer in mixers(f, 2)], norm)


NAMES = dataclasses.replace(DENSE, experts=names(shared="mlp.shared_expert"))
FAMILY = Family(
    "qwen3_5_moe_text",
    read,
    NAMES,
    classifier=None,
    checkpoints="the text part of Qwen3.5 with experts, saved alone",
)
