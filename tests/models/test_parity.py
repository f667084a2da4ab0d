"""Every family against transformers: logits, gradients, and rows of several sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lib.checkpoints import CONFIGS, ONE_PER_FAMILY, in_torch, named_slopes, small_model

from jaxalign.hf.load import load_params
from jaxalign.hf.open import open_config
from jaxalign.hf.weights import heads, names_of

WIDTH = 48
KEYS = ("ids", "positions", "segment", "branch")


def shared_row():
    """A prompt of 9 with responses of 12 and 11, sequences of 10 and of 1, and padding."""
    segment = [1] * 32 + [2] * 10 + [3] + [0] * 5
    branch = [0] * 9 + [1] * 12 + [2] * 11 + [0] * 4 + [1] * 6 + [0] * 6
    positions = [*range(9), *range(9, 21), *range(9, 20), *range(10), *[0] * 6]
    ids = np.random.default_rng(0).integers(4, 260, WIDTH) * (np.array(segment) > 0)
    columns = (ids, positions, segment, branch)
    return {k: np.array(v, np.int32) for k, v in zip(KEYS, columns, strict=True)}


SHARED = shared_row()
PLACES = [
    np.flatnonzero((SHARED["segment"] == segment) & np.isin(SHARED["branch"], (0, branch)))
    for segment, branch in ((1, 1), (1, 2), (2, 1), (3, 0))
]
"""The columns of each sequence of the shared row."""


def alone(places):
    """A row with one sequence of the shared row, padded on the right."""
    rest = (0, WIDTH - len(places))
    count = np.arange(len(places))
    columns = (SHARED["ids"][places], count, count * 0 + 1, count * 0)
    return {k: np.pad(v, rest).astype(np.int32) for k, v in zip(KEYS, columns, strict=True)}


ROWS = [SHARED, *map(alone, PLACES)]
BATCH = [np.stack([row[key] for row in ROWS]) for key in KEYS]


def factors(vocab):
    """[rows, WIDTH, vocab] random factors of the logits; 0 at padding."""
    drawn = np.random.default_rng(1).normal(size=(len(ROWS), WIDTH, vocab))
    return np.float32(drawn * (BATCH[2][:, :, None] > 0))


def computed(folder, given):
    """Logits of all rows, and the gradients of their weighted sum for the `given` tensors."""
    model = small_model(folder)
    weighing = jnp.asarray(factors(model.spec.vocab))

    def loss(params):
        hidden, head, *_ = model.forward(params, *BATCH)
        logits = head.logits(hidden)
        return jnp.sum(weighing * logits), logits

    with jax.set_mesh(model.mesh):
        (_, logits), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            load_params(folder, model)
        )
    return np.asarray(logits), named_slopes(slopes, model, given)


def computed_in_torch(folder):
    """The logits of each sequence, and the gradients of the sum over all rows, by transformers."""
    theirs, logits, left = in_torch(folder), [], set(range(WIDTH))
    weighing = factors(theirs.config.get_text_config().vocab_size)
    for row, places in enumerate(PLACES, 1):
        found = theirs(input_ids=torch.tensor(SHARED["ids"][places][None]).long()).logits[0]
        # A prompt in the shared row counts once, in the first of its sequences.
        first = np.isin(places, [*left])[:, None]
        weight = weighing[row, : len(places)] + first * weighing[0, places]
        (found * torch.from_numpy(weight)).sum().backward()
        left -= {*places}
        logits.append(found.detach().numpy())
    spec = open_config(folder)
    head, *others = heads(spec)

    def ours(name):
        return head if name in others else names_of(spec).written(name)

    named = theirs.named_parameters()
    return logits, {ours(k): p.grad.numpy() for k, p in named if p.grad is not None}


@pytest.fixture(
    scope="module",
    params=[
        name if name in ONE_PER_FAMILY else pytest.param(name, marks=pytest.mark.slow)
        for name in CONFIGS
    ],
)
def both(request, hf_checkpoint):
    """(logits, gradients) of a configuration, by jaxalign and by transformers."""
    folder = hf_checkpoint(request.param)
    logits, gradients = computed_in_torch(folder)
    return computed(folder, gradients), (logits, gradients)


def test_logits_equal_those_of_transformers(both):
    (ours, _), (theirs, _) = both
    for row, wanted in zip(ours[1:], theirs, strict=True):
        np.testing.assert_allclose(row[: len(wanted)], wanted, atol=1e-4)


def test_gradients_equal_those_of_transformers(both):
    (_, ours), (_, theirs) = both
    assert ours.keys() == theirs.keys()
    # Some gradients are zero: a bias of keys without positions adds the same to all scores.
    least = 1e-3 * max(map(np.linalg.norm, theirs.values()))
    for tensor, slope in theirs.items():
        off = np.linalg.norm(ours[tensor] - slope) / max(np.linalg.norm(slope), least)
        assert off < 1e-4, (tensor, off)


def test_a_shared_row_equals_one_sequence_a_row(both):
    (shared, *rows), _ = both[0]
    for row, places in zip(rows, PLACES, strict=True):
        np.testing.assert_allclose(row[: len(places)], shared[places], atol=1e-5)
