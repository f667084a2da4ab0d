"""The record that describes a model family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from ..lora import ATTENTION_INPUTS
from ..spec import Spec
from ._fields import Fields


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Names of the tensors in a checkpoint, without `.weight` and `.bias`."""

    embed: str
    """The embedding table."""
    layer: str
    """Prefix of all names in a layer; `{}` is the number of the layer."""
    linears: Mapping[tuple[str, str], str]
    """The module of each linear layer of a block, by its path in ours: ("mlp", "up").

    These are the targets of adapters. A module that fuses query, key and value occurs three times;
    its rows are [heads, 3, head width].
    """
    norm: str
    """The final norm."""
    head: str
    """The unembedding."""
    other_heads: tuple[str, ...] = ()
    """Other names of the unembedding that are read but never written."""
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    buffers: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Ends of the names of tensors in older checkpoints that are not parameters."""

    @property
    def fused(self) -> bool:
        """Whether query, key and value are one matrix."""
        return len({self.linears[path] for path in ATTENTION_INPUTS}) == 1


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that jaxalign knows about a model family."""

    model_type: str
    """`model_type` in `config.json`."""
    read: Callable[[Fields], Spec]
    """Reads the mathematics of a decoder from `config.json`."""
    names: WeightNames
    classifier: str
    """Class of transformers with a reward head: `architectures` of an exported reward model."""
