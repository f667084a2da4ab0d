"""The weights as an export holds them, and how much of the change made by training it keeps."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from ..core.types import Array
from ..models.adapted import Merged
from ..models.decoder import Model, Params
from ..models.rounded import Rounded
from .load import Tensor, open_checkpoint, place, tensors_of
from .save import export_plan
from .weights import Weight, weights


class Rounding(NamedTuple):
    """What an export in a dtype keeps of a change of the weights."""

    dtype: str
    kept: float
    """A share: 1 is all of the change, 0 is none of it."""

    def __str__(self) -> str:
        return f"{self.dtype} keeps {100 * self.kept:.3g} % of the change of the weights"


def rounding(
    params: Params, model: Model, *, source: Path, dtype: str | None = None
) -> Rounding | None:
    """How much of a change of the weights is left after rounding to the dtypes of an export.

    With the change c, and the change d between the rounded weights, it is (d . c) / (c . c): to
    first order, the share of the effect of the change on a loss. Every process of a run must call
    this; one layer of one parameter is on the devices at a time.

    Args:
      params: parameters as in `model.abstract`; matrices may be `Merged`, and then only these have
        changed.
      model: the decoder.
      source: the checkpoint of the weights before the change.
      dtype: dtype of all exported tensors; None: the dtype of each tensor in `source`.

    Returns:
      None if the dtypes hold every weight exactly, or no weight has changed.
    """
    kinds = {name: kind for name, _, kind in export_plan(model, source, dtype)}
    total, coarse = np.zeros(2), set()
    with open_checkpoint(source, model.spec) as tensors:
        plan = weights(model, tensors)
        plan = [w for w in plan if not (model.spec.scores and w.path[0] == "head")]
        plan = [w for w in plan if isinstance(w.of(params), Merged)] or plan
        for weight in plan:
            leaf, kind = weight.of(params), kinds[weight.names[0]]
            if not isinstance(leaf, Merged) and jnp.promote_types(leaf.dtype, kind) == kind:
                continue
            coarse.add(jnp.dtype(kind).name)
            found = tensors_of(weight, tensors, model, Path(source))
            for new, own, its in _layers(weight, leaf, found):
                start = new.kernel if isinstance(new, Merged) else _start(own, its, model)
                ends = _rounded(start, kind), _rounded(new, kind)
                total += np.array(jax.device_get(_sums(new, start, *ends)))
    left, change = total.tolist()
    return Rounding(" and ".join(sorted(coarse)), left / change) if change else None


def lossy(
    model: Model, *, source: Path, dtype: str | None, merged: bool = False
) -> dict[tuple[str, ...], str]:
    """{path of a parameter: dtype of its tensor}, where that dtype does not hold all its values.

    Args:
      model: the decoder.
      source: the checkpoint that the run started from.
      dtype: dtype of all exported tensors; None: the dtype of each tensor in `source`.
      merged: whether matrices are `Merged`, sums in float32.
    """
    kinds = {name: kind for name, _, kind in export_plan(model, source, dtype)}
    held = jnp.float32 if merged else model.param_dtype
    found = {w.path: kinds[w.names[0]] for w in weights(model, kinds)}
    return {p: kind.name for p, kind in found.items() if jnp.promote_types(held, kind) != kind}


def exported(params: Params, kinds: Mapping[tuple[str, ...], str]) -> Params:
    """Parameters as their tensors hold them, each rounded when it is used.

    Args:
      params: parameters as in `model.abstract`; matrices may be `Merged`.
      kinds: {path of a parameter: dtype of its tensor}; the others are not rounded.
    """
    flat: dict[tuple[str, ...], Any] = flatten_dict(params)
    return unflatten_dict(
        {path: Rounded(x, kinds[path]) if path in kinds else x for path, x in flat.items()}
    )


_layer = jax.jit(operator.getitem)
_rounded = jax.jit(lambda x, kind: x.astype(kind), static_argnums=1)


@jax.jit
def _sums(new: Any, start: Any, rounded_start: Array, rounded: Array) -> tuple[Array, Array]:
    """(d . c, c . c) of one matrix; rounding is done before, where XLA cannot leave it out."""
    change = new.astype(jnp.float32) - start.astype(jnp.float32)
    left = rounded.astype(jnp.float32) - rounded_start.astype(jnp.float32)
    return jnp.vdot(left, change), jnp.vdot(change, change)


def _layers(
    weight: Weight, leaf: Any, tensors: list[Tensor]
) -> Iterator[tuple[Any, Weight, list[Tensor]]]:
    """Each layer of a parameter, its weight and its tensors."""
    if not weight.stacks:
        yield leaf, weight, tensors
        return
    each = len(tensors) // len(weight.stacks[0])
    for i in range(len(weight.stacks[0])):
        yield _layer(leaf, i), weight.layer(i), tensors[i * each : (i + 1) * each]


def _start(weight: Weight, tensors: list[Tensor], model: Model) -> Array:
    """One layer of a parameter of the starting checkpoint, on the mesh."""
    leaf = weight.of(model.abstract)
    if weight.path[0] == "layers":
        spec = PartitionSpec(*leaf.sharding.spec[1:])
        sharding = NamedSharding(model.mesh, spec)
        leaf = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)
    return place(weight, tensors, leaf, model)
