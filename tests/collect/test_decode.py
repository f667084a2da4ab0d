import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lib.checkpoints import FEW_FAMILIES, in_torch, small_model

from jaxalign.collect.decode import generate
from jaxalign.collect.draw import restrict
from jaxalign.errors import UserError
from jaxalign.hf.load import load_params
from jaxalign.settings import Mesh

PROMPTS = [np.random.default_rng(n).integers(4, 264, n).astype(np.int32) for n in (5, 17, 1, 3)]


@pytest.fixture(scope="module")
def loaded(hf_checkpoint):
    """`loaded(name)` is the folder, the model and the parameters of a checkpoint."""

    @functools.cache
    def make(name, mesh=None):
        folder = hf_checkpoint(name)
        model = small_model(folder, mesh=mesh)
        return folder, model, load_params(folder, model)

    return make


def sample(loaded, prompts=PROMPTS, mesh=None, **options):
    _, model, params = loaded("llama-gqa", mesh)
    options = {"max_new": 8, "stop": ()} | options
    return [list(answer.tokens) for answer in generate(model, params, prompts, **options)]


@pytest.mark.parametrize("name", FEW_FAMILIES)
def test_greedy_tokens_equal_those_of_transformers(loaded, name):
    folder, model, params = loaded(name)
    theirs = in_torch(folder)
    ours = generate(model, params, PROMPTS, max_new=40, temperature=0, stop=[2], batch_size=4)
    for prompt, (tokens, *_) in zip(PROMPTS, ours, strict=True):
        wanted = theirs.generate(
            torch.tensor(prompt[None]).long(),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
            use_cache=False,  # LFM2's, in transformers 5.0, loses prompts shorter than its taps
        )[0, len(prompt) :].numpy()
        np.testing.assert_array_equal(tokens, wanted[wanted != 2])


def test_a_stop_token_ends_a_response_and_is_left_out(loaded):
    whole = sample(loaded, temperature=0)
    stopped = sample(loaded, temperature=0, stop=(whole[0][3],))
    assert stopped[0] == whole[0][: whole[0].index(whole[0][3])]


def test_what_is_drawn_so_far_is_the_beginning_of_the_responses(loaded):
    seen = []
    options = {"max_new": 20, "prompts": PROMPTS[:1]}
    plain = sample(loaded, **options)
    assert sample(loaded, drawn=seen.append, **options) == plain
    for n, tokens in zip((8, 16, 20), seen, strict=True):
        np.testing.assert_array_equal(tokens, plain[0][:n])


def test_drawing_ends_with_the_last_response(loaded):
    seen = []
    stops = range(265)
    options = {"max_new": 20, "stop": stops, "prompts": PROMPTS[:1]}
    assert sample(loaded, drawn=seen.append, **options) == [[]]
    assert len(seen) == 1


def test_draws_do_not_depend_on_the_batch(loaded):
    assert sample(loaded, batch_size=4) == sample(loaded, batch_size=3)


MANY = [np.random.default_rng(n).integers(4, 264, 1 + n % 70).astype(np.int32) for n in range(12)]
STOPS = tuple(range(4, 24))
"""One token in thirteen ends an answer, so that answers are of many lengths."""


def of_families(*names):
    """One family, and as slow tests the others."""
    others = [pytest.param(name, marks=pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", ["llama-gqa", *others])


@of_families("mistral", "lfm2", "qwen3_next", "deepseek_v2")
def test_slots_that_are_filled_again_change_no_answer(loaded, name):
    _, model, params = loaded(name)
    how = {"max_new": 56, "stop": STOPS, "n": 5, "seed": 7}
    few = generate(model, params, MANY, batch_size=6, **how)
    all_at_once = generate(model, params, MANY, batch_size=64, **how)
    assert [list(a.tokens) for a in few] == [list(a.tokens) for a in all_at_once]
    assert len({len(a.tokens) for a in few}) > 10


@of_families("mistral", "lfm2", "qwen3_next", "gpt_oss")
def test_log_probabilities_equal_those_of_a_forward_pass(loaded, name):
    _, model, params = loaded(name)
    found = generate(model, params, MANY, max_new=40, stop=STOPS, n=2, batch_size=6)

    @jax.jit
    def logps(ids, real):
        at = jnp.broadcast_to(jnp.arange(128), ids.shape)
        hidden, head, *_ = model.forward(params, ids, at, real, jnp.zeros_like(ids))
        return jax.nn.log_softmax(head.logits(hidden[0]), -1)

    for number, answer in enumerate(found):
        prompt = MANY[number // 2]
        ids = np.concatenate([prompt, answer.drawn])
        padded = np.pad(ids, (0, 128 - len(ids)))[None]
        with jax.set_mesh(model.mesh):
            logp = np.asarray(logps(padded, (np.arange(128) < len(ids)).astype(np.int32)[None]))
        before = np.arange(len(prompt) - 1, len(ids) - 1)
        wanted = float(logp[before, answer.drawn].sum())
        # float32 sums of up to 40 terms, and 1e-5 for a short answer
        assert answer.logp == pytest.approx(wanted, rel=1e-6, abs=1e-5)
        assert answer.sampler_logp == answer.logp


def test_an_answer_has_the_seed_of_its_number(loaded):
    _, model, params = loaded("llama-gqa")
    how = {"max_new": 12, "stop": STOPS}
    found = generate(model, params, MANY, n=3, seed=5, **how)
    for number in (0, 4, 35):
        [again] = generate(model, params, [MANY[number // 3]], seed=5 + number, **how)
        np.testing.assert_array_equal(again.tokens, found[number].tokens)


def test_tempered_draws_have_the_log_probability_of_the_sampler(loaded):
    _, model, params = loaded("llama-gqa")
    how = {"max_new": 1, "stop": (), "temperature": 0.5, "top_k": 3, "n": 40}
    found = generate(model, params, PROMPTS[:1], **how)
    shares = {int(a.tokens[0]): np.exp(a.sampler_logp) for a in found}
    assert len(shares) == 3
    assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
    logps = {int(a.tokens[0]): a.logp for a in found}
    for a, b in itertools.combinations(shares, 2):
        ratio = np.log(shares[a] / shares[b])
        assert ratio == pytest.approx((logps[a] - logps[b]) / 0.5, abs=1e-5)


def test_an_answer_that_no_stop_token_ends_says_so(loaded):
    _, model, params = loaded("llama-gqa")
    found = generate(model, params, MANY, max_new=8, stop=STOPS, n=4)
    assert {a.stopped for a in found} == {True, False}
    assert all(a.stopped or len(a.tokens) == 8 for a in found)
    assert {a.stop for a in found} <= {*STOPS, None}


def test_draws_depend_on_the_seed(loaded):
    assert sample(loaded, seed=0) != sample(loaded, seed=1)


def test_equal_prompts_get_different_draws(loaded):
    first, second, *_ = sample(loaded, prompts=[PROMPTS[0]] * 4)
    assert first != second


@pytest.mark.slow
def test_a_mesh_gives_the_tokens_of_one_device(loaded):
    mesh = Mesh(data=2, fsdp=2, tensor=2)
    assert sample(loaded, temperature=0, mesh=mesh) == sample(loaded, temperature=0)


@pytest.mark.slow
def test_a_long_prompt_is_read_whole(loaded):
    _, model, params = loaded("llama-gqa")
    prompt = np.random.default_rng(0).integers(4, 264, 100)
    at = np.arange(100)[None]
    with jax.set_mesh(model.mesh):
        rows = (prompt[None], at, np.ones_like(at), np.zeros_like(at))
        hidden, head, *_ = jax.jit(model.forward)(params, *rows)
    [tokens] = sample(loaded, prompts=[prompt], max_new=1, temperature=0)
    assert tokens == [int(jnp.argmax(head.logits(hidden[0, -1])))]


def test_no_prompts_give_no_responses(loaded):
    assert sample(loaded, prompts=[]) == []


def test_top_k_keeps_the_k_likeliest():
    kept = restrict(jnp.array([[1.0, 3.0, 2.0, 0.0]]), 2, 1.0)
    np.testing.assert_array_equal(np.isfinite(kept), [[False, True, True, False]])


@pytest.mark.parametrize("top_p, count", [(0.4, 1), (0.6, 2), (0.8, 3), (0.95, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, count):
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))
    assert np.isfinite(restrict(logits, 0, top_p)).sum() == count


def test_top_p_counts_within_top_k():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    assert np.isfinite(restrict(logits, 2, 0.55)).sum() == 1


def test_the_top_token_alone_is_greedy(loaded):
    assert sample(loaded, top_k=1) == sample(loaded, temperature=0)


REFUSED = {
    "n": ({"n": 0}, "n: got 0, wanted at least 1"),
    "max_new": ({"max_new": 0}, "max_new: got 0, wanted at least 1"),
    "batch_size": ({"batch_size": 0}, "batch_size: got 0, wanted at least 1"),
    "temperature": ({"temperature": -1.0}, "temperature: got -1.0, wanted 0"),
    "top_k": ({"top_k": 265}, r"top_k: got 265, wanted 0 \(all\) to 264"),
    "top_p": ({"top_p": 0.0}, "top_p: got 0.0, wanted more than 0, at most 1"),
    "empty": ({"prompts": [np.array([], np.int32)]}, "prompt 0 is empty"),
    "ids": ({"prompts": [np.array([264])]}, "prompt 0: got ids 264 to 264, wanted 0 to 263"),
    "length": ({"max_new": 124}, "prompt 0: 5 tokens and max_new 124 make 129, more than .* 128"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_arguments_out_of_range_are_refused(loaded, options, message):
    with pytest.raises(UserError, match=message):
        sample(loaded, **options)
