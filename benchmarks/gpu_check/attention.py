"""Attention backends against the formula in float64, value and gradients.

Packed rows with shared prompts and padding. A bfloat16 input is exact in float64, so the bounds
allow for what the backend itself rounds: bfloat16 odds and results, or float32 sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .part import arguments, check, record, turn

BOUNDS = {"float32": 1e-5, "bfloat16": 1e-2}  # |out - formula| / |formula|, Frobenius norms
HEADS, GROUPS = 8, 2


def formula(q: Any, k: Any, v: Any, sees: Any, cotangent: Any) -> tuple[Any, ...]:
    """Attention [K, L, H, C] and its gradients (dq, dk, dv), in float64.

    Args:
      q: [K, L, H, C].
      k: [K, L, G, C].
      v: [K, L, G, C].
      sees: [K, L, L] bool, which keys each query sees; a query that sees none gives 0.
      cotangent: of the result, [K, L, H, C].
    """
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    groups, width = k.shape[2], q.shape[3]
    k, v = (np.repeat(x, q.shape[2] // groups, 2) for x in (k, v))
    mask = sees[:, None]
    s = np.where(mask, np.einsum("bihc,bjhc->bhij", q, k) / np.sqrt(width), -np.inf)
    p = np.exp(s - np.where(mask.any(-1, keepdims=True), s.max(-1, keepdims=True), 0.0))
    p /= np.maximum(p.sum(-1, keepdims=True), 1e-300)
    dp = np.einsum("bihc,bjhc->bhij", cotangent, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(width)

    def grouped(x: Any) -> Any:
        return x.reshape(*x.shape[:2], groups, -1, width).sum(3)

    return (
        np.einsum("bhij,bjhc->bihc", p, v),
        np.einsum("bhij,bjhc->bihc", ds, k),
        grouped(np.einsum("bhij,bihc->bjhc", ds, q)),
        grouped(np.einsum("bhij,bihc->bjhc", p, cotangent)),
    )


def cases(gpu: bool, quick: bool) -> Sequence[tuple[str, int, str, int | None]]:
    """(backend, head width, dtype, window), GPU-only backends first."""
    if quick:
        return [("blocked", 64, dtype, None) for dtype in BOUNDS] + [("coarse", 64, "float32", 32)]
    found: list[tuple[str, int, str, int | None]] = []
    if gpu:
        found += [("cudnn", width, "bfloat16", None) for width in (64, 128, 256)]
        found += [("cudnn", 64, "bfloat16", 64)]
    found += [("coarse", 64, dtype, None) for dtype in BOUNDS]
    return [*found, ("coarse", 256, "float32", None), ("coarse", 64, "float32", 64)]


def main() -> None:
    """Compare every backend of the device."""
    args = arguments(__doc__).parse_args()
    import jax
    import jax.numpy as jnp

    from jaxalign.core.sharding import make_mesh, repeatable
    from jaxalign.models.attention.api import backend, coarse
    from jaxalign.models.attention.blocked import blocked
    from jaxalign.models.attention.cudnn import cudnn
    from jaxalign.models.attention.mask import RowMask
    from jaxalign.settings import Mesh

    from .. import shapes

    turn()
    jax.config.update("jax_default_matmul_precision", "highest")
    device = jax.devices()[0]
    options = repeatable(make_mesh(Mesh(), [device]))
    row, count = (128, 2) if args.quick else (512, 16)
    draw = shapes.filling(count, 512, 96) if args.quick else shapes.hh_like(count, 512)
    batch = shapes.packed(draw, shapes.Work("tiny"), shards=1, microbatches=1, row=row)
    cell = (batch.segment[0, 0], batch.branch[0, 0], batch.positions[0, 0])
    record(args.out, "about", rows=list(cell[0].shape), device=device.device_kind)
    every = {"blocked": blocked, "coarse": coarse, "cudnn": cudnn}
    for name, width, dtype, window in cases(device.platform == "gpu", args.quick):
        mask = RowMask(*cell, window=window)
        real = np.asarray(cell[0] > 0)[..., None, None]
        sizes = [(*cell[0].shape, n, width) for n in (HEADS, GROUPS, GROUPS, HEADS)]
        keys = jax.random.split(jax.random.key(width), 4)
        q, k, v, g = map(lambda key, size: jax.random.normal(key, size, dtype), keys, sizes)
        g = jnp.where(real, g, 0)

        def run(q: Any, k: Any, v: Any, g: Any, mask: Any, kernel: Any = every[name]) -> Any:
            out, pull = jax.vjp(lambda q, k, v: kernel(q, k, v, mask), q, k, v)
            return out, *pull(g)

        found = jax.jit(run, compiler_options=options)(q, k, v, g, mask)
        found = [np.asarray(x, np.float64) for x in found]
        found[0] = np.where(real, found[0], 0.0)
        wanted = formula(q, k, v, np.asarray(mask.visible()), g)
        about = f"{name}, width {width}, {dtype}" + (f", window {window}" if window else "")
        about += " (chosen)" if every[name] is backend(device, q, mask) else ""
        for what, x, y in zip(("value", "dq", "dk", "dv"), found, wanted, strict=True):
            error = float(np.linalg.norm(x - y) / np.linalg.norm(y))
            check(args.out, f"{about}: {what}", error, BOUNDS[dtype])


if __name__ == "__main__":
    main()
