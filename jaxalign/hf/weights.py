"""Each parameter's tensor in a Hugging Face checkpoint, and the order of its axes there.

A torch linear layer stores [out, in], few families [in, out]; ours is [in, out]. Checkpoints store
layers one by one; ours are stacked. A module may fuse several of our layers, by their outputs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict

from ..models.decoder import Model
from ..models.families import FAMILIES, ExpertNames, WeightNames
from ..models.patterns import runs
from ..models.spec import Experts, Spec

Axes = Literal["as is", "transposed", "reversed"]
Index = tuple[slice, ...]
Path = tuple[str, ...]
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
"""The end of a tensor's name, by the last key of its parameter."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The outputs of a fused tensor that belong to one parameter: groups of neighbors."""

    groups: int
    size: int
    """Outputs of a group."""
    stride: int
    """Outputs from one group to the next."""
    first: int
    total: int
    """Outputs of the tensor."""

    def numbers(self, start: int, stop: int) -> np.ndarray:
        """The place in the tensor of each output `start` ... `stop - 1` of the parameter."""
        group, within = np.divmod(np.arange(start, stop), self.size)
        return self.first + group * self.stride + within


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of our parameters, and its tensors (or its part of them) in a checkpoint.

    The last axis of a parameter has its outputs.
    """

    path: Path
    """Keys of the parameter in the nested dict."""
    name: str
    """Name of the tensors; each `{}` is a number of one of `stacks`."""
    axes: Axes = "as is"
    """Whether the tensor has the last two axes of the parameter, or all, in the other order."""
    rows: Rows | None = None
    """The outputs of a fused tensor; None: all."""
    other_names: tuple[str, ...] = ()
    """Names that are read too but never written."""
    stacks: tuple[range, ...] = ()
    """The numbers of the leading axes that the checkpoint has tensor by tensor: of layers, and of
    experts if each has tensors of its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, one per layer and expert."""
        return tuple(self.name.format(*numbers) for numbers in itertools.product(*self.stacks))

    def layer(self, place: int) -> Weight:
        """One layer of a stacked parameter."""
        number, *others = self.stacks[0][place], *self.stacks[1:]
        name = self.name.replace("{}", str(number), 1)
        return dataclasses.replace(self, name=name, stacks=tuple(others))

    def of(self, tree: dict[str, Any]) -> Any:
        """The leaf of this parameter in a nested dict."""
        return functools.reduce(operator.getitem, self.path, tree)


def names_of(spec: Spec) -> WeightNames:
    """The names of a decoder's weights."""
    return FAMILIES[spec.family].names


def stacks(spec: Spec) -> dict[str, range]:
    """The layers of each stack, by the key of the stack."""
    return {str(s[0]): s for run in runs(spec.layers) for s in run.stacks}


def weights(model: Model, given: Collection[str] = ()) -> tuple[Weight, ...]:
    """All parameters of a decoder, embedding first, in the order in which they are written.

    Args:
      model: the decoder.
      given: names of the tensors of a checkpoint, which decide in which of several forms it has
        mixtures of experts; none of them: in the first.
    """
    names, spec = names_of(model.spec), model.spec
    found = [Weight(("embed",), f"{names.embed}.weight")]
    if spec.positions is not None:
        found.append(Weight(("positions",), f"{names.positions}.weight"))
    for key, numbers in stacks(spec).items():
        block: dict[Path, Any] = flatten_dict(model.abstract["layers"][key])
        sparse = isinstance(spec.layers[numbers[0]].mlp, Experts)
        form = _form(names, numbers[0], given) if sparse else None
        plain = {p: leaf for p, leaf in block.items() if not (sparse and p[0] == "mlp")}
        found += _of_layers(spec, key, numbers, plain)
        if form is not None:
            found += _of_experts(names, form, key, numbers, block)
    for leaf in model.abstract.get("norm", {}):
        found.append(Weight(("norm", leaf), f"{names.norm}.{KINDS[leaf]}"))
    if spec.scores:
        found.append(Weight(("head", "kernel"), "score.weight", "transposed"))
    elif not spec.tied:
        head, *others = heads(spec)
        found.append(Weight(("head", "kernel"), head, "transposed", other_names=tuple(others)))
    return tuple(found)


def _of_layers(spec: Spec, key: str, numbers: range, block: dict[Path, Any]) -> list[Weight]:
    """The parameters of one stack, but for mixtures of experts."""
    names, found = names_of(spec), []
    modules = {**names.norms, **names.linears}
    order = list(modules)
    others = [path for path in names.others if path in block]
    for path in others:
        tensor = names.others[path]
        together = [p for p in others if names.others[p] == tensor]
        widths = [block[p].shape[-1] for p in together]
        rows = _fused(together.index(path), widths, 1)
        axes: Axes = "reversed" if path[-1] == "taps" else "as is"
        full = ("layers", key, *path)
        found.append(Weight(full, names.layer + tensor, axes, rows, stacks=(numbers,)))
    named = block.keys() - names.others.keys()
    for path in sorted(named, key=lambda p: (order.index(p[:-1]), p[-1] == "bias")):
        name = f"{names.layer}{modules[path[:-1]]}.{KINDS[path[-1]]}"
        turned = path[-1] == "kernel" and names.matrices == "[out, in]"
        axes: Axes = "transposed" if turned else "as is"
        rows = _rows(spec, numbers[0], block, path)
        heads = (range(block[path].shape[1]),) if "{}" in modules[path[:-1]] else ()
        full = ("layers", key, *path)
        found.append(Weight(full, name, axes, rows, stacks=(numbers, *heads)))
    return found


def _form(names: WeightNames, layer: int, given: Collection[str]) -> ExpertNames:
    """The form in which a checkpoint has its mixtures of experts."""
    for form in names.experts:
        name = form.tensors["mlp", "down", "kernel"]
        if f"{names.layer}{name}".format(layer, 0) in given:
            return form
    return names.experts[0]


def _of_experts(
    names: WeightNames, form: ExpertNames, key: str, numbers: range, block: dict[Path, Any]
) -> list[Weight]:
    """The parameters of the mixtures of experts of one stack."""
    found = []
    for path, tensor in form.tensors.items():
        if path not in block:
            continue
        together = [p for p in form.tensors if form.tensors[p] == tensor and p in block]
        widths = [block[p].shape[-1] for p in together]
        groups = widths[0] if form.interleaved else 1
        rows = _fused(together.index(path), widths, groups)
        as_linear = form.transposed or path[1] not in ("gate", "up", "down")
        axes: Axes = "transposed" if path[-1] == "kernel" and as_linear else "as is"
        held = (numbers, range(block[path].shape[1])) if "{}" in tensor else (numbers,)
        full = ("layers", key, *path)
        found.append(Weight(full, names.layer + tensor, axes, rows, stacks=held))
    return found


def heads(spec: Spec) -> tuple[str, ...]:
    """Tensor names of the unembedding; some tied checkpoints store it next to the embedding."""
    names = names_of(spec)
    return tuple(f"{name}.weight" for name in (names.head, *names.other_heads))


def _rows(spec: Spec, layer: int, block: dict[Path, Any], path: Path) -> Rows | None:
    """The rows of a parameter of a linear layer, if its module holds others too."""
    names = names_of(spec)
    if path[:-1] not in names.linears:
        return None
    widths = [block[(*other, path[-1])].shape[-1] for other in names.together(path[:-1])]
    return fused_rows(spec, layer, path[:-1], widths)


def fused_rows(spec: Spec, layer: int, path: Path, widths: Sequence[int]) -> Rows | None:
    """The rows of one of the linear layers that a module holds.

    Args:
      spec: the decoder.
      layer: the number of a layer of the decoder that has the module.
      path: the linear layer by its path in a block: ("mlp", "up").
      widths: numbers of outputs of all linear layers of the module, in their order.
    """
    names = names_of(spec)
    counted = names.grouped.get(names.linears[path])
    groups = getattr(spec.layers[layer].attention, counted) if counted else 1
    return _fused(names.together(path).index(path), widths, groups)


def _fused(part: int, widths: Sequence[int], groups: int) -> Rows | None:
    """The outputs of one of several layers, of which each group holds some; None if it is alone."""
    if len(widths) == 1:
        return None
    sizes = [width // groups for width in widths]
    return Rows(groups, sizes[part], sum(sizes), sum(sizes[:part]), sum(widths))


def hf_shape(weight: Weight, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a tensor in the checkpoint, given the shape of its part of the parameter."""
    if weight.rows is not None:
        shape = (*shape[:-1], weight.rows.total)
    return _turned(weight, shape)


def _turned(weight: Weight, axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Something of each axis of a parameter, in the order of the tensor's axes, or back."""
    if weight.axes == "reversed":
        return axes[::-1]
    return (*axes[:-2], axes[-1], axes[-2]) if weight.axes == "transposed" else axes


def _array_turned(weight: Weight, array: np.ndarray) -> np.ndarray:
    """The same array in the axes of the tensor, or back."""
    return array.transpose(_turned(weight, tuple(range(array.ndim))))


def read_part(weight: Weight, tensor: Any, index: Index) -> np.ndarray:
    """Read the part `index` of the parameter of a tensor, and no more of the tensor than needed.

    Args:
      weight: the parameter.
      tensor: the tensor in the layout of the checkpoint; sliceable like an array.
      index: slices into the parameter (without the axes of `stacks`), each with start and stop.
    """
    wanted: Any = slice(None)
    if weight.rows is not None:
        numbers = weight.rows.numbers(index[-1].start, index[-1].stop)
        first = int(numbers[0])
        index, wanted = (*index[:-1], slice(first, int(numbers[-1]) + 1)), numbers - first
    return _array_turned(weight, tensor[_turned(weight, index)])[..., wanted]


def write_tensor(weights: Sequence[Weight], parts: Sequence[np.ndarray]) -> np.ndarray:
    """The part of each parameter of a tensor -> the checkpoint's tensor."""
    whole = parts[0]
    if weights[0].rows is not None:
        whole = np.empty((*whole.shape[:-1], weights[0].rows.total), whole.dtype)
        for weight, part in zip(weights, parts, strict=True):
            assert weight.rows is not None
            whole[..., weight.rows.numbers(0, part.shape[-1])] = part
    return _array_turned(weights[0], whole)
