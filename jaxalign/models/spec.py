"""The mathematics of one decoder, as data. `models.families` reads it from `config.json`."""

from __future__ import annotations

import dataclasses
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding: the rotated part of a head, and its frequencies."""

    theta: float
    """Base of the geometric series of frequencies."""
    width: int
    """Leading dimensions of a head that are rotated; the others pass through."""
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    """Frequencies are divided by this (linear), or only the low ones (llama3)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_positions: int = 0
    """Context length before scaling, tokens; llama3 only."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The mathematics of one decoder. Widths are counts of scalars."""

    family: str
    """`model_type` in `config.json`, the key of `FAMILIES`."""
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    max_positions: int
    """Longest sequence the checkpoint was trained on, tokens."""
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: Activation
    rope: Rope
    gated: bool
    """Feed-forward is down(act(gate(x)) * up(x)) rather than down(act(up(x)))."""
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    parallel_residual: bool
    """x + attention(norm(x)) + mlp(norm(x)) rather than one after the other."""
    tied: bool
    """The head is the transposed embedding table. Never true of a reward head."""
    scores: int = 0
    """Number of outputs of a reward head, which replaces the unembedding; 0: no reward head."""
