"""The record that describes a model family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from ..spec import Spec
from ._fields import Fields

BEFORE = {
    ("attention_norm",): "input_layernorm",
    ("mlp_norm",): "post_attention_layernorm",
}
"""The norms on the inputs of both parts of a block, as most families name them."""
AFTER = {
    ("attention_out_norm",): "post_attention_layernorm",
    ("mlp_out_norm",): "post_feedforward_layernorm",
}
"""The norms on the outputs of both parts."""
AROUND = {
    ("attention_norm",): "input_layernorm",
    ("mlp_norm",): "pre_feedforward_layernorm",
    **AFTER,
}
"""The norms on inputs and outputs."""
QK_NORMS = {
    ("attention", "query_norm"): "self_attn.q_norm",
    ("attention", "key_norm"): "self_attn.k_norm",
}
"""The norms of queries and keys."""


@dataclasses.dataclass(frozen=True)
class ExpertNames:
    """The tensors of a mixture of experts, in one of the forms in which checkpoints have them."""

    tensors: Mapping[tuple[str, ...], str]
    """The whole name, after the prefix of a layer, of the tensor of each parameter by its path.

    If it has a `{}`, each expert has a tensor of its own, and that is its number. A tensor that
    several parameters share holds their outputs one after the other.
    """
    transposed: bool = True
    """Whether kernels of experts are [out, in]; those of other layers always are."""
    interleaved: bool = False
    """Whether shared tensors have the outputs of their parameters in turn."""


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Names of the tensors in a checkpoint, without `.weight` and `.bias`."""

    embed: str
    """The embedding table."""
    layer: str
    """Prefix of all names in a layer; `{}` is the number of the layer."""
    linears: Mapping[tuple[str, ...], str]
    """The module of each linear layer of a block, by its path in ours: ("mlp", "up").

    These are the targets of adapters. A module that fuses several of our layers occurs once for
    each of them, in the order of its rows.
    """
    norm: str
    """The final norm."""
    head: str
    """The unembedding."""
    other_heads: tuple[str, ...] = ()
    """Other names of the unembedding that are read but never written."""
    norms: Mapping[tuple[str, ...], str] = dataclasses.field(default_factory=lambda: BEFORE)
    """The module of each norm of a block that a layer of the family can have, by its path."""
    others: Mapping[tuple[str, ...], str] = dataclasses.field(default_factory=dict)
    """The whole name, after the prefix of a layer, of the tensor of each other parameter."""
    experts: tuple[ExpertNames, ...] = ()
    """The forms of mixtures of experts that are read; each checkpoint is written in its own."""
    fused: Literal["in order", "by head"] = "in order"
    """Rows of fused modules: of one layer after the other, or [heads, layers, head width]."""
    more_layers: bool = False
    """Whether checkpoints may have layers after the last, to predict further tokens, which are left
    out."""
    buffers: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Ends of the names of tensors in older checkpoints that are not parameters."""

    def together(self, path: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """The linear layers that the module of this one holds, itself among them."""
        return tuple(p for p, module in self.linears.items() if module == self.linears[path])


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that jaxalign knows about a model family."""

    model_type: str
    """`model_type` in `config.json`."""
    read: Callable[[Fields], Spec]
    """Reads the mathematics of a decoder from `config.json`."""
    names: WeightNames
    classifier: str | None
    """Class of transformers with a reward head: `architectures` of an exported reward model.

    None: transformers has none, and reward models of the family are refused.
    """
    quantized: tuple[str, ...] = ()
    """Formats of quantized checkpoints that are dequantized when they are read."""
