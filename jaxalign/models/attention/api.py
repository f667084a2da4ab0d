"""Attention over packed rows with shared prompts: one function, and the choice of its backend."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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


class Part(NamedTuple):
    """Keys and values from a cache, N rows of them; K / N rows of queries share each."""

    keys: Array  # [N, Hk, columns, C]
    values: Array  # [N, Hk, columns, Cv]
    sees: Array  # [K, L, columns] bool: whether a query sees a key


def attend_cached(
    q: Array,
    parts: Sequence[Part],
    scale: float,
    softcap: float | None = None,
    sinks: Array | None = None,
) -> Array:
    """softmax(scale q k') v for generation, over the keys of all parts together.

    Args:
      q: queries [K, L, H, C]; H is a multiple of Hk. One that sees nothing gets a finite,
        meaningless result.
      parts: the keys and values.
      scale: factor of the products of queries and keys.
      softcap: if set to c, scores s become c tanh(s / c) before the softmax.
      sinks: see `attend`.

    Returns:
      [K, L, H, Cv] in the dtype of the values.
    """
    rows, length, heads, width = q.shape
    groups = parts[0].keys.shape[1]

    def scores(part: Part) -> Array:
        """[K, Hk, L, G, columns]."""
        own = q.reshape(len(part.keys), -1, length, groups, heads // groups, width)
        s = jnp.einsum("nmlhgc,nhjc->nhmlgj", own, part.keys, preferred_element_type=jnp.float32)
        s = scale * jnp.moveaxis(s, 2, 1).reshape(rows, groups, length, heads // groups, -1)
        s = s if softcap is None else softcap * jnp.tanh(s / softcap)
        return jnp.where(part.sees[:, None, :, None], s, HIDDEN)

    def mixed(p: Array, part: Part) -> Array:
        """[K, Hk, L, G, columns] -> [K, L, H, Cv]."""
        shared = p.astype(part.values.dtype).reshape(len(part.keys), -1, *p.shape[1:])
        y = jnp.einsum("nmhlgj,nhjc->nhmlgc", shared, part.values)
        return jnp.moveaxis(y, 1, 3).reshape(rows, length, heads, -1)

    columns = [part.keys.shape[2] for part in parts]
    s = jnp.concatenate([scores(part) for part in parts], -1)
    if sinks is not None:
        own = sinks.reshape(groups, 1, -1, 1)
        s = jnp.concatenate([s, jnp.broadcast_to(own, (*s.shape[:-1], 1))], -1)
    ends = np.cumsum(columns)
    p = jnp.split(jax.nn.softmax(s, -1), ends[: len(ends) if sinks is not None else -1], -1)
    outputs = [mixed(of_part, part) for of_part, part in zip(p, parts, strict=False)]
    return functools.reduce(jnp.add, outputs)
