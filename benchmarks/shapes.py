"""Updates of the shapes of real models on random tokens: no checkpoint, no tokenizer, no data set.

It imports of jaxalign only what needs neither transformers nor a library for data sets.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import yaml
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.core.batch import Batch
from jaxalign.core.sharding import BATCH, repeatable, replicated
from jaxalign.data.examples import Example
from jaxalign.data.pack import CachedStats, head_chunks, pack
from jaxalign.data.store import Examples
from jaxalign.hf.peft import adapters
from jaxalign.models.adapted import Adapted, adapt
from jaxalign.models.decoder import Params, Remat, build
from jaxalign.models.families import FAMILIES, read_config
from jaxalign.models.lora import LowRank
from jaxalign.models.spec import Spec
from jaxalign.objectives import OBJECTIVES
from jaxalign.update.forward import Task
from jaxalign.update.state import TrainState, abstract_state, initial_state
from jaxalign.update.step import Fixed, train_step

PUBLISHED = Path(__file__).parents[1] / "tests" / "models" / "published.yaml"
"""Published checkpoints by name, with their `config.json`."""
LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
MADE_UP: dict[str, dict[str, Any]] = {
    "tiny": LLAMA
    | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    "small": LLAMA
    | {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4},
}


@functools.cache
def config(model: str) -> dict[str, Any]:
    """The contents of `config.json` of a model of `MADE_UP` or `PUBLISHED`."""
    if model in MADE_UP:
        return MADE_UP[model]
    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))[model]["config"]


RANK = 16
REFERENCE = -2.0  # nats; every statistic of the cached reference, for every token


def hh_like(count: int, vocab: int) -> list[Example]:
    """Pairs about as long as the pairs of Anthropic's HH, with its tail of long prompts."""
    rng = np.random.default_rng(0)

    def lengths(mean: float, most: int) -> np.ndarray:
        spread = 0.75  # of the logarithm
        drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread, count)
        return np.clip(np.round(drawn), 4, most).astype(int)

    sizes = zip(lengths(119, 519), lengths(40, 256), lengths(50, 256), strict=True)
    return [_pair(rng, vocab, *size) for size in sizes]


def filling(count: int, vocab: int, row: int) -> list[Example]:
    """Pairs that fill a row each: half of it prompt, a quarter for each response."""
    rng = np.random.default_rng(0)
    return [_pair(rng, vocab, row // 2, row // 4, row // 4) for _ in range(count)]


def _pair(rng: np.random.Generator, vocab: int, *sizes: int) -> Example:
    prompt, *responses = (rng.integers(0, vocab, n, dtype=np.int32) for n in sizes)
    return Example.of(prompt, *responses)


def packed(
    items: Sequence[Example], work: Work, *, shards: int, microbatches: int, row: int
) -> Batch:
    """The pairs of one update with a cached reference, packed as the loader packs them."""
    examples = Examples.of(items)
    offsets = examples.offsets
    cell = len(items) // (shards * microbatches)
    return pack(
        items,
        range(len(items)),
        responses=2,
        microbatches=microbatches,
        shards=shards,
        chunks=head_chunks(cell, offsets[-1] / len(items), work.spec.vocab),
        row_length=row,
        max_scored=examples.max_scored,
        cached=CachedStats(
            {
                need.name: np.full(offsets[-1], REFERENCE, np.float32)
                for need in OBJECTIVES[work.objective].needs
            }
        ),
        offsets=offsets,
    )


@dataclasses.dataclass(frozen=True)
class Work:
    """An update of a model."""

    model: str
    """The name of a model of `MADE_UP` or `PUBLISHED`."""
    objective: str = "dpo"
    lora: bool = False
    """Whether to train adapters of rank `RANK` on all linear layers of a bfloat16 decoder."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of the parameters and of AdamW's moments. Adapters are float32."""
    remat: Remat = "full"

    @property
    def spec(self) -> Spec:
        """The decoder's configuration."""
        return read_config(config(self.model))


@dataclasses.dataclass(frozen=True)
class Program:
    """An update laid out on a mesh, without its arrays."""

    mesh: Mesh
    abstract: TrainState
    frozen: Params | None
    """The shapes of the frozen decoder under the adapters."""
    update: Callable[[Params | None, TrainState, Batch], tuple[TrainState, dict[str, Any]]]
    """Jitted; the state is donated."""
    start: Callable[[], tuple[Params | None, TrainState]]
    """Random arrays as `frozen` and `abstract`."""

    def compiled(self, batch: Batch, **options: bool | str) -> jax.stages.Compiled:
        """The update for such batches, compiled for the mesh without any array on it.

        `options` are XLA's, by name.
        """
        layout = NamedSharding(self.mesh, PartitionSpec(None, BATCH))
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), batch
        )
        with jax.set_mesh(self.mesh):
            jitted: Any = self.update
            lowered = jitted.lower(self.frozen, self.abstract, shapes)
            return lowered.compile(compiler_options=options or None)


def program(work: Work, mesh: Mesh) -> Program:
    """Lay an update out: bfloat16 activations, clipping at 1 and AdamW at a constant rate."""
    kept = "bfloat16" if work.lora else work.param_dtype
    model = build(work.spec, mesh, dtype="bfloat16", param_dtype=kept, remat=work.remat)
    trained = adapt(model, all_linears(work.spec)) if work.lora else model
    objective: Any = OBJECTIVES[work.objective]
    forward: Any = trained.forward
    task = Task(objective, {}, forward)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.0))
    abstract = abstract_state(trained, tx, [task])
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    @functools.partial(
        jax.jit,
        donate_argnums=1,
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=repeatable(mesh),
    )
    def update(frozen: Params | None, state: TrainState, batch: Batch) -> Any:
        return train_step([task], tx, state, [batch], Fixed(base=frozen))

    def start() -> tuple[Params | None, TrainState]:
        keys = jax.random.split(jax.random.key(0))
        frozen = model.init(keys[0]) if work.lora else None
        return frozen, initial_state(trained.init(keys[1]), [task], tx, abstract)

    frozen = model.abstract if isinstance(trained, Adapted) else None
    return Program(mesh, abstract, frozen, update, start)


def all_linears(spec: Spec) -> LowRank:
    """Adapters on every linear layer of a block."""
    targets = tuple(FAMILIES[spec.family].names.linears)
    return adapters(spec, targets, RANK, 2.0 * RANK, stabilized=False)


def parameters(params: Any) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
