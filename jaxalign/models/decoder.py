"""The decoder: embedding, a scan over stacked layers, the final norm; and its functional record."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from ..core.sharding import RULES, check_divisible, constrain
from ..core.types import Array
from .attention.api import Part, attend, attend_cached
from .attention.mask import KEPT, RowMask
from .cache import Cache, Shared, blank, put, seen
from .layers.block import Block, Mixer
from .layers.delta import DeltaNet
from .layers.head import Head
from .layers.latent import LatentAttention
from .layers.mixture import Routing
from .layers.norm import Norm
from .layers.projections import Linear, normal_param
from .layers.rope import Tables, rope_tables, segment_lengths
from .layers.short_conv import GatedConv
from .lora import LowRank, attach
from .patterns import Run, by_layer, runs
from .spec import Rope, Softmax, Spec

Params = dict[str, Any]
Remat = Literal["none", "full", "dots"]


class Encoded(NamedTuple):
    """Hidden states of packed rows, and the head that turns them into logits."""

    hidden: Array
    """[K, L, D] after the final norm; finite and meaningless at padding."""
    head: Head
    layer_means: Array | None = None
    """[K, L, layers] float32, the mean over the width of the output of each layer, if asked for."""
    routing: Routing | None = None
    """Sums over all tokens for each layer with experts, [layers, ...]; None: no layer has any."""


class Decoder(nnx.Module):
    """A causal language model, or a reward model.

    The layers of each place of a repeating pattern are stacked on a leading axis; `layers` has the
    stacks by the number of their first layer.
    """

    positions: nnx.Param | None = None

    def __init__(self, spec: Spec, rngs: nnx.Rngs, dtype: DTypeLike, lora: LowRank | None = None):
        self.spec = spec
        self.embed = normal_param(rngs, (spec.vocab, spec.width), ("vocab", "embed"), dtype)
        if spec.positions is not None:
            shape = (spec.positions.rows, spec.width)
            self.positions = normal_param(rngs, shape, (None, "embed"), dtype)

        def stacked(numbers: range) -> Block:
            def layer(rngs: nnx.Rngs) -> Block:
                block = Block(spec.layers[numbers[0]], spec.width, rngs, dtype)
                if lora is not None:
                    attach(block, lora, rngs)
                return block

            stack = nnx.vmap(layer, transform_metadata={nnx.PARTITION_NAME: "layers"})
            return stack(rngs.split(len(numbers)))

        self.runs = runs(spec.layers)
        stacks = [numbers for run in self.runs for numbers in run.stacks]
        self.layers = nnx.Dict({str(numbers[0]): stacked(numbers) for numbers in stacks})
        self.norm = Norm(spec.norm, (spec.width,), dtype)
        head = (spec.width, spec.vocab), ("embed", "vocab")
        if spec.scores:
            head = (spec.width, spec.scores), ("embed", None)
        tied = spec.tied and not spec.scores
        self.head = None if tied else Linear(rngs, *head, bias=False, dtype=dtype)

    def embedded(self, ids: Array, positions: Array, dtype: DTypeLike) -> Array:
        """Tokens and their positions [K, L] -> their embeddings [K, L, D]."""
        # Gathering from a table that is sharded over its width makes XLA replicate the result.
        table = constrain(self.embed[...].astype(dtype), "vocab", None)
        x = constrain(table[ids], "batch", None, None)
        scale, learned = self.spec.embed_scale, self.spec.positions
        x = x if scale == 1 else x * jnp.asarray(scale, dtype)
        if self.positions is None or learned is None:
            return x
        table = constrain(self.positions[...].astype(dtype), None, None)
        return x + table[positions + learned.first]

    def finished(self, x: Array) -> Array:
        """The output of the last layer [K, L, D] -> what the head multiplies."""
        x = self.norm(x)
        scale = 1.0 if self.spec.scores else self.spec.logit_scale
        return x if scale == 1 else x * scale

    def readout(self, dtype: DTypeLike) -> Head:
        """The head, its matrix in `dtype`."""
        if self.head is None:
            matrix = self.embed[...].astype(dtype).T
        else:
            matrix = self.head.kernel[...].astype(dtype)
        return Head(matrix, None if self.spec.scores else self.spec.logit_softcap)

    def _tables(self, positions: Array, lengths: Array) -> dict[Rope | None, Tables | None]:
        """The rotary tables of all layers."""
        return {None: None} | {r: rope_tables(r, positions, lengths) for r in self.spec.ropes}

    def __call__(
        self, ids: Array, mask: RowMask, mesh: Mesh, dtype: DTypeLike, remat: Remat, layers: bool
    ) -> tuple[Array, Array | None, Routing | None]:
        """[K, L] ids and the mask of their rows -> final hidden states [K, L, D].

        Also the mean over the width after each layer, [layers, K, L], if `layers` is set, and the
        routing of each layer with experts, [layers, ...].
        """
        lengths = segment_lengths(mask.positions, mask.segment)
        tables = self._tables(mask.positions, lengths)

        def mix(mixer: Mixer, x: Array) -> tuple[Array, Any]:
            if isinstance(mixer, DeltaNet | GatedConv):
                return mixer(x, mask, None)
            kind = mixer.kind
            how = dataclasses.replace(mask, scale=kind.scale)
            if isinstance(kind, Softmax):
                # What is as long as the row hides nothing, and a backend may have none.
                window, chunk = (
                    size if (size or 0) < ids.shape[1] else None
                    for size in (kind.window, kind.chunk)
                )
                own = {"window": window, "chunk": chunk, "softcap": kind.softcap}
                how = dataclasses.replace(how, **own)

            def attended(q: Array, k: Array, v: Array, sinks: Array | None) -> tuple[Array, None]:
                return attend(q, k, v, how, mesh, sinks), None

            return mixer(x, tables[kind.rope], attended)

        def layer(x: Array, block: Block) -> tuple[Array, Array | None, Routing | None]:
            x, _, routing = block(x, mix, mask.segment > 0)
            return x, x.mean(-1, dtype=jnp.float32) if layers else None, routing

        if remat != "none":
            policies = jax.checkpoint_policies
            kept = policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(KEPT)
            )
            policy = kept if remat == "dots" else None
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)

        def pattern(x: Array, blocks: list[Block]) -> tuple[Array, tuple[list[Any], list[Any]]]:
            means, routing = [], []
            for block in blocks:
                x, mean, routed = layer(x, block)
                means.append(mean)
                routing.append(routed)
            return x, (means, routing)

        x, found = self.embedded(ids, mask.positions, dtype), []
        for run in self.runs:
            x, of_run = jax.lax.scan(pattern, x, self._blocks(run))
            found.append(of_run)
        means, routing = zip(*found, strict=True)
        return self.finished(x), by_layer(means), by_layer(routing)

    def _blocks(self, run: Run) -> list[Block]:
        return [self.layers[str(numbers[0])] for numbers in run.stacks]

    def extend(
        self,
        ids: Array,
        positions: Array,
        back: Array,
        cache: Cache,
        at: Array,
        prompts: Shared | None,
        dtype: DTypeLike,
    ) -> tuple[Array, Cache]:
        """Like `__call__`, with a cache of earlier columns."""
        # Longer ones than `longest_short` are so from their prompt on; see `decode`.
        tables = self._tables(positions, positions.max(1, keepdims=True) + 1)
        new = at + jnp.arange(ids.shape[1])
        real = (back[:, jnp.arange(ids.shape[1]), new] >= 0).astype(jnp.int32)  # it sees itself
        rows = RowMask(real, jnp.zeros_like(real), positions, branches=1)

        def mix(mixer: Mixer, x: Array, held: dict[str, Array], name: str, i: Array) -> Any:
            if isinstance(mixer, DeltaNet | GatedConv):
                x, now = mixer(x, rows, {name: whole[i] for name, whole in held.items()})
                return x, {name: held[name].at[i].set(new) for name, new in (now or {}).items()}
            kind = mixer.kind

            def part(held: dict[str, Array], back: Array) -> Part:
                return Part(held["keys"][i], held["values"][i], seen(kind, back, positions))

            def cached(q: Array, k: Array, v: Array, sinks: Array | None) -> Any:
                kept = {"keys": k, "values": v}
                kept = {name: put(held[name], x, i, at) for name, x in kept.items()}
                parts = [part(kept, back)]
                if prompts is not None:
                    parts = [part(prompts.cache[name], prompts.back), *parts]
                cap = kind.softcap if isinstance(kind, Softmax) else None
                return attend_cached(q, parts, kind.scale, cap, sinks), kept

            if isinstance(mixer, LatentAttention):
                return mixer(x, tables[kind.rope], cached, compact=True)
            return mixer(x, tables[kind.rope], cached)

        def pattern(
            names: list[str], carry: tuple[Array, list[dict[str, Array]]], indexed: Any
        ) -> Any:
            x, caches = carry
            blocks, i = indexed
            kept = []
            for name, block, held in zip(names, blocks, caches, strict=True):
                own = functools.partial(mix, held=held, name=name, i=i)
                x, new, _ = block(x, own, real > 0)
                kept.append(new)
            return (x, kept), None

        x, after = self.embedded(ids, positions, dtype), {}
        for run in self.runs:
            names = [str(numbers[0]) for numbers in run.stacks]
            indexed = (self._blocks(run), jnp.arange(run.repeats))
            start = (x, [cache[name] for name in names])
            (x, kept), _ = jax.lax.scan(functools.partial(pattern, names), start, indexed)
            after |= dict(zip(names, kept, strict=True))
        return self.finished(x), after


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A decoder without its parameters: static, to close over in jitted functions.

    Parameters are a nested dict of arrays. Layers are stacked on the leading axis, by the number of
    the first layer of a stack: `params["layers"]["0"]`.
    """

    spec: Spec
    mesh: Mesh
    graph: nnx.GraphDef
    abstract: Params
    """Nested dict of `jax.ShapeDtypeStruct`, each with its `NamedSharding` on `mesh`."""
    dtype: np.dtype
    """Dtype of activations and matrix products."""
    param_dtype: np.dtype
    remat: Remat
    branches: int
    """Maximum number of branches per prompt in a row."""
    lora: LowRank | None = None
    """Adapters that the parameters include, in float32."""

    def _bind(self, params: Params) -> Decoder:
        return nnx.merge(self.graph, nnx.State(params))

    def forward(
        self, params: Params, ids: Array, positions: Array, segment: Array, branch: Array, *,
        layers: bool = False,
    ) -> Encoded:  # fmt: skip
        """Encode packed rows.

        Args:
          params: parameters as in `abstract`.
          ids: tokens [K, L].
          positions: position of each token in its own sequence, [K, L].
          segment: example of each token within the row, [K, L]; 0 is padding.
          branch: [K, L]; 0 in the prompt, r + 1 in response r.
          layers: whether to compute `layer_means` too.

        Returns:
          The hidden states and the head, both in `dtype`.
        """
        decoder = self._bind(params)
        mask = RowMask(segment, branch, positions, self.branches)
        hidden, means, routing = decoder(ids, mask, self.mesh, self.dtype, self.remat, layers)
        means = None if means is None else jnp.moveaxis(means, 0, -1)
        return Encoded(hidden, decoder.readout(self.dtype), means, routing)

    def init(self, key: Array) -> Params:
        """Random parameters, each created on its own shards: normal(0.02), biases 0, scales 1."""
        shardings = jax.tree.map(lambda p: p.sharding, self.abstract)
        with jax.set_mesh(self.mesh):
            return jax.jit(self.create, out_shardings=shardings)(key)

    def create(self, key: Array) -> Params:
        """Create the parameters of `init`; call it in a trace, with the mesh set."""
        with nnx.logical_axis_rules(tuple(RULES.items())):
            decoder = Decoder(self.spec, nnx.Rngs(key), self.param_dtype, self.lora)
        return nnx.to_pure_dict(nnx.state(decoder, nnx.Param))

    def init_cache(self, rows: int, columns: int) -> Cache:
        """The cache of `columns` positions before the first token: zeros.

        Each array has the leading axes [layers, rows]. Keys and values are [..., Hk, columns, C];
        latent attention keeps latents, one key and one value for all heads. A recurrent layer keeps
        its last inputs and its state, whose size does not depend on `columns`.
        """
        stacks = [numbers for run in runs(self.spec.layers) for numbers in run.stacks]
        return {
            str(numbers[0]): blank(
                self.spec.layers[numbers[0]].attention,
                (len(numbers), rows, columns),
                self.spec.width,
                self.dtype,
            )
            for numbers in stacks
        }

    def extend(
        self,
        params: Params,
        cache: Cache,
        ids: Array,
        positions: Array,
        back: Array,
        at: int | Array,
        prompts: Shared | None = None,
    ) -> tuple[Array, Cache]:
        """Append L tokens of each row to the cache: of a prompt, or one token of a response.

        Args:
          params: parameters as in `abstract`.
          cache: a cache of some columns, from `init_cache`.
          ids: tokens [K, L].
          positions: position of each token in its own sequence, [K, L].
          back: how many positions before each new token every column is, [K, L, columns]: 0 is the
            token itself, and a negative number a column that it does not see.
          at: the first column to write.
          prompts: the prompts of the rows, if `cache` does not have them.

        Returns:
          hidden [K, L, D] and the cache with columns at ... at + L - 1 filled.
        """
        decoder = self._bind(params)
        at = jnp.asarray(at)
        return decoder.extend(ids, positions, back, cache, at, prompts, self.dtype)

    def head(self, params: Params) -> Head:
        """The head, which turns hidden states into logits."""
        return self._bind(params).readout(self.dtype)


@functools.lru_cache(maxsize=64)
def build(
    spec: Spec,
    mesh: Mesh,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: Remat = "none",
    branches: int = 2,
    lora: LowRank | None = None,
) -> Model:
    """Place a decoder on a mesh. Uses no memory: parameters come from `init` or a checkpoint.

    Equal arguments give the same object, so that what is compiled for it is used again.

    Args:
      spec: the mathematics of the decoder.
      mesh: the device mesh (data, fsdp, tensor), with Auto axes.
      dtype: dtype of activations and matrix products; norms, rotary angles and softmax are always
        float32.
      param_dtype: dtype in which parameters are kept.
      remat: rematerialization in the backward pass: "none", "full" (whole layers) or "dots" (all
        but products of activations with weights and the inputs and outputs of attention).
      branches: maximum number of branches per prompt. On TPU, hidden states of any further
        branch are NaN.
      lora: low-rank adapters of its matrices; None: no adapters.

    Raises:
      UserError: a mesh axis does not divide a dimension of a parameter; names both.
    """
    kept = jnp.dtype(param_dtype)
    with jax.set_mesh(mesh), nnx.logical_axis_rules(tuple(RULES.items())):
        graph, state = nnx.get_abstract_model(lambda: Decoder(spec, nnx.Rngs(0), kept, lora), mesh)
    abstract = nnx.to_pure_dict(state)
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        name = ".".join(str(key.key) for key in path)
        check_divisible(name, leaf.shape, leaf.sharding.spec, mesh)
    return Model(spec, mesh, graph, abstract, jnp.dtype(dtype), kept, remat, branches, lora)
