import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from lib.checkpoints import FEW_FAMILIES, in_torch, small_model

from jaxalign.collect.decode import generate, restrict
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
    return [list(tokens) for tokens in generate(model, params, prompts, **options)]


@pytest.mark.parametrize("name", FEW_FAMILIES)
def test_greedy_tokens_equal_those_of_transformers(loaded, name):
    folder, model, params = loaded(name)
    theirs = in_torch(folder)
    ours = generate(model, params, PROMPTS, max_new=40, temperature=0, stop=[2], batch_size=4)
    for prompt, tokens in zip(PROMPTS, ours, strict=True):
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
    options = {"max_new": 20, "batch_size": len(PROMPTS)}
    plain = sample(loaded, **options)
    assert sample(loaded, drawn=seen.append, **options) == plain
    longest_last = sorted(range(len(PROMPTS)), key=lambda i: len(PROMPTS[i]))
    for n, tokens in zip((8, 16, 20), seen, strict=True):
        np.testing.assert_array_equal(tokens, [plain[i][:n] for i in longest_last])


def test_drawing_ends_with_the_last_response(loaded):
    seen = []
    stops = range(265)
    assert sample(loaded, drawn=seen.append, max_new=20, stop=stops) == [[]] * len(PROMPTS)
    assert len(seen) == 1


def test_draws_do_not_depend_on_the_batch(loaded):
    assert sample(loaded, batch_size=4) == sample(loaded, batch_size=3)


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
