"""Each parameter's tensor in a Hugging Face checkpoint, and the order of its axes there.

A torch linear layer stores [out, in]; ours is [in, out]. Checkpoints store layers one by one; ours
are stacked. A module that fuses query, key and value has rows [heads, 3, head width].
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, Literal

import numpy as np

from ..models.families import FAMILIES, WeightNames
from ..models.lora import ATTENTION_INPUTS
from ..models.spec import Spec

Axes = Literal["as is", "transposed", "fused"]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our parameters, and its tensor (or its part of a tensor) in a checkpoint."""

    path: tuple[str, ...]
    """Keys of the parameter in the nested dict."""
    name: str
    """Name of the tensor; `{}` is the number of the layer, if layers are stacked."""
    axes: Axes = "as is"
    part: int = 0
    """Third of a fused tensor: 0 query, 1 key, 2 value."""
    other_names: tuple[str, ...] = ()
    """Names that are read too but never written."""

    @property
    def stacked(self) -> bool:
        """Whether the parameter has a leading axis of layers."""
        return "{}" in self.name

    def of(self, tree: dict[str, Any]) -> Any:
        """The leaf of this parameter in a nested dict."""
        return functools.reduce(operator.getitem, self.path, tree)


def names_of(spec: Spec) -> WeightNames:
    """The names of a decoder's weights."""
    return FAMILIES[spec.family].names


def weights(spec: Spec) -> tuple[Weight, ...]:
    """All parameters of a decoder, embedding first, in the order in which they are written."""
    names = names_of(spec)
    found = [Weight(("embed",), f"{names.embed}.weight")]
    found += _norm(spec, ("layers", "attention_norm"), names.layer + names.attention_norm)
    found += _norm(spec, ("layers", "mlp_norm"), names.layer + names.mlp_norm)
    for path in names.linears:
        found += _linear(spec, path)
    found += _norm(spec, ("norm",), names.norm)
    if spec.scores:
        found.append(Weight(("head", "kernel"), "score.weight", "transposed"))
    elif not spec.tied:
        head, *others = heads(spec)
        found.append(Weight(("head", "kernel"), head, "transposed", other_names=tuple(others)))
    return tuple(found)


def heads(spec: Spec) -> tuple[str, ...]:
    """Tensor names of the unembedding; some tied checkpoints store it next to the embedding."""
    names = names_of(spec)
    return tuple(f"{name}.weight" for name in (names.head, *names.other_heads))


def _norm(spec: Spec, path: tuple[str, ...], name: str) -> list[Weight]:
    kinds = {"scale": "weight"} | ({"bias": "bias"} if spec.norm == "layer" else {})
    return [Weight((*path, ours), f"{name}.{theirs}") for ours, theirs in kinds.items()]


def _linear(spec: Spec, path: tuple[str, str]) -> list[Weight]:
    names = names_of(spec)
    name = names.layer + names.linears[path]
    fused = names.fused and path in ATTENTION_INPUTS
    part = ATTENTION_INPUTS.index(path) if fused else 0
    group, leaf = path
    biased = spec.mlp_bias if group == "mlp" else spec.qkv_bias
    biased = spec.out_bias if leaf == "out" else biased
    ours = ("layers", *path)
    found = [Weight((*ours, "kernel"), f"{name}.weight", "fused" if fused else "transposed", part)]
    if biased:
        axes: Axes = "fused" if fused else "as is"
        found.append(Weight((*ours, "bias"), f"{name}.bias", axes, part))
    return found


def hf_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor in the checkpoint, given the shape of one layer of the parameter."""
    if weight.axes == "as is":
        return shape
    out, *into = shape[::-1]
    return (3 * out if weight.axes == "fused" else out, *into)


def read_part(weight: Weight, tensor: Any, index: Index, head_width: int) -> np.ndarray:
    """Read the part `index` of one layer of a parameter, and no more of the tensor than needed.

    Args:
      weight: the parameter.
      tensor: the tensor in the layout of the checkpoint; sliceable like an array.
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
