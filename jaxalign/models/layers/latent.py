"""Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ...core.sharding import constrain
from ...core.types import Array
from ..spec import Latent
from .attention import Attend, Kept
from .norm import Norm
from .projections import Linear
from .rope import Tables, rotate


class LatentAttention(nnx.Module):
    """Attention whose keys and values are linear functions of a narrow vector, the latent.

    A key is [what the latent gives; a rotated part that all heads share].
    """

    query: Linear | None = None
    query_down: Linear | None = None
    query_norm: Norm | None = None
    query_up: Linear | None = None

    def __init__(self, kind: Latent, width: int, rngs: nnx.Rngs, dtype: DTypeLike):
        self.kind = kind
        heads, key_width = kind.heads, kind.plain_width + kind.rope_width
        narrow = {"bias": kind.bias, "dtype": dtype}
        wide = {"bias": False, "dtype": dtype}
        if kind.query_rank is None:
            self.query = Linear(rngs, (width, heads * key_width), ("embed", "heads"), **wide)
        else:
            rank = kind.query_rank
            self.query_down = Linear(rngs, (width, rank), ("embed", None), **narrow)
            self.query_norm = Norm(kind.norm, (rank,), dtype)
            self.query_up = Linear(rngs, (rank, heads * key_width), ("embed", "heads"), **wide)
        low = kind.rank + kind.rope_width
        self.latent = Linear(rngs, (width, low), ("embed", None), **narrow)
        self.latent_norm = Norm(kind.norm, (kind.rank,), dtype)
        up = heads * (kind.plain_width + kind.value_width)
        self.up = Linear(rngs, (kind.rank, up), ("embed", "heads"), **wide)
        out = heads * kind.value_width
        self.out = Linear(rngs, (out, width), ("heads", "embed"), **narrow)

    def __call__(
        self, x: Array, tables: Tables | None, attend: Attend[Kept], compact: bool = False
    ) -> tuple[Array, Kept]:
        """[K, L, D] -> [K, L, D], and the second result of `attend(q, k, v, None)`.

        If `compact`, the keys of all heads are [latent; rotated part] and the values are the
        latent, to keep in a cache: q' (W c) = (W' q)' c.
        """
        kind = self.kind
        assert tables is not None
        q, q_rope = jnp.split(self._queries(x), (kind.plain_width,), axis=-1)
        q_rope = rotate(q_rope, kind.rope, tables)
        latent, k_rope = jnp.split(self.latent(x), (kind.rank,), axis=-1)
        latent, k_rope = self.latent_norm(latent), rotate(k_rope[:, :, None], kind.rope, tables)
        if compact:
            y, kept = self._compact(q, q_rope, latent[:, :, None], k_rope, attend)
        else:
            both = self._heads(self.up(latent))
            k, v = jnp.split(both, (kind.plain_width,), axis=-1)
            shared = jnp.broadcast_to(k_rope, q_rope.shape)
            k = jnp.concatenate([k, shared], -1)
            y, kept = attend(jnp.concatenate([q, q_rope], -1), k, v, None)
        return self.out(constrain(y.reshape(*x.shape[:2], -1), "batch", None, "heads")), kept

    def _heads(self, y: Array) -> Array:
        """[K, L, heads * C] -> [K, L, heads, C]."""
        return constrain(y, "batch", None, "heads").reshape(*y.shape[:2], self.kind.heads, -1)

    def _queries(self, x: Array) -> Array:
        if self.query is not None:
            return self._heads(self.query(x))
        assert self.query_down is not None
        assert self.query_norm is not None
        assert self.query_up is not None
        return self._heads(self.query_up(self.query_norm(self.query_down(x))))

    def _compact(
        self, q: Array, q_rope: Array, latent: Array, k_rope: Array, attend: Attend[Kept]
    ) -> tuple[Array, Kept]:
        """Attention over latents: [K, L, heads, value width], and what `attend` keeps."""
        up = self.up.kernel[...].astype(q.dtype).reshape(self.kind.rank, self.kind.heads, -1)
        to_key, to_value = jnp.split(up, (self.kind.plain_width,), axis=-1)
        queries = jnp.concatenate([jnp.einsum("klhc,rhc->klhr", q, to_key), q_rope], -1)
        y, kept = attend(queries, jnp.concatenate([latent, k_rope], -1), latent, None)
        return jnp.einsum("klhr,rhc->klhc", y, to_value), kept
