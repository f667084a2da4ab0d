"""Every family against transformers: gradients, and rows of several sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lib.checkpoints import CONFIGS, in_torch, load, logits, plain_rows, small_model

from jaxalign.hf.load import load_params
from jaxalign.hf.save import by_tensor, gathered
from jaxalign.hf.weights import weights

ROWS = plain_rows([20, 13], 20)
REAL = ROWS["segment"] > 0
KEYS = ("ids", "positions", "segment", "branch")


def shared_row():
    """A prompt of 9 with responses of 12 and 11, then a sequence of 10, and padding."""
    segment = [1] * 32 + [2] * 10 + [0] * 6
    branch = [0] * 9 + [1] * 12 + [2] * 11 + [0] * 4 + [1] * 6 + [0] * 6
    positions = [*range(9), *range(9, 21), *range(9, 20), *range(10), *[0] * 6]
    ids = np.random.default_rng(0).integers(4, 260, 48)
    columns = (ids, positions, segment, branch)
    return {k: np.array([v], np.int32) for k, v in zip(KEYS, columns, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_those_of_transformers(hf_checkpoint, name):
    folder = hf_checkpoint(name)
    model = small_model(folder)
    factors = np.random.default_rng(1).normal(size=(*REAL.shape, model.spec.vocab))
    factors = np.float32(factors * REAL[:, :, None])

    def loss(params):
        hidden, head, _ = model.forward(params, *(ROWS[key] for key in KEYS))
        return jnp.sum(jnp.asarray(factors) * head.logits(hidden))

    with jax.set_mesh(model.mesh):
        slopes = jax.jit(jax.grad(loss))(load_params(folder, model))
    theirs = in_torch(folder)
    for ids, real, factor in zip(ROWS["ids"], REAL, factors, strict=True):
        found = theirs(input_ids=torch.from_numpy(ids[real][None]).long()).logits
        (found[0] * torch.from_numpy(factor[real])).sum().backward()
    wanted = {k: p.grad.numpy() for k, p in theirs.named_parameters() if p.grad is not None}
    plan = [w for w in weights(model, wanted) if w.path[-1] != "correction"]  # not trained
    named = list(by_tensor(plan, len(model.spec.layers)))
    kinds = {tensor: "float32" for tensors, _, _ in named for tensor in tensors}
    ours = dict(gathered(slopes, model, named, kinds))
    assert ours.keys() == wanted.keys()
    # Some gradients are zero: a bias of keys without positions adds the same to all scores.
    least = 1e-3 * max(map(np.linalg.norm, wanted.values()))
    for tensor, slope in wanted.items():
        off = np.linalg.norm(ours[tensor] - slope) / max(np.linalg.norm(slope), least)
        assert off < 1e-4, (tensor, off)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_shared_row_equals_one_sequence_a_row(hf_checkpoint, name):
    folder = hf_checkpoint(name)
    params, model = load(folder), small_model(folder)
    row = shared_row()
    packed = logits(model, params, row)[0]
    for segment, branch in ((1, 1), (1, 2), (2, 1)):
        at = (row["segment"][0] == segment) & np.isin(row["branch"][0], (0, branch))
        alone = plain_rows([at.sum()], at.sum()) | {"ids": row["ids"][:, at]}
        np.testing.assert_allclose(logits(model, params, alone)[0], packed[at], atol=1e-5)
