"""Updates of a real model's shape: seconds, tokens, utilization, memory, time to compile.

    ... MODEL full|lora

DPO and SLPO with a cached reference, on pairs shaped like HH and on full rows of 2,048 tokens;
random weights and tokens, all parameters in float32 by AdamW or adapters of rank 16 on a bfloat16
decoder; bfloat16 activations, full rematerialization. The programs of a model are compiled at the
same time.

Utilization is useful FLOPs (`useful_flops`) over the median time of an update, relative to the rate
of a large bfloat16 product measured in the same process. Peak memory is the compiler's figure for
each program; `device_peak` in the results is the device's own, over the life of the process.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..race import work
from .part import arguments, record, turn

if TYPE_CHECKING:
    from jaxalign.data.examples import Example
    from jaxalign.models.spec import Spec

MODELS = (("Llama-3.2-1B", "full"), ("Llama-3-8B", "lora"), ("pythia-2.8b", "full"))
REPEATS = 5
TRACED = {"xla_gpu_enable_command_buffer": ""}
"""Of a program to be traced: a kernel inside a CUDA graph does not say what it belongs to."""


class Case(NamedTuple):
    """A row of the table."""

    objective: str
    pairs: str  # HH: 64 pairs shaped like those; rows: 8 that each fill a row


CASES = [Case(objective, pairs) for pairs in ("HH", "rows") for objective in ("dpo", "slpo")]


def drawn(pairs: str, vocab: int, quick: bool) -> tuple[list[Example], int]:
    """The pairs of an update, and the longest packed row, tokens."""
    from .. import shapes

    row = 256 if quick else 2048
    if pairs == "rows":
        return shapes.filling(2 if quick else 8, vocab, row), row
    return shapes.hh_like(2 if quick else 64, vocab), row


def useful_flops(spec: Spec, items: Sequence[Example], adapters: int) -> int:
    """The FLOPs that an update needs at least.

    Three times the FLOPs of the forward pass. If only adapters are trained, no other matrix has a
    gradient: twice for the products with these matrices, three times for the adapters.

    Args:
      spec: the decoder.
      items: pairs of the update.
      adapters: the number of scalars in all adapters; 0 if all parameters are trained.
    """
    forward = work.forward_flops(
        spec, [work.Pair(x.prompt, *(b.ids for b in x.branches)) for x in items]
    )
    if not adapters:
        return 3 * sum(forward)
    low_rank = 2 * adapters * sum(x.length for x in items)
    return 2 * (forward.linear + forward.head) + 3 * (forward.attention + low_rank)


def seconds_of(call: Callable[[], Any], repeats: int) -> list[float]:
    """Wall seconds of each call, after two warm-up calls."""
    import jax

    took = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        jax.block_until_ready(call())
        took.append(time.perf_counter() - began)
    return took[2:]


def product_rate(side: int) -> float:
    """FLOP/s of the product of two square bfloat16 matrices, the best of ten."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    return 2 * side**3 / min(seconds_of(lambda: product(a, a), 10))


def versions() -> str:
    """One line: python, the packages that compute, the device."""
    import jax

    names = ("jax", "jaxlib", "flax", "optax")
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"python {platform.python_version()}, {packages}; {jax.devices()[0].device_kind}"


class Programs:
    """The updates of one model, compiled; they share its state."""

    def __init__(self, model: str, lora: bool, quick: bool):
        import jax

        from jaxalign.core.sharding import make_mesh
        from jaxalign.data.pack import token_counts
        from jaxalign.settings import Mesh

        from .. import shapes

        mesh = make_mesh(Mesh(), jax.devices()[:1])
        self.items, self.batches, self.tokens, jobs = {}, {}, {}, {}
        self.cases = CASES[:1] if quick else CASES
        for case in self.cases:
            job = shapes.Work(model, objective=case.objective, lora=lora)
            self.spec = job.spec
            items, row = drawn(case.pairs, job.spec.vocab, quick)
            packed = shapes.packed(items, job, shards=1, microbatches=1, row=row)
            self.items[case], self.batches[case] = items, packed
            self.tokens[case], jobs[case] = token_counts(packed).real, shapes.program(job, mesh)
        self.mesh, first = mesh, jobs[self.cases[0]]

        def compiled(case: Case, **options: bool | str) -> tuple[Any, float]:
            began = time.perf_counter()
            program = jobs[case].compiled(self.batches[case], **options)
            return program, time.perf_counter() - began

        with ThreadPoolExecutor(len(self.cases) + 1) as pool:
            traced = pool.submit(compiled, self.cases[0], **TRACED)
            done = pool.map(compiled, self.cases)
            self.compiled = dict(zip(self.cases, done, strict=True))
        self.traced = traced.result()[0]
        with jax.set_mesh(mesh):
            self.frozen, self.state = first.start()
        self.adapters = shapes.parameters(self.state.params) if lora else 0

    def runner(self, case: Case, update: Any) -> Callable[[], Any]:
        """A function that runs one update of a case, compiled, and returns the loss."""
        from jaxalign.core.sharding import put_batch

        batch = put_batch(self.batches[case], self.mesh)

        def run() -> Any:
            self.state, out = update(self.frozen, self.state, batch)
            return out.loss

        return run


def measure(programs: Programs, case: Case, rate: float, repeats: int) -> dict[str, Any]:
    """The results of one row of the table."""
    import jax
    import numpy as np

    from .. import aot

    compiled, compile_seconds = programs.compiled[case]
    run = programs.runner(case, compiled)
    seconds = statistics.median(seconds_of(run, repeats))
    if not np.isfinite(run()):
        raise SystemExit(f"{case}: the loss is not finite")
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "seconds": seconds,
        "tokens": programs.tokens[case],
        "pairs_count": len(programs.items[case]),
        "flops": useful_flops(programs.spec, programs.items[case], programs.adapters),
        "rate": rate,
        "peak_bytes": aot.peak(compiled.memory_analysis(), "H100"),
        "device_peak": memory.get("peak_bytes_in_use"),
        "compile_seconds": round(compile_seconds, 1),
    }


def breakdown(programs: Programs, updates: int) -> dict[str, dict[str, float]]:
    """Milliseconds of an update of the first case by kind of work, from a profiler trace."""
    import jax

    from . import trace

    run = programs.runner(programs.cases[0], programs.traced)
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(updates):
                jax.block_until_ready(run())
        spent, rest = trace.breakdown(Path(folder), programs.traced.as_text())
    found = {"milliseconds": spent, "rest": rest}
    return {
        which: {name: 1e3 * seconds / updates for name, seconds in some.items()}
        for which, some in found.items()
    }


def main() -> None:
    """Measure every case of a model."""
    parser = arguments(__doc__)
    parser.add_argument("model")
    parser.add_argument("trained", choices=("full", "lora"))
    args = parser.parse_args()
    turn()
    import jax

    began = time.perf_counter()
    rate = product_rate(8192 if jax.default_backend() == "gpu" else 256)
    programs = Programs(args.model, args.trained == "lora", args.quick)
    about = {"model": args.model, "trained": args.trained}
    prepared = round(time.perf_counter() - began, 1)
    record(args.out, "about", versions=versions(), prepared=prepared, **about)
    for number, case in enumerate(programs.cases):
        figures = measure(programs, case, rate, 1 if args.quick else REPEATS)
        record(args.out, "speed", **about, **case._asdict(), **figures)
        if number == 0:
            spent = breakdown(programs, 1 if args.quick else 3)
            record(args.out, "breakdown", **about, **case._asdict(), **spent)


if __name__ == "__main__":
    main()
