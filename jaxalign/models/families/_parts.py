"""The parts of a decoder that many families read in the same way from `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from ...errors import UserError, near_miss
from ...shown import shown
from ..spec import Activation, Dense, Layer, NormKind, Rope, Softmax, Spec
from ._fields import Fields

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
Kind = Literal["full_attention", "sliding_attention"]
KINDS: tuple[Kind, Kind] = ("full_attention", "sliding_attention")


def decoder(
    f: Fields, layers: Sequence[Layer], norm: NormKind, *, tied: bool = False, **own: Any
) -> Spec:
    """A decoder of these layers.

    Args:
      f: the raw configuration.
      layers: the layers.
      norm: the final norm.
      tied: whether the head is tied to the embedding if the file does not say.
      **own: further fields of `Spec`.
    """
    return Spec(
        family=f.raw["model_type"],
        vocab=f.get("vocab_size", int),
        width=f.get("hidden_size", int),
        layers=tuple(layers),
        norm=norm,
        max_positions=f.get("max_position_embeddings", int),
        tied=f.get("tie_word_embeddings", bool, tied),
        **own,
    )


def count(f: Fields) -> int:
    """The number of layers."""
    return f.get("num_hidden_layers", int)


def attention(
    f: Fields, head_width: int, rope: Rope | None, *, kv_heads: int | None = None, **own: Any
) -> Softmax:
    """Grouped-query attention.

    Args:
      f: the raw configuration.
      head_width: scalars per head.
      rope: positions; None: none.
      kv_heads: number of key heads if the file gives none; None: as many as query heads.
      **own: further fields of `Softmax`; `scale` is 1 / sqrt(head_width) if it is not among them.

    Raises:
      UserError: the number of query heads is no multiple of the number of key heads.
    """
    heads = f.get("num_attention_heads", int)
    groups = f.get("num_key_value_heads", int, kv_heads or heads)
    if heads % groups:
        raise UserError(
            f"{f.where}: num_attention_heads {heads} is not a multiple of "
            f"num_key_value_heads {groups}; restore the original file"
        )
    own = {"scale": head_width**-0.5} | own
    return Softmax(heads=heads, kv_heads=groups, head_width=head_width, rope=rope, **own)


def head_width(f: Fields, default: int | None = None) -> int:
    """Scalars per head; if the file does not give them, `default`, or the width over the heads.

    Raises:
      UserError: the number of heads does not divide the width.
    """
    given = f.get("head_dim", int, default)
    if given is not None:
        return given
    width, heads = f.get("hidden_size", int), f.get("num_attention_heads", int)
    if width % heads:
        raise UserError(
            f"{f.where}: hidden_size {width} is not a multiple of num_attention_heads {heads}; "
            "restore the original file"
        )
    return width // heads


def rms(f: Fields, eps: float = 1e-6, *, scale: Literal["w", "1 + w"] = "w") -> NormKind:
    """Root-mean-square norm; `eps` if the file gives none."""
    return NormKind(f.get("rms_norm_eps", float, eps), scale=scale)


def dense(
    f: Fields, default: str = "silu", *, key: str = "hidden_act", gated: bool = True,
    bias: bool = False, **own: int,
) -> Dense:  # fmt: skip
    """The feed-forward.

    Args:
      f: the raw configuration.
      default: activation if the file gives none.
      key: the field of the activation.
      gated: whether it has a gate.
      bias: whether its linear layers have biases.
      **own: `width`, if the file need not give it.

    Raises:
      UserError: the activation is not implemented.
    """
    width = f.get("intermediate_size", int, *own.values())
    return Dense(width, activation(f, default, key), gated, bias)


def activation(f: Fields, default: str = "silu", key: str = "hidden_act") -> Activation:
    """The activation of the feed-forward; see `dense`."""
    name = f.get(key, str, default)
    if name not in ACTIVATIONS:
        raise UserError(
            f"{f.where}: {key} '{name}' is not implemented; {near_miss(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def layer_kinds(f: Fields, default: Sequence[str], known: Sequence[str] = KINDS) -> list[Any]:
    """`layer_types`: the kind of each layer, mostly whether it has a window.

    Args:
      f: the raw configuration.
      default: the kinds if the file gives none.
      known: the kinds of the family.

    Raises:
      UserError: a kind is not implemented, or there is not one for each layer.
    """
    given = f.get("layer_types", list, None)
    if given is None:
        return list(default)
    for kind in given:
        if kind not in known:
            raise UserError(
                f"{f.where}: layer_types: {shown(kind)} is not implemented for model_type "
                f"'{f.raw['model_type']}'; wanted {' or '.join(known)}"
            )
    if len(given) != count(f):
        raise UserError(
            f"{f.where}: layer_types has {len(given)} entries for {count(f)} layers; restore the "
            "original file"
        )
    return given


def every(number: int, layers: int) -> list[Kind]:
    """Kinds of layers of which each `number`-th has full attention, and the others a window."""
    return [KINDS[(i + 1) % number != 0] for i in range(layers)]


def rotated_layers(f: Fields) -> list[bool]:
    """Whether each layer has rotary positions: 1 in `no_rope_layers`, by default 3 of 4.

    Raises:
      UserError: it has not 0 or 1 for each layer.
    """
    every, n = f.get("no_rope_layer_interval", int, 4), count(f)
    given = f.get("no_rope_layers", list, None) or [int((i + 1) % every != 0) for i in range(n)]
    if len(given) != n or any(flag not in (0, 1) for flag in given):
        raise UserError(
            f"{f.where}: no_rope_layers: got {shown(given)}, wanted 0 or 1 for each of {n} layers"
        )
    return [bool(flag) for flag in given]


def windowed(mixer: Softmax, kinds: Sequence[Kind], window: int | None) -> list[Softmax]:
    """The attention of each layer: one without a window, but for the layers that slide."""
    sliding = dataclasses.replace(mixer, window=window)
    return [sliding if kind == "sliding_attention" else mixer for kind in kinds]
