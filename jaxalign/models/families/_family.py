"""The record that describes a model family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ...errors import UserError
from ...shown import shown
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
INSIDE = {
    "embed": "language_model.model.embed_tokens",
    "layer": "language_model.model.layers.{}.",
    "norm": "language_model.model.norm",
    "head": "language_model.lm_head",
}
"""The names of a decoder in a model of text and images."""
TOWER = {
    **INSIDE,
    "spellings": {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    },
    "copied": ("vision_tower.", "multi_modal_projector."),
    "modules": "model.language_model.layers.{}.",
}
"""The same where transformers has other names in its modules than in its files."""


@dataclasses.dataclass(frozen=True)
class ExpertNames:
    """The tensors of a mixture of experts, in one of the forms in which checkpoints have them."""

    tensors: Mapping[tuple[str, ...], str]
    """The whole name, after the prefix of a layer, of the tensor of each parameter by its path.

    If it has a `{}`, each expert has a tensor of its own, and that is its number. A tensor that
    several parameters share holds their outputs one after the other.
    """
    transposed: bool = True
    """Whether kernels of experts are [out, in]; all other kernels always are."""
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
    positions: str = ""
    """The table of learned positions, if there is one."""
    matrices: Literal["[out, in]", "[in, out]"] = "[out, in]"
    """The axes of the linear layers of a block."""
    other_heads: tuple[str, ...] = ()
    """Other names of the unembedding that are read but never written."""
    norms: Mapping[tuple[str, ...], str] = dataclasses.field(default_factory=lambda: BEFORE)
    """The module of each norm of a block that a layer of the family can have, by its path.

    If it has a `{}`, each head has a module of its own, and that is its number.
    """
    others: Mapping[tuple[str, ...], str] = dataclasses.field(default_factory=dict)
    """The whole name, after the prefix of a layer, of the tensor of each other parameter.

    A tensor that several parameters share holds their outputs one after the other.
    """
    experts: tuple[ExpertNames, ...] = ()
    """The forms of mixtures of experts that are read; each checkpoint is written in its own."""
    grouped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The fused modules whose rows are in groups, by head: in each group, rows of every layer.

    The value is the field of the attention that counts the groups. Any other module has all rows of
    one layer after the rows of another.
    """
    more_layers: bool = False
    """Whether checkpoints may have layers after the last, to predict further tokens, which are left
    out."""
    unused: tuple[str, ...] = ()
    """Starts of the names of tensors that the decoder does not need, and an export lacks."""
    buffers: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Ends of the names of tensors in older checkpoints that are not parameters."""
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Beginnings of names in some files: what we write in their place."""
    copied: tuple[str, ...] = ()
    """Beginnings of the names of tensors outside the decoder, which an export copies."""
    modules: str | None = None
    """Prefix of the modules of a layer in transformers; None: `layer`."""

    @property
    def adapted(self) -> str:
        """Prefix of the names of adapters in a layer; `{}` is the number of the layer."""
        return self.modules or self.layer

    def written(self, name: str) -> str:
        """The name that we write for a tensor of this name in a file."""
        for beginning, ours in self.spellings.items():
            if name.startswith(beginning):
                return ours + name.removeprefix(beginning)
        return name

    def together(self, path: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """The linear layers that the module of this one holds, itself among them."""
        return tuple(p for p, module in self.linears.items() if module == self.linears[path])


@dataclasses.dataclass(frozen=True)
class TextPart:
    """Where `config.json` of a model of text and images describes its decoder of text."""

    model_types: tuple[str, ...]
    """The kinds of decoders that it may have, the first if the file does not say."""
    ignored: frozenset[str]
    """Settings of the other parts."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the decoder, where the file gives none."""
    key: str = "text_config"

    def of(self, f: Fields) -> Fields:
        """The settings of the decoder.

        Raises:
          UserError: the decoder is of another kind, or a setting outside is not implemented.
        """
        given = dict(self.defaults) | f.get(self.key, dict, {})
        kind = given.setdefault("model_type", self.model_types[0])
        if kind not in self.model_types:
            raise UserError(
                f"{f.where}: {self.key}: model_type {shown(kind)} is not implemented for "
                f"model_type '{f.raw['model_type']}'; wanted {' or '.join(self.model_types)}"
            )
        f.read |= self.ignored
        tied = f.get("tie_word_embeddings", bool, None)  # goes before the one in the decoder
        f.refuse_unread()
        outside = {} if tied is None else {"tie_word_embeddings": tied}
        return Fields(given | outside, f"{f.where}: {self.key}")


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
    checkpoints: str
    """The published checkpoints that it means, for the documentation."""
    quantized: tuple[str, ...] = ()
    """Formats of quantized checkpoints that are dequantized when they are read."""
    text: TextPart | None = None
    """Where the settings of the decoder are; None: `config.json` has no others."""
    refused: str = ""
    """Published checkpoints that its reader refuses, and why, for the documentation."""
