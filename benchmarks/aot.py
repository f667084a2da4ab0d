"""Memory of an update of published checkpoints on machines that are not here: compiled, never run.

    python -m venv aot && . aot/bin/activate
    pip install 'jax[tpu]==0.10.2' optax flax annotated-types nvidia-cudnn-cu13
    pip install pydantic pyyaml safetensors huggingface-hub
    pip install --no-deps jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2
    python -m benchmarks.aot [--only CHIP] [--model NAME] [--write]

Neither a driver nor a device is needed; a program for a TPU takes minutes to compile. DPO with a
cached reference, full rematerialization, bfloat16 activations; each row of tokens is one pair, half
of it prompt. Parameters, gradient and the moments of AdamW are sharded over the mesh axis fsdp.

It exits with 1 if an update does not fit its devices, or if a mesh holds the float32 gradient of
the head whole on a device.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import platform
import re
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from jaxalign.core.sharding import make_mesh
from jaxalign.models.spec import Spec
from jaxalign.settings import Mesh

from . import shapes
from .tables import publish, table

GIB = 2**30
H100_BYTES = 84929347584
H100 = f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: {H100_BYTES}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""
HOPPER = (
    "jax._src.cudnn.fused_attention_stablehlo.check_compute_capability",
    lambda least: float(least) <= 9,
)
"""An answer for jax, which asks the machine that compiles, and not the topology, for its GPU."""
MEMORY = {
    "H100": 0.75 * H100_BYTES,  # jax's default share of a GPU
    "v5e": 15.75 * GIB,  # a TPU's limit, from the compiler's own message
    "v5p": 95.74 * GIB,
    "v6e": 31.25 * GIB,
}
"""Bytes that a program may use on a device."""


@dataclasses.dataclass(frozen=True)
class Case:
    """An update and the devices it is compiled for."""

    chip: str
    """Of `MEMORY`."""
    topology: str
    work: shapes.Work
    row: int = 4096
    """Tokens of a row, which is one pair."""
    rows: int = 1
    """Rows of a microbatch on each device."""
    microbatches: int = 1

    def devices(self) -> Sequence[Any]:
        """The devices of the topology, for compiling only."""
        if self.chip == "H100":
            return topologies.get_topology_desc(
                platform="cuda", target_config=H100, topology=self.topology
            ).devices
        return topologies.get_topology_desc(platform="tpu", topology_name=self.topology).devices


FULL = shapes.Work("Llama-3-8B")
QWEN, GEMMA = shapes.Work("Qwen3-8B"), shapes.Work("gemma-3-12b-text")
GPT_OSS, QWEN_MOE = shapes.Work("gpt-oss-20b"), shapes.Work("Qwen3-30B-A3B")
CASES = (
    Case("H100", "1x1x8", FULL),
    Case("H100", "1x1x8", FULL, rows=4, microbatches=2),
    Case("H100", "1x1x1", shapes.Work("Llama-3-8B", lora=True), row=2048, rows=8),
    Case("v5e", "v5e:4x4", FULL),
    Case("v5e", "v5e:4x4", FULL, microbatches=2),
    Case("v5p", "v5p:2x2x4", FULL),
    Case("v6e", "v6e:4x4", FULL),
    Case("H100", "1x1x8", QWEN),
    Case("v5p", "v5p:2x2x4", QWEN),
    Case("H100", "1x1x8", GEMMA),
    Case("v5p", "v5p:2x2x4", GEMMA),
    Case("H100", "1x1x8", GPT_OSS),
    Case("v5p", "v5p:2x2x4", GPT_OSS),
    Case("H100", "1x1x8", QWEN_MOE, row=3072),
    Case("v5p", "v5p:2x2x4", QWEN_MOE, row=3072),
)


def peak(memory: Any, chip: str) -> int:
    """Bytes that a device needs at once, given the compiler's account of a program.

    On GPUs all temporaries are one allocation, separate from arguments and results. On TPUs
    arguments that are no longer needed make room for temporaries.
    """
    if chip != "H100":
        return memory.peak_memory_in_bytes
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + kept


def whole_head(hlo: str, spec: Spec) -> bool:
    """Whether a compiled program has a float32 array as large as the head on one device.

    It cannot be the logits: rows of `CASES` have fewer scored tokens than the model is wide.
    """
    d, v = spec.width, spec.vocab
    return re.search(rf"\bf32\[(1,)*({d},{v}|{v},{d})\]", hlo) is not None


def measure(case: Case) -> tuple[list[str], bool]:
    """Compile a case; returns its row of the table, and whether it passes."""
    devices = case.devices()
    mesh = make_mesh(Mesh(data=1, fsdp=len(devices)), devices)
    count = len(devices) * case.rows * case.microbatches
    batch = shapes.packed(
        shapes.filling(count, case.work.spec.vocab, case.row),
        case.work,
        shards=len(devices),
        microbatches=case.microbatches,
        row=case.row,
    )
    trained = "LoRA on bfloat16" if case.work.lora else f"full, {case.work.param_dtype}"
    about = [
        case.work.model,
        f"{len(devices)} x {case.chip}",
        trained,
        f"{case.rows} x {case.row:,}",
    ]
    about += [str(case.microbatches)]
    limit = MEMORY[case.chip]
    try:
        with mock.patch(*HOPPER):
            compiled = shapes.program(case.work, mesh).compiled(batch)
    except jax.errors.JaxRuntimeError as error:  # on a TPU: it does not fit
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return [*about, "", "", "", f"{limit / GIB:.2f}", "no"], False
    memory: Any = compiled.memory_analysis()
    needed = peak(memory, case.chip)
    sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, needed)
    held = len(devices) > 1 and whole_head(compiled.as_text() or "", case.work.spec)
    verdict = ("yes" if needed <= limit else "no") + (", head whole" if held else "")
    figures = [*(f"{n / GIB:.2f}" for n in sizes), f"{limit / GIB:.2f}"]
    return [*about, *figures, verdict], verdict == "yes"


def versions() -> str:
    """One line."""
    names = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "flax", "optax")
    packages = (f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"python {platform.python_version()}, {', '.join(packages)}"


def main() -> int:
    """Compile every case and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=MEMORY, help="one kind of device")
    parser.add_argument("--model", help="one model")
    parser.add_argument("--write", action="store_true", help="write the table to results/")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # else jax looks for the GPU to compile for
    heading = [
        "model",
        "devices",
        "trained",
        "rows of a device",
        "microbatches",
        "arguments",
        "temporaries",
    ]
    rows, fine = [[*heading, "peak", "may use", "fits"]], True
    for case in CASES:
        if args.only in (None, case.chip) and args.model in (None, case.work.model):
            began = time.process_time()
            row, well = measure(case)
            print(*row, f"({time.process_time() - began:.0f} CPU s)", file=sys.stderr, flush=True)
            rows.append(row)
            fine = fine and well
    about = (
        "GiB of each device. Parameters and both moments of AdamW are kept in the dtype named; "
        "adapters and their moments in float32."
    )
    given = {"only": args.only, "model": args.model}
    flags = "".join(f" --{name} {value}" for name, value in given.items() if value)
    run = f"`python -m benchmarks.aot{flags}`"
    parts = ["# Memory of an update, from the compiler", run, about, table(rows)]
    publish("aot", "\n\n".join([*parts, versions()]), args.write)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
