"""Each parameter's tensor in a Hugging Face checkpoint, and the order of its axes there.

A torch linear layer stores [out, in]; ours is [in, out]. Checkpoints store layers one by one; ours
are stacked. A module may fuse several of our layers, by rows.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict

from ..models.decoder import Model
from ..models.families import FAMILIES, WeightNames
from ..models.patterns import runs
from ..models.spec import Spec

Axes = Literal["as is", "transposed"]
Index = tuple[slice, ...]
Path = tuple[str, ...]
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
"""The end of a tensor's name, by the last key of its parameter."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a fused tensor that belong to one parameter: groups of neighbors."""

    groups: int
    size: int
    """Rows of a group."""
    stride: int
    """Rows from one group to the next."""
    first: int
    total: int
    """Rows of the tensor."""

    def numbers(self, start: int, stop: int) -> np.ndarray:
        """The row of each output `start` ... `stop - 1` of the parameter."""
        group, within = np.divmod(np.arange(start, stop), self.size)
        return self.first + group * self.stride + within


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our parameters, and its tensor (or its part of a tensor) in a checkpoint."""

    path: Path
    """Keys of the parameter in the nested dict."""
    name: str
    """Name of the tensor; `{}` is the number of the layer, if layers are stacked."""
    axes: Axes = "as is"
    rows: Rows | None = None
    """The rows of a fused tensor; None: all."""
    other_names: tuple[str, ...] = ()
    """Names that are read too but never written."""
    layers: range | None = None
    """The layers of the leading axis, if layers are stacked."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, one per layer."""
        numbers = self.layers or range(1)
        return tuple(self.name.format(number) for number in numbers)

    def of(self, tree: dict[str, Any]) -> Any:
        """The leaf of this parameter in a nested dict."""
        return functools.reduce(operator.getitem, self.path, tree)


def names_of(spec: Spec) -> WeightNames:
    """The names of a decoder's weights."""
    return FAMILIES[spec.family].names


def stacks(spec: Spec) -> dict[str, range]:
    """The layers of each stack, by the key of the stack."""
    return {str(s[0]): s for run in runs(spec.layers) for s in run.stacks}


def weights(model: Model) -> tuple[Weight, ...]:
    """All parameters of a decoder, embedding first, in the order in which they are written."""
    names, spec = names_of(model.spec), model.spec
    found = [Weight(("embed",), f"{names.embed}.weight")]
    modules = {**names.norms, **names.linears}
    for key, numbers in stacks(spec).items():
        block: dict[Path, Any] = flatten_dict(model.abstract["layers"][key])
        order = list(modules)
        for path in sorted(block, key=lambda p: (order.index(p[:-1]), p[-1] == "bias")):
            name = f"{names.layer}{modules[path[:-1]]}.{KINDS[path[-1]]}"
            axes: Axes = "transposed" if path[-1] == "kernel" else "as is"
            rows = _rows(spec, block, path)
            found.append(Weight(("layers", key, *path), name, axes, rows, layers=numbers))
    for leaf in model.abstract.get("norm", {}):
        found.append(Weight(("norm", leaf), f"{names.norm}.{KINDS[leaf]}"))
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


def _rows(spec: Spec, block: dict[Path, Any], path: Path) -> Rows | None:
    """The rows of a parameter of a linear layer, if its module holds others too."""
    names = names_of(spec)
    if path[:-1] not in names.linears:
        return None
    together = names.together(path[:-1])
    widths = [block[(*other, path[-1])].shape[-1] for other in together]
    return fused_rows(spec, together.index(path[:-1]), widths)


def fused_rows(spec: Spec, part: int, widths: Sequence[int]) -> Rows | None:
    """The rows of one of the layers, of these numbers of outputs, that a module holds."""
    if len(widths) == 1:
        return None
    total = sum(widths)
    if names_of(spec).fused == "in order":
        return Rows(1, widths[part], total, sum(widths[:part]), total)
    size = spec.layers[0].attention.head_width
    return Rows(widths[part] // size, size, len(widths) * size, part * size, total)


def hf_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor in the checkpoint, given the shape of one layer of the parameter."""
    shape = shape[::-1] if weight.axes == "transposed" else shape
    return shape if weight.rows is None else (weight.rows.total, *shape[1:])


def read_part(weight: Weight, tensor: Any, index: Index) -> np.ndarray:
    """Read the part `index` of one layer of a parameter, and no more of the tensor than needed.

    Args:
      weight: the parameter.
      tensor: the tensor in the layout of the checkpoint; sliceable like an array.
      index: slices into the parameter (without the axis of layers), each with start and stop.
    """
    rows, *columns = index[::-1] if weight.axes == "transposed" else index
    if weight.rows is None:
        block = tensor[(rows, *columns)]
    else:
        numbers = weight.rows.numbers(rows.start, rows.stop)
        first = int(numbers[0])
        block = tensor[(slice(first, int(numbers[-1]) + 1), *columns)][numbers - first]
    return block.T if weight.axes == "transposed" else block


def write_tensor(weights: Sequence[Weight], parts: Sequence[np.ndarray]) -> np.ndarray:
    """One layer of each parameter of a tensor -> the checkpoint's tensor."""
    tensors = [p.T if w.axes == "transposed" else p for w, p in zip(weights, parts, strict=True)]
    if weights[0].rows is None:
        return tensors[0]
    whole = np.empty((weights[0].rows.total, *tensors[0].shape[1:]), tensors[0].dtype)
    for weight, tensor in zip(weights, tensors, strict=True):
        assert weight.rows is not None
        whole[weight.rows.numbers(0, len(tensor))] = tensor
    return whole
