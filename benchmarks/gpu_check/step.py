"""Loss and gradient of one step on the device against the same step on the CPU in float32.

DPO, SLPO, KTO, and DPO with adapters; random weights, and a live reference slightly different from
them, so that the policy is not the reference and nothing is saturated. In bfloat16 the bound is a
multiple of the error of the CPU's own bfloat16 step.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .part import arguments, check, record, turn

CASES = (("dpo", False), ("slpo", False), ("kto", False), ("dpo", True))  # objective, adapters
FLOAT32 = 1e-5, 1e-4
"""Of the loss, or of a nat where it is smaller; of the gradient's norm. A response of some 450 nats
is known to 2e-4 nats after a sum and four layers in float32; beta, 0.1, is what the weights of the
gradient take of that."""
MARGIN = 3.0  # two bfloat16 steps differ by chance, each from the truth as far as the other
LOCK = threading.Lock()
"""Programs are compiled side by side and run one by one: cuDNN's graphs are not safe to start from
two threads of a process."""


def distance(found: Any, wanted: Any) -> float:
    """|found - wanted| / |wanted| over two trees of arrays."""
    import jax

    both = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in both]
    error = sum(np.sum((a - b) ** 2) for a, b in pairs)
    return float(np.sqrt(error / sum(np.sum(b**2) for _, b in pairs)))


class Problem:
    """A step: its batch and weights as host arrays, to run on any device."""

    def __init__(self, objective: str, lora: bool, quick: bool):
        import jax

        from .. import shapes

        cpu = jax.devices("cpu")[0]
        count = 4 if quick else 16
        self.work = shapes.Work("tiny" if quick else "small", objective=objective, lora=lora)
        items = shapes.hh_like(count, self.work.spec.vocab)
        if objective == "kto":
            items = [item._replace(columns={"label": i % 2}) for i, item in enumerate(items)]
        packed = shapes.packed(items, self.work, shards=1, microbatches=1, row=1024)
        self.batch = packed._replace(ref={})
        model, trained = self._models(cpu, "float32")
        rng = np.random.default_rng(0)

        def draw(x: Any) -> np.ndarray:
            matrix = rng.normal(size=x.shape) / np.sqrt(x.shape[-2] if len(x.shape) > 1 else 1)
            return (matrix if len(x.shape) > 2 else 1 + 0.1 * rng.normal(size=x.shape)).astype(
                np.float32
            )

        def embedding(x: Any) -> np.ndarray:
            return rng.normal(size=x.shape).astype(np.float32)

        self.params = jax.tree.map(
            lambda x: embedding(x) if len(x.shape) == 2 and min(x.shape) > 100 else draw(x),
            trained.abstract,
        )
        self.ref_params = jax.tree.map(
            lambda x: x * (1 + 0.02 * rng.normal(size=x.shape)).astype(np.float32), self.params
        )
        self.frozen = None
        if lora:
            self.frozen = jax.tree.map(draw, model.abstract)

    def _models(self, device: Any, dtype: str) -> tuple[Any, Any]:
        from jaxalign.core.sharding import make_mesh
        from jaxalign.models.adapted import adapt
        from jaxalign.models.decoder import build
        from jaxalign.settings import Mesh

        from .. import shapes

        spec = self.work.spec
        model = build(spec, make_mesh(Mesh(), [device]), dtype=dtype, remat="full")
        return model, adapt(model, shapes.all_linears(spec)) if self.work.lora else model

    def step(self, device: Any, dtype: str) -> tuple[float, Any, float]:
        """(loss, gradient, seconds to compile) on a device."""
        import jax

        from jaxalign.core.sharding import put_batch, repeatable
        from jaxalign.objectives import OBJECTIVES
        from jaxalign.update.forward import Task
        from jaxalign.update.gradient import value_and_grad

        model, trained = self._models(device, dtype)
        objective: Any = OBJECTIVES[self.work.objective]
        task = Task(objective, {}, trained.forward)

        def run(params: Any, frozen: Any, ref_params: Any, batch: Any) -> Any:
            whole = task.with_base(frozen)
            found = value_and_grad(whole, params, batch, ref_params=ref_params)
            return found.loss, found.grads

        def put(tree: Any, like: Any) -> Any:
            return jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), tree, like)

        with jax.set_mesh(model.mesh):
            frozen = None if self.frozen is None else put(self.frozen, model.abstract)
            params, ref_params = (
                put(tree, trained.abstract) for tree in (self.params, self.ref_params)
            )
            given = params, frozen, ref_params, put_batch(self.batch, model.mesh)
            began = time.perf_counter()
            jitted = jax.jit(run, compiler_options=repeatable(model.mesh))
            compiled = jitted.lower(*given).compile()
            seconds = time.perf_counter() - began
            with LOCK:
                loss, gradient = compiled(*given)
                return float(loss), jax.device_get(gradient), seconds


def compare(out: Path, objective: str, lora: bool, quick: bool) -> None:
    """One case in both dtypes; its programs are compiled at the same time."""
    import jax

    problem = Problem(objective, lora, quick)
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    runs = [(where, dtype) for dtype in ("float32", "bfloat16") for where in (cpu, device)]
    different = list(dict.fromkeys(runs))  # half of the cores if the device is the CPU
    with ThreadPoolExecutor(len(different)) as pool:
        done = dict(
            zip(different, pool.map(lambda run: problem.step(*run), different), strict=True)
        )
    wanted, found, rounded, half = (done[run] for run in runs)
    name = objective + (", adapters" if lora else "")
    loss, gradient, _ = wanted
    size = max(abs(loss), 1.0)
    of_loss = MARGIN * max(abs(rounded[0] - loss) / size, 2**-8)
    of_gradient = MARGIN * distance(rounded[1], gradient)
    for dtype, (own, mine, seconds), bounds in (
        ("float32", found, FLOAT32),
        ("bfloat16", half, (of_loss, of_gradient)),
    ):
        check(out, f"{name}, {dtype}: loss {loss:.4f}", abs(own - loss) / size, bounds[0])
        check(out, f"{name}, {dtype}: gradient", distance(mine, gradient), bounds[1])
        record(out, "about", step=name, dtype=dtype, compile_seconds=round(seconds, 1))


def main() -> None:
    """Compare every case."""
    args = arguments(__doc__).parse_args()
    import jax

    turn()
    jax.config.update("jax_default_matmul_precision", "highest")
    todo = CASES[-1:] if args.quick else CASES
    with ThreadPoolExecutor(len(todo)) as pool:
        list(pool.map(lambda case: compare(args.out, case[0], case[1], args.quick), todo))


if __name__ == "__main__":
    main()
