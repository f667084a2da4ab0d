"""cuDNN's fused attention, for NVIDIA GPUs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ...core.types import Array
from .mask import RowMask


def refusal(device: Any, q: Array | jax.ShapeDtypeStruct, mask: RowMask) -> str | None:
    """Why cuDNN's kernel does not serve queries [K, L, H, C] on this GPU; None if it does."""
    capability = getattr(device, "compute_capability", "")
    length, width = q.shape[1], q.shape[3]
    # The capability of an AMD GPU begins with "gfx".
    if not capability[:1].isdigit() or float(capability) < 8:
        return "it needs an NVIDIA GPU, Ampere or later"
    widest = 256 if float(capability) >= 9 else 128
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs half precision, not {q.dtype}"
    if length % 2:
        return f"the row length {length} is odd"
    if width % 8 or width > widest:
        return f"the head width {width} is not a multiple of 8 up to {widest}"
    if mask.softcap is not None:
        return "it has no soft cap"
    return None


def cudnn(q: Array, k: Array, v: Array, mask: RowMask, sinks: None = None) -> Array:
    """`blocked` as cuDNN's fused kernel, with a dense mask: 2 L L bytes per row.

    Before jax 0.11 cuDNN also returns the gradient of that mask, of the same size. `is_causal` adds
    nothing to the mask but spares the kernel the upper triangle.
    """
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    scale = mask.factor(q.shape[-1])
    return attention(q, k, v, mask=mask.visible()[:, None], is_causal=True, scale=scale)
