"""The time of a device by kind of work, from a trace of `jax.profiler`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SCOPES = ("attention", "head", "optimizer")
"""Names that the library gives to what it traces (`jax.named_scope`)."""
PRODUCT = re.compile(r"gemm|cublas|cutlass|nvjet|xmma|\bdot\b", re.IGNORECASE)
FUSED = re.compile(r"fmha|flash|sdpa|cudnn", re.IGNORECASE)
METADATA = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', re.MULTILINE)
LARGEST = 20
Span = tuple[float, float]


def kind(name: str, scope: str) -> str:
    """The kind of work of a kernel.

    Args:
      name: the name of the kernel and of its HLO instruction.
      scope: the instruction's `op_name`: the path of scopes that it was traced in.
    """
    parts = set(re.split(r"[^\w]+", scope))
    if FUSED.search(name):
        return "attention"
    for part in SCOPES:
        if part in parts:
            return part
    return "products" if PRODUCT.search(name) else "rest"


class Kernel(NamedTuple):
    """A span of work on a device."""

    name: str
    op: str  # the HLO instruction
    scope: str  # that the trace itself gives
    span: Span  # seconds


def kernels(folder: Path) -> Iterator[Kernel]:
    """Every kernel of the devices."""
    import jax

    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    stats: dict[Any, Any] = dict(event.stats)
                    if "hlo_op" in stats:
                        start = event.start_ns / 1e9
                        span = (start, start + event.duration_ns / 1e9)
                        scope = " ".join(str(stats.get(key, "")) for key in ("tf_op", "name"))
                        yield Kernel(event.name, str(stats["hlo_op"]), scope, span)


def union(spans: Iterable[Span]) -> float:
    """Seconds covered by at least one span."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return covered


def breakdown(folder: Path, hlo: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by kind; `idle`: between the first and the last kernel, without any running.

    Args:
      folder: the folder of the trace.
      hlo: the text of the compiled program, which has the scope of each instruction.

    Returns:
      The seconds of each kind, and of the `LARGEST` instructions without a kind, by name.
    """
    scopes = dict(METADATA.findall(hlo))
    spans: dict[str, list[Span]] = {}
    rest: dict[str, float] = {}
    for kernel in kernels(folder):
        scope = f"{scopes.get(kernel.op, '')} {kernel.scope}"
        found = kind(f"{kernel.name} {kernel.op}", scope)
        spans.setdefault(found, []).append(kernel.span)
        if found == "rest":
            name = f"{kernel.op}: {scope.strip()}"
            rest[name] = rest.get(name, 0.0) + kernel.span[1] - kernel.span[0]
    everything = [span for some in spans.values() for span in some]
    if not everything:
        return {}, {}
    window = max(end for _, end in everything) - min(start for start, _ in everything)
    largest = dict(sorted(rest.items(), key=lambda item: -item[1])[:LARGEST])
    by_kind = {name: union(some) for name, some in sorted(spans.items())}
    return by_kind | {"idle": window - union(everything)}, largest
