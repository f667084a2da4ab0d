"""The fewest microbatches whose update fits in the memory of the devices: `microbatches: auto`.

The real update is compiled ahead, for one number of microbatches after another, and the compiler's
account of its memory is compared with what the devices have. The choice is kept in the stage's
folder, so that a run that goes on does the same and compiles nothing for it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from ..core.batch import Batch
from ..core.sharding import batch_layout, batch_shards
from ..data.pack import CachedStats, cell_size
from ..data.store import Examples
from ..errors import UserError
from ..files import write_whole
from ..models.decoder import Params
from ..models.quantized import Quantized, quantize
from ..sealed import read_own, sealed
from ..update.step import Fixed, Step
from .stage import StageRun
from .term import TermRun
from .weights import reference_source

SHARE = 0.9
"""Part of a device's memory that an update may take; the rest is for unplanned memory."""


class Plan(NamedTuple):
    """A choice and its figures."""

    microbatches: int
    limit: int
    """Bytes that an update may take on each device."""
    bytes: dict[int, int | None]
    """What it takes with each number of microbatches; None: more than the compiler had room for."""


def settled(stage: StageRun, console: Console, *, keep: bool = True) -> StageRun:
    """The stage with a number of microbatches; one that has a number is returned as it is.

    The choice is read from `plan.json` in the stage's folder, where there is one for this mesh and
    kind of device, and else made and written there. All hosts make the same choice.

    Args:
      stage: the stage.
      console: where to print the memory of each number tried.
      keep: write the choice down.

    Raises:
      UserError: not even one example per microbatch and shard fits.
    """
    if stage.settings.microbatches != "auto":
        return stage
    path, where = stage.folder / "plan.json", _where(stage.mesh)
    remedy = "delete the file to choose again"
    plans = read_own(path, dict[str, Plan], remedy) if path.exists() else {}
    if where not in plans:
        plans[where] = _plan(stage, console)
        if keep:
            write_whole(path, sealed({where: plan._asdict() for where, plan in plans.items()}))
    return stage.with_microbatches(plans[where].microbatches)


def _where(mesh: Mesh) -> str:
    """What a plan holds for: the sizes of the mesh and the kind of its devices."""
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return f"{sizes} {mesh.devices.flat[0].device_kind}"


def _plan(stage: StageRun, console: Console) -> Plan:
    limit = _limit()
    shards = batch_shards(stage.mesh)
    per_shard = math.gcd(*(cell_size(t.settings.batch_size, 1, shards) for t in stage.terms))
    tried: dict[int, int | None] = {}

    def fits(microbatches: int) -> bool:
        size = tried[microbatches] = update_bytes(stage.with_microbatches(microbatches))
        console.print(f"{stage.name}: microbatches {microbatches}: {_words(size, limit)}")
        return size is not None and size <= limit

    chosen = fewest(divisors(per_shard), fits)
    if chosen is None:
        raise UserError(
            f"stages.{stage.name}.microbatches: auto finds none that fits; an update in "
            f"{per_shard}, of one example on each shard, takes {_mib(tried[per_shard])} on each "
            f"device; wanted at most {_mib(limit)}, {SHARE} of its memory; shorten data.max_length "
            "and data.row_length, use more devices along mesh.fsdp or mesh.tensor, "
            "optimizer.moment_dtype bfloat16 or another optimizer, model.remat full, a cached "
            "reference, or lora"
        )
    return Plan(chosen, limit, tried)


def memory_words(stage: StageRun) -> str:
    """The memory of an update, and how much it may take, in words."""
    return _words(update_bytes(stage), _limit())


def _words(size: int | None, limit: int) -> str:
    return f"an update takes {_mib(size)}; it may take {_mib(limit)} on each device"


def _limit() -> int:
    return int(SHARE * memory(jax.local_devices()))


def divisors(count: int) -> list[int]:
    """The divisors of a number, ascending."""
    return [n for n in range(1, count + 1) if count % n == 0]


def fewest(candidates: Iterable[int], fits: Callable[[int], bool]) -> int | None:
    """The first candidate that fits on every host; None where none does."""
    return next(
        (n for n in candidates if multihost_utils.process_allgather(np.array(fits(n))).all()), None
    )


def memory(devices: Iterable[Any]) -> int:
    """Bytes that each of the devices may take; CPU devices share the memory of the machine."""
    devices = list(devices)
    stats = [device.memory_stats() for device in devices]
    if all(s and "bytes_limit" in s for s in stats):
        return min(s["bytes_limit"] for s in stats)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)


def update_bytes(stage: StageRun) -> int | None:
    """Bytes that an update takes on each device, arguments included, by the compiler's account.

    Its batch has the costliest of the loader's shapes. None: the compiler itself found no room.
    """
    mesh = stage.mesh
    base = None if stage.adapted is None else _base(stage)
    live = [term.reference_mode == "live" and not term.moving for term in stage.terms]
    frozen = stage.model.abstract if base is None else {}
    fixed = Fixed.of(base, [frozen if one else None for one in live])
    layout = batch_layout(mesh)
    batches = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
        tuple(map(costliest_batch, stage.terms)),
    )
    with jax.set_mesh(mesh):
        spec = stage.state_spec
        lowered = Step(stage.policies, stage.rule, spec, mesh).lower(spec, batches, fixed)
        try:
            used = cast(Any, lowered.compile().memory_analysis())
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise
            return None
    # On a CPU the compiler's own peak leaves out temporaries, so only that of TPUs is taken.
    if mesh.devices.flat[0].platform == "tpu" and used.peak_memory_in_bytes > 0:
        return used.peak_memory_in_bytes
    kept = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes
    kept -= _shared_bytes(stage)
    return kept + used.temp_size_in_bytes


def _shared_bytes(stage: StageRun) -> int:
    """Bytes on each device of live references that terms share: as arguments they count twice."""
    live = [reference_source(t) for t in stage.terms if t.reference_mode == "live" and not t.moving]
    if stage.adapted is not None:
        return 0
    leaves = jax.tree.leaves(stage.model.abstract)
    sizes = (math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    return (len(live) - len(set(live))) * sum(sizes)


def blank_stats(stage: TermRun, examples: Examples) -> CachedStats:
    """Zeros in place of the cached statistics of a data set, for the shapes of its batches."""
    objective = stage.task.objective
    zeros = {s.name: np.zeros(examples.offsets[-1], np.float32) for s in objective.needs}
    return CachedStats(
        ref=zeros if stage.reference_mode == "cached" else {},
        start=zeros if objective.uses_start else {},
    )


def costliest_batch(stage: TermRun) -> Batch:
    """A batch of the costliest shape, with zeros for cached statistics."""
    loader = stage.training_loader(blank_stats(stage, stage.train))
    batch, shape = loader.batch(0), loader.shapes[-1]

    def zeros_of(*sizes: int) -> np.ndarray:
        return np.zeros((*batch.ids.shape[:2], *sizes), np.int32)

    tokens = zeros_of(shape.rows, shape.row_length)
    scored = zeros_of(shape.chunks, shape.scored)
    return batch._replace(
        **dict.fromkeys(("ids", "positions", "segment", "branch"), tokens),
        **dict.fromkeys(("source", "target", "slot"), scored),
    )


def _base(stage: StageRun) -> Params:
    """Shapes and shardings of the frozen weights under adapters."""
    kind, params = stage.quantized, stage.model.abstract
    if kind is None:
        return params

    def keep(path: Any, leaf: Any) -> Any:
        made = jax.jit(lambda x: quantize(tuple(key.key for key in path), x, kind))
        kept = jax.eval_shape(made, leaf)
        if not isinstance(kept, Quantized):
            return leaf
        layouts = made.lower(leaf).compile().output_shardings
        return jax.tree.map(
            lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), kept, layouts
        )

    return jax.tree_util.tree_map_with_path(keep, params)


def _mib(count: int | None) -> str:
    return "more than there is" if count is None else f"{count / 2**20:,.1f} MiB"
