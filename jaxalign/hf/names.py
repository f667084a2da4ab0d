"""Where each parameter lives in a Hugging Face checkpoint, and how its axes lie there.

A torch linear layer stores [out, in]; ours is [in, out]. Checkpoints store layers one by one; ours
are stacked. GPT-NeoX fuses queries, keys and values in one matrix whose rows run over
[heads, 3, head width].
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, Literal

import numpy as np

from ..models.config import ModelConfig

Axes = Literal["as is", "transposed", "fused"]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter of ours, and its tensor (or part of a tensor) in a checkpoint."""

    path: tuple[str, ...]
    """Keys of the parameter in the nested dict."""
    name: str
    """Name of the tensor; `{}` stands for the layer where layers are stacked."""
    axes: Axes = "as is"
    part: int = 0
    """Which third of a fused tensor: 0 query, 1 key, 2 value."""
    other_names: tuple[str, ...] = ()
    """Names that are read too, and never written."""

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading axis of layers."""
        return "{}" in self.name

    def of(self, tree: dict[str, Any]) -> Any:
        """This parameter's leaf of a nested dict."""
        return functools.reduce(operator.getitem, self.path, tree)


LLAMA_LAYER = "model.layers.{}."
NEOX_LAYER = "gpt_neox.layers.{}."
LLAMA_LINEARS = {
    ("attention", "query"): "self_attn.q_proj",
    ("attention", "key"): "self_attn.k_proj",
    ("attention", "value"): "self_attn.v_proj",
    ("attention", "out"): "self_attn.o_proj",
    ("mlp", "gate"): "mlp.gate_proj",
    ("mlp", "up"): "mlp.up_proj",
    ("mlp", "down"): "mlp.down_proj",
}
NEOX_LINEARS = {
    ("attention", "query"): "attention.query_key_value",
    ("attention", "key"): "attention.query_key_value",
    ("attention", "value"): "attention.query_key_value",
    ("attention", "out"): "attention.dense",
    ("mlp", "up"): "mlp.dense_h_to_4h",
    ("mlp", "down"): "mlp.dense_4h_to_h",
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
CLASSIFIERS = {
    "gpt_neox": "GPTNeoXForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
}
"""What transformers calls a family with a reward head."""
HEADS = ("lm_head.weight", "embed_out.weight")
"""Names of a head; some tied checkpoints store it beside the embedding."""
BUFFERS = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")
"""Ends of the names of tensors that older checkpoints hold and that are not parameters."""


def classifier(config: ModelConfig) -> dict[str, Any]:
    """What `config.json` says of a reward model."""
    labels = {str(i): f"LABEL_{i}" for i in range(config.scores)}
    return {
        "architectures": [CLASSIFIERS[config.family]],
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
        "num_labels": config.scores,
    }


def linears(config: ModelConfig) -> tuple[str, dict[tuple[str, str], str]]:
    """What the names of a layer begin with, and the module of each linear layer in a block."""
    if config.family == "gpt_neox":
        return NEOX_LAYER, NEOX_LINEARS
    return LLAMA_LAYER, LLAMA_LINEARS


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """All parameters of a decoder, embedding first, in the order in which they are written."""
    neox = config.family == "gpt_neox"
    prefix, names = linears(config)
    found = [
        Weight(("embed",), "gpt_neox.embed_in.weight" if neox else "model.embed_tokens.weight")
    ]
    for norm, name in NORMS.items():
        found += _norm(config, ("layers", norm), prefix + name)
    for path, name in names.items():
        found += _linear(config, ("layers", *path), prefix + name)
    found += _norm(config, ("norm",), "gpt_neox.final_layer_norm" if neox else "model.norm")
    if config.scores:
        found.append(Weight(("head", "kernel"), "score.weight", "transposed"))
    elif not config.tied:
        name, other = ("embed_out.weight", ("lm_head.weight",)) if neox else ("lm_head.weight", ())
        found.append(Weight(("head", "kernel"), name, "transposed", other_names=other))
    return tuple(found)


def _norm(config: ModelConfig, path: tuple[str, ...], name: str) -> list[Weight]:
    kinds = {"scale": "weight"} | ({"bias": "bias"} if config.norm == "layer" else {})
    return [Weight((*path, ours), f"{name}.{theirs}") for ours, theirs in kinds.items()]


def _linear(config: ModelConfig, path: tuple[str, ...], name: str) -> list[Weight]:
    group, leaf = path[-2:]
    fused = name.endswith("query_key_value")
    part = ("query", "key", "value").index(leaf) if fused else 0
    biased = config.mlp_bias if group == "mlp" else config.qkv_bias
    biased = config.out_bias if leaf == "out" else biased
    found = [Weight((*path, "kernel"), f"{name}.weight", "fused" if fused else "transposed", part)]
    if biased:
        axes: Axes = "fused" if fused else "as is"
        found.append(Weight((*path, "bias"), f"{name}.bias", axes, part))
    return found


def hf_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor in the checkpoint, from the shape of one layer of the parameter."""
    if weight.axes == "as is":
        return shape
    out, *into = shape[::-1]
    return (3 * out if weight.axes == "fused" else out, *into)


def read_part(weight: Weight, tensor, index: Index, head_width: int) -> np.ndarray:
    """The part `index` of one layer of a parameter, reading no more of the tensor than it needs.

    Args:
      weight: which parameter.
      tensor: sliceable like an array, in the layout of the checkpoint.
      index: slices into the parameter (without the axis of layers), each with start and stop.
      head_width: scalars per head.
    """
    if weight.axes == "as is":
        return tensor[index]
    if weight.axes == "transposed":
        return tensor[index[::-1]].T
    rows, *columns = index[::-1]
    first, last = rows.start // head_width, -(-rows.stop // head_width)
    block = tensor[(slice(3 * head_width * first, 3 * head_width * last), *columns)]
    block = block.reshape(last - first, 3, head_width, *block.shape[1:])[:, weight.part]
    block = block.reshape(-1, *block.shape[2:])
    return block[rows.start - first * head_width : rows.stop - first * head_width].T


def write_tensor(axes: Axes, parts: list[np.ndarray], head_width: int) -> np.ndarray:
    """One layer of a parameter (query, key and value if fused) -> the checkpoint's tensor."""
    if axes == "as is":
        return parts[0]
    if axes == "transposed":
        return parts[0].T
    thirds = [p.T.reshape(-1, head_width, *p.shape[:-1]) for p in parts]
    return np.stack(thirds, axis=1).reshape(-1, *parts[0].shape[:-1])
