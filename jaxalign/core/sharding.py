"""The device mesh, and the rules from logical axes to mesh axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .. import settings
from ..errors import UserError
from .batch import Batch
from .types import Array

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": BATCH,  # rows, shards, examples
    "embed": "fsdp",  # model width of a parameter
    "heads": "tensor",  # heads x head width, fused
    "mlp": "tensor",
    "experts": "tensor",
    "vocab": "tensor",
    "layers": None,
    "norm": None,
    "rank": None,
}


def make_mesh(wanted: settings.Mesh, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices, with Auto axes.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or two of them are -1.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [wanted.data, wanted.fsdp, wanted.tensor]
    given = dict(zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise UserError(f"mesh: sizes {given} must be positive, at most one of them -1")
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise UserError(
            f"mesh: {given} does not fit {len(devices)} devices; "
            "the sizes must multiply to the number of devices (-1 takes what is left)"
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def repeatable(mesh: Mesh) -> dict[str, bool | str] | None:
    """Compiler options with which a program gives the same bits whenever it runs on this mesh.

    On GPUs scatters and cuDNN's attention add up in whatever order their threads arrive, unless XLA
    is told to leave such kernels out. CPUs and TPUs have none.
    """
    gpu = mesh.devices.flat[0].platform == "gpu"
    return {"xla_gpu_exclude_nondeterministic_ops": True} if gpu else None


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts the mesh cuts a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def spec(*logical: str | None) -> PartitionSpec:
    """Logical axis names (None: not sharded) -> the partition of an array over the mesh."""
    return PartitionSpec(*(RULES[name] if name else None for name in logical))


def constrain(x: Array, *logical: str | None) -> Array:
    """Hold `x` to a layout given by logical axes; nothing where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*logical))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(name: str, shape: Sequence[int], partition: PartitionSpec, mesh: Mesh) -> None:
    """Refuse a parameter whose dimensions the mesh cannot cut evenly.

    Raises:
      UserError: names the parameter, its shape, the axis and its size.
    """
    for size, axes in zip(shape, partition, strict=False):
        for axis in (axes,) if isinstance(axes, str) else (axes or ()):
            if size % mesh.shape[axis]:
                raise UserError(
                    f"parameter {name} {tuple(shape)}: mesh axis '{axis}' = {mesh.shape[axis]} "
                    f"does not divide {size}; choose another mesh.{axis}"
                )


def batch_layout(mesh: Mesh) -> NamedSharding:
    """How the arrays of a batch, [n, S, ...], lie: S cut over the mesh's batch axes."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH))


def held_shards(mesh: Mesh) -> frozenset[int]:
    """The shards of a batch that the devices of this process hold."""
    shards = batch_shards(mesh)
    held: Any = batch_layout(mesh).addressable_devices_indices_map((1, shards)).values()
    return frozenset(i for _, part in held for i in range(*part.indices(shards)))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """A batch of host arrays [n, S, ...] -> the same on the mesh, S cut over its batch axes.

    Every host copies only the part of its own devices.
    """
    layout = batch_layout(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, layout, lambda index: x[index]), batch
    )
