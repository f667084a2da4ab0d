"""Attention over packed rows with shared prompts: one function, and the choice of its backend."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ...core.sharding import batch_shards, spec
from ...core.types import Array
from . import cudnn, splash
from .blocked import HIDDEN, blocked
from .mask import RowMask, keep

Backend = Callable[..., Array]
"""(q, k, v, mask, sinks) -> output; see `attend`."""
LOG = logging.getLogger(__name__)

coarse: Backend = functools.partial(blocked, least=256)
"""`blocked` with larger tiles, for accelerators, where each loop iteration is expensive."""


def attend(
    q: Array, k: Array, v: Array, mask: RowMask, mesh: Mesh, sinks: Array | None = None
) -> Array:
    """softmax(scale q k') v over the keys that `mask` lets each query see.

    Every device runs `backend` on its own rows and heads. If the mesh does not divide the number of
    rows, every device of its batch axes computes all rows. If it does not divide the number of key
    heads, they are repeated until it does; if that is impossible, every device of its tensor axis
    computes all heads.

    Args:
      q: queries [K, L, H, C].
      k: keys [K, L, Hk, C]; H is a multiple of Hk.
      v: values [K, L, Hk, Cv].
      mask: the mask of these K rows of length L.
      mesh: the device mesh (data, fsdp, tensor).
      sinks: a score for each head [H] float32, not scaled, that takes part in the softmax with a
        value of 0 (Xiao et al. 2023, arXiv:2309.17453).

    Returns:
      [K, L, H, Cv] in the dtype of `q`; finite and meaningless where a query sees nothing.
    """
    mask = dataclasses.replace(mask, scale=mask.factor(q.shape[-1]))
    width, widest = v.shape[-1], max(q.shape[-1], v.shape[-1])
    q, k, v = (keep(_widened(x, widest)) for x in (q, k, v))  # the backends have one width
    rows = "batch" if q.shape[0] % batch_shards(mesh) == 0 else None
    heads, groups = q.shape[2], math.lcm(k.shape[2], mesh.shape["tensor"])
    cut = "heads" if heads % groups == 0 else None
    if cut:
        k, v = (jnp.repeat(x, groups // x.shape[2], axis=2) for x in (k, v))
    by_head = spec(rows, None, cut, None)
    run = jax.shard_map(
        backend(mesh.devices.flat[0], q, mask, sinks is not None),
        mesh=mesh,
        in_specs=(by_head, by_head, by_head, spec(rows), spec(cut)),
        out_specs=by_head,
        check_vma=False,  # pallas kernels do not say over which axes their results vary
    )
    with jax.named_scope("attention"):
        return keep(run(q, k, v, mask, sinks)[..., :width])


def _widened(x: Array, width: int) -> Array:
    """Zeros after the last axis up to this width."""
    more = width - x.shape[-1]
    return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, more))) if more else x


def backend(
    device: Any, q: Array | jax.ShapeDtypeStruct, mask: RowMask, sinks: bool = False
) -> Backend:
    """The backend for a kind of device: `splash`, `cudnn`, or else `blocked`, on GPUs `coarse`.

    A refusal of a device's kernel is logged with its reason, once per process, as a warning.

    Args:
      device: a device of the mesh. A program that is compiled ahead of time is compiled for the
        mesh, not for the machine that compiles.
      q: queries [K, L, H, C], or their shape and dtype.
      mask: the mask.
      sinks: whether heads have sinks.
    """
    kernels = {
        "tpu": ("splash attention", splash.refusal, splash.splash),
        "gpu": ("cuDNN", cudnn.refusal, cudnn.cudnn),
    }
    if device.platform not in kernels:
        return blocked
    name, refusal, run = kernels[device.platform]
    reason = "it has no sinks" if sinks else refusal(device, q, mask)
    if reason is None:
        return run
    _log_refusal(name, reason)
    return coarse


@functools.cache
def _log_refusal(name: str, reason: str) -> None:
    LOG.warning("attention runs in plain JAX, not in %s: %s", name, reason)


def attend_cached(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    scale: float,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> Array:
    """softmax(scale q k') v for generation, with keys and values from a cache.

    Args:
      q: queries [K, L, H, C].
      k: keys [K, columns, Hk, C]; H is a multiple of Hk.
      v: values [K, columns, Hk, Cv].
      mask: [K, 1, L, columns] bool; a query that may see nothing gets a finite, meaningless result.
      scale: factor of the products of queries and keys.
      softcap: if set to c, scores s become c tanh(s / c) before the softmax.
      sinks: see `attend`.

    Returns:
      [K, L, H, Cv] in the dtype of `v`.
    """
    rows, length, heads, width = q.shape
    grouped = q.reshape(rows, length, k.shape[2], -1, width)
    equation = "klhgc,kjhc->khglj"
    s = scale * jnp.einsum(equation, grouped, k, preferred_element_type=jnp.float32)
    if softcap is not None:
        s = softcap * jnp.tanh(s / softcap)
    s = jnp.where(mask[:, :, None], s, HIDDEN)
    if sinks is not None:
        own = sinks.reshape(k.shape[2], -1, 1, 1)
        s = jnp.concatenate([s, jnp.broadcast_to(own, (*s.shape[:-1], 1))], -1)
    p = jax.nn.softmax(s, -1)[..., : k.shape[1]].astype(v.dtype)
    return jnp.einsum("khglj,kjhc->klhgc", p, v).reshape(rows, length, heads, -1)
