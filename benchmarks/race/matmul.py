"""The machine's own float32 rate: matrix products of jax, `work.MATMUL_FLOPS` a step.

    python -m benchmarks.race.matmul

It may use all cores, as a side may.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from . import work
from .pipe import Pipe, run


def side(pipe: Pipe) -> None:
    """Multiply whenever asked."""
    pipe.imported()
    product = jax.jit(jnp.matmul)
    a = jax.random.normal(jax.random.key(0), (work.MATMUL_SIDE, work.MATMUL_SIDE))

    def step() -> tuple[float, float]:
        for _ in range(work.MATMUL_TIMES):
            product(a, a).block_until_ready()
        return 0.0, 0.0

    pipe.serve(step, "jax")


if __name__ == "__main__":
    run(side)
