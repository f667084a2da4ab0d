"""Splash attention, for TPUs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention

from ...core.types import Array
from .mask import KEPT, RowMask

LANES = 128


def refusal(_: Any, q: Array | jax.ShapeDtypeStruct, mask: RowMask) -> str | None:
    """Why splash attention does not serve queries [K, L, H, C] on a TPU; None if it does."""
    if q.shape[1] % LANES:
        return f"the row length {q.shape[1]} is not a multiple of {LANES}"
    if mask.chunk is not None:
        return "it has no chunks of positions"
    if mask.window is not None and mask.branches > 1:
        # The second response is further from its prompt in the row than in its own sequence.
        return "its window counts places in the row, not positions in the sequence"
    return None


def splash(q: Array, k: Array, v: Array, mask: RowMask, sinks: None = None) -> Array:
    """`blocked` as a TPU kernel, with `mask.branches` copies of the keys.

    Splash attention supports a static mask and equality of ids. The first branch follows its
    prompt, so one id for both and a causal mask are right for them. For branch k > 1 there is one
    more copy of all keys and values, in which prompts have the id of branch k and all other
    tokens an id that no query has. The softmax runs over the keys of all copies.

    A query of any further branch would not see its prompt: its result is NaN. Mosaic compiles
    bfloat16 only if `jax_default_matmul_precision` is not "highest".
    """
    length, heads, width = q.shape[1:]
    copies = mask.branches
    first = mask.segment * copies + jnp.maximum(mask.branch - 1, 0)
    prompt = (mask.segment != 0) & (mask.branch == 0)
    others = [jnp.where(prompt, first + r, -1) for r in range(1, copies)]
    ids = splash_attention.SegmentIds(q=first, kv=jnp.concatenate([first, *others], 1))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([_CopiedCausal(length, copies, mask.window)] * heads),
        block_sizes=_block_sizes(length),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=mask.softcap,
        residual_checkpoint_name=KEPT,
    )
    keys, values = (jnp.tile(x.transpose(0, 2, 1, 3), (1, 1, copies, 1)) for x in (k, v))
    queries = (q * mask.factor(width)).transpose(0, 2, 1, 3)
    out: Any = jax.vmap(kernel)(queries, keys, values, ids)  # [K, H, L, C]
    out = out.transpose(0, 2, 1, 3)
    return jnp.where((mask.branch > copies)[:, :, None, None], jnp.nan, out)


class _CopiedCausal(splash_attention.Mask):
    """[L, copies * L]: key j is visible from place j mod L of the row on, for `window` places."""

    def __init__(self, length: int, copies: int, window: int | None):
        self.length, self.copies, self.window = length, copies, window

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.copies * self.length

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (np.arange(n)[i] for n, i in zip(self.shape, index, strict=True))
        back = rows[:, None] - columns % self.length
        return (back >= 0) & (back < (self.window or self.length))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CopiedCausal) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[int, int, int | None]:
        return self.length, self.copies, self.window


def _block_sizes(length: int) -> splash_attention.BlockSizes:
    """Tiles of 512, as in MaxText, or the largest size that divides the length."""
    size = next(n for n in (512, 256, LANES) if length % n == 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq")
    return splash_attention.BlockSizes(**dict.fromkeys(names, size))
