"""Attention over packed rows with shared prompts: one function, and which backend it runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ...core.sharding import batch_shards, spec
from ...core.types import Array
from .blocked import blocked
from .kernels import cudnn, cudnn_takes, splash, splash_takes
from .mask import Packing, keep

Backend = Callable[[Array, Array, Array, Packing], Array]

coarse: Backend = functools.partial(blocked, least=256)
"""`blocked` in fewer and larger turns of its loops, for wide devices, to which a turn is dear."""


def attend(q: Array, k: Array, v: Array, packing: Packing, mesh: Mesh) -> Array:
    """softmax(q k' / sqrt(C)) v over the keys that `packing` shows to each query.

    Every device runs the backend that `backend` names on its own rows and heads. Where the mesh
    does not cut the rows evenly, all of its batch axes compute all rows. Where it does not cut the
    key heads evenly, they are repeated until it does; failing that, all of its tensor axis computes
    all heads.

    Args:
      q: [K, L, H, C] queries.
      k: [K, L, G, C] keys; H is a multiple of G.
      v: [K, L, G, C] values.
      packing: of the same K rows of length L.
      mesh: mesh (data, fsdp, tensor).

    Returns:
      [K, L, H, C] in the dtype of `q`; finite and meaningless where a query sees nothing.
    """
    q, k, v = keep(q), keep(k), keep(v)
    rows = "batch" if q.shape[0] % batch_shards(mesh) == 0 else None
    heads, groups = q.shape[2], math.lcm(k.shape[2], mesh.shape["tensor"])
    cut = "heads" if heads % groups == 0 else None
    if cut:
        k, v = (jnp.repeat(x, groups // x.shape[2], axis=2) for x in (k, v))
    by_head = spec(rows, None, cut, None)
    run = jax.shard_map(
        backend(mesh.devices.flat[0], q, packing),
        mesh=mesh,
        in_specs=(by_head, by_head, by_head, spec(rows)),
        out_specs=by_head,
        check_vma=False,  # pallas kernels do not say over which axes their results vary
    )
    with jax.named_scope("attention"):
        return keep(run(q, k, v, packing))


def backend(device: Any, q: Any, packing: Packing) -> Backend:
    """What computes attention on a kind of device.

    `splash` on TPUs and `cudnn` on NVIDIA GPUs, as far as these kernels go (`splash_takes`,
    `cudnn_takes`), `coarse` where they do not; `blocked` on CPUs. The device is one of the mesh: a
    program that is compiled ahead of time is compiled for the mesh, not for the machine that
    compiles.

    Args:
      device: of the mesh.
      q: queries [K, L, H, C], or their shape and dtype.
      packing: the mask.
    """
    if device.platform == "tpu" and splash_takes(q.shape[1], packing):
        return splash
    if device.platform == "gpu" and cudnn_takes(device, q, packing):
        return cudnn
    return blocked if device.platform == "cpu" else coarse


def attend_cached(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """softmax(q k' / sqrt(C)) v for generation, where keys come from a cache.

    Args:
      q: [K, L, H, C] queries.
      k: [K, S, G, C] keys; H is a multiple of G.
      v: [K, S, G, C] values.
      mask: [K, 1, L, S] bool; a query that may see nothing gets a finite, meaningless result.

    Returns:
      [K, L, H, C] in the dtype of `q`.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
