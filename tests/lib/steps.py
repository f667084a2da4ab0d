"""A small decoder, examples for it, and the mathematics of the step from dense logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from lib.objectives import draw_columns
from lib.packing import make_example, sequences

from jaxalign.core import layouts
from jaxalign.core.sharding import batch_shards, make_mesh, put_batch
from jaxalign.core.stats import reduce_tokens
from jaxalign.core.types import SequenceStats, select_rows
from jaxalign.data.pack import pack
from jaxalign.models.decoder import build
from jaxalign.models.families import read_config
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Mesh
from jaxalign.update.forward import Task, sequence_stats
from jaxalign.update.gradient import value_and_grad

B = 8
T = 16
VOCAB = 64
MESHES = {
    "data": Mesh(data=8),
    "fsdp": Mesh(data=1, fsdp=8),
    "tensor": Mesh(data=4, tensor=2),
    "mixed": Mesh(data=2, fsdp=2, tensor=2),
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def one_device():
    return make_mesh(Mesh(), jax.devices()[:1])


def small_model(mesh, remat="none", scores=0, config=LLAMA):
    spec = dataclasses.replace(read_config(config), scores=scores)
    return build(spec, mesh, remat=remat)


def parameters(model, seed=0):
    """Random parameters large enough for log-probabilities to differ between responses."""
    rng = np.random.default_rng(seed)

    def draw(x):
        values = rng.normal(size=x.shape) * (0.3 / np.sqrt(x.shape[-2]) if x.ndim > 1 else 0.1) * 3
        return jax.device_put((values + (x.ndim < 3) * 0.5).astype(np.float32), x.sharding)

    return jax.tree.map(draw, model.abstract)


def some_examples(layout, n, seed=0):
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        return rng.integers(0, VOCAB, rng.integers(low, high)).astype(np.int32)

    responses = len(layout.responses) + 2 * layout.many

    def columns(i):
        if layout == layouts.RANKED:
            return {"scores": tuple(rng.normal(size=responses).tolist())}
        if layout in (layouts.LABELED, layouts.MISMATCHED):
            return {"label": float(i % 2)}
        if layout == layouts.PAIRS:
            scores = {"score_chosen": 1.0 + i % 3, "score_rejected": 0.5 - i % 2}
            return {"preference": 0.6 + 0.1 * (i % 4)} | scores
        return {}

    def example(i):
        prompt, answers = tokens(1, 14), tuple(tokens(1, T) for _ in range(responses))
        context = ()
        if layout in (layouts.RATIONALES, layouts.REVISED):
            context = (0, 0, *(int(rng.integers(len(a))) for a in answers[2:]))
        return make_example(prompt, *answers, where=f"example {i}", context=context, **columns(i))

    return [example(i) for i in range(n)]


def examples_of(objective, weights=(1.0,) * B):
    """Examples with every column that the objective reads from the data."""
    columns = draw_columns(np.random.default_rng(0), B)
    return [
        e._replace(
            columns=e.columns
            | {k: float(columns[k][i]) for k in objective.columns if k in columns},
            weight=weights[i],
        )
        for i, e in enumerate(some_examples(objective.layout, B))
    ]


def batch_of(items, n=1, shards=1, chunks=1, scores=0):
    return pack(
        items,
        np.arange(len(items)),
        responses=items[0].responses,
        microbatches=n,
        shards=shards,
        chunks=chunks,
        row_length=64,
        max_scored=T,
        scores=scores,
    )


def dense_activation(means, scored):
    """Means of layers [.., L, N] -> the masks of `stats.activation` [.., L], layer by layer."""
    masks = []
    for x in jnp.moveaxis(means, -1, 0):
        low = jnp.min(x, -1, keepdims=True, where=scored, initial=jnp.inf)
        high = jnp.max(x, -1, keepdims=True, where=scored, initial=-jnp.inf)
        masks.append(jnp.where(high == low, 1.0, (x - low) / (high - low)))
    return sum(masks) / len(masks)


def dense_stats(model, params, items, needs, ref_params=None):
    """Statistics [B, R] from full logits of one padded row per sequence, and of layers."""
    found = [sequence for item in items for sequence in sequences(item)]
    width = max(len(tokens) for tokens, _, _ in found)
    ids = np.zeros((len(found), width + 1), np.int32)
    inside = np.zeros((len(found), width), np.int32)
    scored = np.zeros((len(found), width), bool)
    for row, (tokens, at, _) in enumerate(found):
        ids[row, : len(tokens)] = tokens
        inside[row, : len(tokens)] = 1
        scored[row, at - 1] = True
    at = np.broadcast_to(np.arange(width), inside.shape)
    packed = ids[:, :-1], at, inside, np.zeros_like(inside)
    hidden, head, means, _ = model.forward(params, *packed, layers=True)
    if model.spec.scores:
        last = hidden[np.arange(len(ids)), inside.sum(1) - 1] @ head.matrix
        stats = reduce_tokens({"logit": last}, jnp.ones(last.shape, bool))
        return jax.tree.map(lambda x: x.reshape(len(items), -1, *x.shape[1:]), stats)
    all_log_p = jax.nn.log_softmax(hidden @ head.matrix)
    log_p = jnp.take_along_axis(all_log_p, ids[:, 1:, None], -1)[..., 0]
    token = {"logp": log_p, "log_complement": jnp.log(-jnp.expm1(log_p))}
    token["log_collision"] = jnp.log((jnp.exp(all_log_p) ** 2).sum(-1))
    rows = jax.lax.stop_gradient(head.matrix / jnp.linalg.norm(head.matrix, axis=0)).T
    apart = (1.0 - rows[ids[:, 1:]] @ rows.T) * (ids[:, 1:, None] != jnp.arange(len(rows)))
    token["earth_mover"] = (jnp.exp(all_log_p) * apart).sum(-1)
    token["activation"] = dense_activation(means, scored)
    if ref_params is not None:
        hidden, head, *_ = model.forward(ref_params, *packed)
        ref_log_p = jax.nn.log_softmax(hidden @ head.matrix)
        token["forward_kl"] = (jnp.exp(ref_log_p) * (ref_log_p - all_log_p)).sum(-1)
    token = {s.name: jnp.where(scored, token[s.name], 0.0) for s in needs if s.name in token}
    # Scored tokens first, as in a batch: a random draw belongs to the index of a scored token.
    rows, places, mask = _scored_of_responses(items, scored)
    token = {k: jnp.where(mask, v[rows, places], 0.0) for k, v in token.items()}
    stats = SequenceStats(token["logp"].sum(-1), mask.sum(-1), mask.astype(np.float32), token)
    return jax.tree.map(lambda x: x.reshape(len(items), -1, *x.shape[1:]), stats)


def _scored_of_responses(items, scored):
    """(row, place, whether there is one) of the scored tokens of each response, [B * R, T]."""
    found, row = {}, 0
    for i, item in enumerate(items):
        for branch in item.branches:
            places = np.flatnonzero(scored[row])
            found.setdefault((i, branch.response), []).extend((row, place) for place in places)
            row += 1
    index = np.zeros((2, len(found), T), int)
    mask = np.zeros((len(found), T), bool)
    for k, tokens in enumerate(found.values()):
        index[:, k, : len(tokens)] = np.array(tokens).T
        mask[k, : len(tokens)] = True
    return (*index, mask)


def dense_loss(objective, hyper, model, params, ref_params, items, state=None, start_params=None):
    """The loss of a whole batch at once, without packing, microbatches or chunks."""
    columns = {k: jnp.asarray([e.columns[k] for e in items]) for k in items[0].columns}
    columns["weight"] = jnp.asarray([item.weight for item in items])
    ref = start = None
    if objective.uses_ref:
        needs = (*objective.needs, *objective.layers)
        ref = select_rows(objective.data, dense_stats(model, ref_params, items, needs))
    if objective.uses_start:
        start = dense_stats(model, start_params, items, objective.needs)
        start = select_rows(objective.data, start)
    policy = dense_stats(model, params, items, objective.needs, ref_params)
    policy = select_rows(objective.data, policy)
    bound = objective.bind(**hyper)
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 0)
    key = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(items)))
    if objective.init_state is not None:
        frozen = jax.lax.stop_gradient(policy)
        state = bound(policy=frozen, ref=ref, batch=columns, state=state, key=key)[2]
    given = {"policy": policy, "ref": ref, "start": start}
    loss = bound(**given, batch=columns, state=state, key=key)[0]
    return loss.mean(columns["weight"])


@functools.cache
def dense_gradient(name, weights=(1.0,) * B):
    """Loss and gradient of an objective from dense logits, computed once."""
    objective = OBJECTIVES[name]
    mesh = one_device()
    model = small_model(mesh, scores=objective.head({}))
    params, ref_params, start = (parameters(model, seed) for seed in (0, 1, 2))
    items = examples_of(objective, weights)
    state = objective.init_state() if objective.init_state else None

    def loss(params):
        return dense_loss(objective, {}, model, params, ref_params, items, state, start)

    with jax.set_mesh(mesh):
        return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(params))


def gradient(
    name, *, mesh=None, n=1, chunks=1, remat="none", batch=None, cached=False,
    weights=(1.0,) * B, config=LLAMA, **task,
):  # fmt: skip
    """(loss, gradient, next state) of one objective by the step, on a random batch."""
    objective = OBJECTIVES[name]
    mesh = mesh or one_device()
    items = examples_of(objective, weights)
    with jax.set_mesh(mesh):
        scores = objective.head({})
        model = small_model(mesh, remat, scores, config)
        params, ref_params = parameters(model, 0), parameters(model, 1)
        task = Task(objective, {}, model.forward, **task)
        if batch is None:
            batch = batch_of(items, n, batch_shards(mesh), chunks, scores=scores)
        for field, wanted, seed in (("ref", cached, 1), ("start", objective.uses_start, 2)):
            if wanted:
                stats = jax.jit(
                    lambda p, b: jax.lax.map(lambda c: sequence_stats(task, p, c).token, b)
                )(parameters(model, seed), put_batch(batch, mesh))
                found = {k: np.asarray(v) for k, v in stats.items()}
                batch = batch._replace(**{field: found})
        state = objective.init_state() if objective.init_state else None
        run = jax.jit(lambda p, r, b: value_and_grad(task, p, b, state=state, ref_params=r))
        live = None if cached or not objective.uses_ref else ref_params
        found = run(params, live, put_batch(batch, mesh))
    return jax.tree.map(np.asarray, (found.loss, found.grads, found.state))


def assert_same(got, want, tolerance=1e-5):
    """Losses agree to 1e-5, gradients to a tolerance of the largest entry of each parameter."""
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for path, w in jax.tree_util.tree_leaves_with_path(want[1]):
        g = dict(jax.tree_util.tree_leaves_with_path(got[1]))[path]
        error = np.abs(g - w).max() / np.abs(w).max()
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error}"
