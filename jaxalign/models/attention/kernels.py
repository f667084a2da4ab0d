"""Attention kernels of accelerators, as jax ships them, given the mask of packed rows."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention

from ...core.types import Array
from .mask import KEPT, Packing

LANES = 128


def splash_takes(length: int, packing: Packing) -> bool:
    """Whether splash attention serves rows of this length: whole lanes, and no window.

    Its own window counts places in the row. A window here counts positions, and a response that is
    not the first lies further from its prompt in the row than in its sequence.
    """
    return length % LANES == 0 and packing.window is None


def splash(q: Array, k: Array, v: Array, packing: Packing) -> Array:
    """`blocked` as a TPU kernel, with R = `packing.responses` copies of the keys.

    Splash attention knows a static mask and equality of ids. The first response follows its prompt,
    so one id for both and a causal mask are right for them. For response r > 1 there is one more
    copy of all keys and values, in which prompts carry the id of response r and all else an id that
    no query has. The softmax runs over the R L keys at once.

    A query of a response beyond R would not see its prompt: its result is NaN. Mosaic compiles
    bfloat16 only where `jax_default_matmul_precision` is not "highest".
    """
    length, heads, width = q.shape[1:]
    copies = packing.responses
    first = packing.segment * copies + jnp.maximum(packing.branch - 1, 0)
    prompt = (packing.segment != 0) & (packing.branch == 0)
    others = [jnp.where(prompt, first + r, -1) for r in range(1, copies)]
    ids = splash_attention.SegmentIds(q=first, kv=jnp.concatenate([first, *others], 1))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([_CopiedCausal(length, copies)] * heads),
        block_sizes=_block_sizes(length),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=packing.softcap,
        residual_checkpoint_name=KEPT,
    )
    keys, values = (jnp.tile(x.transpose(0, 2, 1, 3), (1, 1, copies, 1)) for x in (k, v))
    queries = (q * width**-0.5).transpose(0, 2, 1, 3)
    out: Any = jax.vmap(kernel)(queries, keys, values, ids)  # [K, H, L, C]
    out = out.transpose(0, 2, 1, 3)
    return jnp.where((packing.branch > copies)[:, :, None, None], jnp.nan, out)


class _CopiedCausal(splash_attention.Mask):
    """[L, R L]: key j is seen from place j mod L of the row on."""

    def __init__(self, length: int, copies: int):
        self.length, self.copies = length, copies

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.copies * self.length

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, columns = (np.arange(n)[i] for n, i in zip(self.shape, index, strict=True))
        return columns % self.length <= rows[:, None]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CopiedCausal) and self.shape == other.shape

    def __hash__(self) -> int:
        return hash(self.shape)


def _block_sizes(length: int) -> splash_attention.BlockSizes:
    """Tiles of 512, as MaxText has them, or the largest that the length allows."""
    size = next(n for n in (512, 256, LANES) if length % n == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return splash_attention.BlockSizes(**dict.fromkeys(names, size))


def cudnn_takes(device: Any, q: Any, packing: Packing) -> bool:
    """Whether cuDNN's fused attention serves queries [K, L, H, C] on this device.

    It wants an Ampere GPU or later, half precision, even L, C a multiple of 8 and at most 128 (256
    from Hopper on), and has no cap on scores.
    """
    capability = getattr(device, "compute_capability", "")
    length, width = q.shape[1], q.shape[3]
    if not capability[:1].isdigit():  # AMD's begin with "gfx"
        return False
    return (
        float(capability) >= 8
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and length % 2 == 0
        and width % 8 == 0
        and width <= (256 if float(capability) >= 9 else 128)
        and packing.softcap is None
    )


def cudnn(q: Array, k: Array, v: Array, packing: Packing) -> Array:
    """`blocked` as cuDNN's fused kernel. The mask is dense: 2 L L bytes a row, whatever the heads.

    Before jax 0.11 cuDNN also returns the gradient of that mask, of the same size. `is_causal` adds
    nothing to the mask but spares the kernel the upper triangle.
    """
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return attention(q, k, v, mask=packing.visible()[:, None], is_causal=True)
