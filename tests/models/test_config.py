"""Reading `config.json`, and the rotary embeddings that it means."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib.checkpoints import CONFIGS, SMALL

from jaxalign.errors import UserError
from jaxalign.models.families import read_config
from jaxalign.models.layers.rope import rope_tables, rotate
from jaxalign.models.spec import Rope

LLAMA = SMALL | CONFIGS["llama-gqa"]
LLAMA3 = CONFIGS["llama-tied-llama3"]["rope_parameters"]
NEOX = SMALL | CONFIGS["neox-parallel"]
OPT = SMALL | CONFIGS["opt"]
QWEN = SMALL | CONFIGS["qwen2-tied"]


def rope(raw):
    return read_config(raw).layers[0].attention.rope


def linear(factor):
    """The rotary embedding of the small Llama, with frequencies divided by `factor`."""
    return Rope(tuple(10_000.0 ** (-i / 8) / factor for i in (0, 2, 4, 6)))


def test_both_rope_spellings_give_one_configuration():
    scaling = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    older = LLAMA | {"rope_theta": 500.0, "rope_scaling": scaling}
    assert read_config(older) == read_config(LLAMA | {"rope_parameters": LLAMA3})


def test_both_neox_rotary_spellings_give_one_configuration():
    older = NEOX | {"rotary_pct": 0.5, "rotary_emb_base": 300}
    newer = NEOX | {"rope_parameters": {"rope_theta": 300.0, "partial_rotary_factor": 0.5}}
    assert read_config(older) == read_config(newer)


def test_neox_rotates_a_quarter_of_each_head_by_default():
    assert len(rope(NEOX).frequencies) == 1


def test_a_scaling_kind_may_be_spelt_type():
    raw = LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    assert rope(raw) == linear(4.0)


@pytest.mark.parametrize("kind", [{"type": "linear", "rope_type": "linear"}, {}])
def test_a_scaling_kind_may_be_given_twice_or_left_out(kind):
    raw = LLAMA | {"rope_scaling": {"factor": 4.0} | kind}
    assert rope(raw) == linear(4.0 if kind else 1.0)


def test_llama3_scaling_falls_back_to_the_context_length():
    scaling = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}
    given = scaling | {"original_max_position_embeddings": 128}
    assert rope(LLAMA | {"rope_parameters": scaling}) == rope(LLAMA | {"rope_parameters": given})


def test_dropout_is_read_as_off():
    raw = NEOX | {"attention_dropout": 0.1, "hidden_dropout": 0.1}
    assert read_config(raw) == read_config(NEOX)


def test_null_counts_as_absent():
    raw = LLAMA | {"num_key_value_heads": None}
    assert read_config(raw).layers[0].attention.kv_heads == 4


def test_a_window_that_is_off_is_accepted():
    raw = QWEN | {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 1}
    assert read_config(raw) == read_config(QWEN)


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_implementation": "flash_attention_2", "_attn_implementation": "sdpa"},
        {"use_flash_attention_2": True, "_flash_attn_2_enabled": True},
        {"trust_remote_code": True, "auto_map": {"AutoConfig": "c.C"}, "_name_or_path": "a/b"},
        {"is_decoder": True, "is_encoder_decoder": False, "use_cache": False},
        {"max_sequence_length": 2048, "model_max_length": 4096, "max_length": 20},
        {"torch_dtype": "bfloat16", "dtype": "float16", "transformers_version": "4.40.0"},
        {"pretraining_tp": 2, "gradient_checkpointing": True, "output_attentions": True},
        {"unsloth_version": "2024.9", "unsloth_fixed": True, "quantization_config": None},
        {"architectures": ["LlamaForCausalLM"], "tokenizer_class": "LlamaTokenizer"},
    ],
)
def test_keys_that_change_no_computation_are_accepted(keys):
    assert read_config(LLAMA | keys) == read_config(LLAMA)


REFUSED = {
    "model type": (
        LLAMA | {"model_type": "lama"},
        "'lama' is not supported; supported are cohere, cohere2, .*llama",
    ),
    "quantized": (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config"),
    "not a language model": (
        LLAMA | {"architectures": ["LlamaForTokenClassification"]},
        "got 'LlamaForTokenClassification', wanted a causal language model",
    ),
    "unknown key": (LLAMA | {"qk_norm": True}, "'qk_norm' = True is not implemented"),
    "missing": ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "'hidden_size' is missing"),
    "type": (LLAMA | {"hidden_size": "32"}, "hidden_size: got '32', wanted int"),
    "bool for int": (LLAMA | {"num_hidden_layers": True}, "got True, wanted int"),
    "negative": (LLAMA | {"vocab_size": -1}, "got -1, wanted a positive number"),
    "kv heads": (LLAMA | {"num_key_value_heads": 3}, "4 is not a multiple of .* 3"),
    "width": (NEOX | {"hidden_size": 34}, "hidden_size 34 is not a multiple"),
    "activation": (LLAMA | {"hidden_act": "sliu"}, "hidden_act 'sliu' is .* mean 'silu'"),
    "window that is off": (
        QWEN | {"layer_types": ["sliding_attention"] * 2},
        "layer_types has sliding_attention, and use_sliding_window is false",
    ),
    "kind of layer": (
        QWEN | {"layer_types": ["conv"] * 2},
        "'conv' is not implemented for .*qwen2",
    ),
    "kinds of layers": (QWEN | {"layer_types": ["full_attention"]}, "has 1 entries for 2 layers"),
    "llama window": (LLAMA | {"sliding_window": 64}, "'sliding_window' = 64 is not implemented"),
    "partial rotary": (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not"),
    "odd rotary": (NEOX | {"rotary_pct": 0.4}, "rotary width: got 3, wanted an even number"),
    "rope twice": (
        LLAMA | {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
        "rope_theta is given twice, 10000.0 and 500000.0",
    ),
    "rope key": (LLAMA | {"rope_scaling": {"gamma": 1.0}}, "rotary setting 'gamma'"),
    "rope value": (LLAMA | {"rope_parameters": {"rope_theta": "big"}}, "rope_theta: got 'big'"),
    "norms of sums": (OPT | {"do_layer_norm_before": False}, "do_layer_norm_before = False is not"),
    "width of embeddings": (OPT | {"word_embed_proj_dim": 16}, "word_embed_proj_dim 16 is not"),
    "no final norm": (OPT | {"_remove_final_layer_norm": True}, "'_remove_final_layer_norm' ="),
    "own names": (
        {"model_type": "gpt2", "hidden_size": 32},
        "config.json: 'n_embd' is missing",
    ),
    "kind of text": (
        {"model_type": "gemma3", "text_config": {"model_type": "llama"}},
        "text_config: model_type 'llama' is not implemented for .* 'gemma3'; wanted gemma3_text",
    ),
    "kind of one of two texts": (
        {"model_type": "mistral3", "text_config": {"model_type": "ministral"}},
        "text_config: model_type 'ministral' is not .* 'mistral3'; wanted mistral or ministral3",
    ),
    "no settings of the text": (
        {"model_type": "mistral3"},
        "text_config: '.*' is missing; restore the original file",
    ),
    "setting outside the text": (
        {"model_type": "gemma3", "text_config": {}, "audio_config": {"hidden_size": 8}},
        "'audio_config' = .* is not implemented for model_type 'gemma3'",
    ),
    "setting of the text": (
        {"model_type": "gemma3", "text_config": {"use_bidirectional_attention": True}},
        "text_config: 'use_bidirectional_attention' = True is not implemented",
    ),
    "slope of queries": (
        SMALL | {"model_type": "ministral3", "rope_parameters": {"rope_type": "default"}},
        "rope_parameters: llama_4_scaling_beta is missing",
    ),
    "slope of other queries": (
        LLAMA | {"rope_parameters": {"llama_4_scaling_beta": 0.1}},
        "'llama_4_scaling_beta' is not implemented",
    ),
    "rope factor": (LLAMA | {"rope_scaling": {"type": "linear"}}, "'linear' needs factor"),
    **{
        kind: (LLAMA | {"rope_scaling": {"rope_type": kind, "factor": 2.0}}, f"rope_type '{kind}'")
        for kind in ("proportional", "mrope")
    },
}


@pytest.mark.parametrize("raw, message", REFUSED.values(), ids=REFUSED)
def test_what_is_not_implemented_is_refused_by_name(raw, message):
    with pytest.raises(UserError, match=message):
        read_config(raw)


@pytest.mark.parametrize(
    ("outside", "inside", "tied"),
    [
        ({}, {}, False),
        ({}, {"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}, False),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, True),
    ],
)
def test_a_tie_outside_the_text_goes_before_the_one_in_it(outside, inside, tied):
    text = SMALL | {"num_key_value_heads": 2}
    raw = {"model_type": "mistral3", "text_config": text | inside} | outside
    assert read_config(raw).tied is tied


# Rotary positions


def test_alpha_raises_the_base_at_every_length():
    raw = SMALL | CONFIGS["hunyuan"]
    scaling = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 1.0, "alpha": 50.0}
    base = {"rope_theta": 100.0 * 50.0 ** (12 / 10)}
    assert rope(raw | {"rope_parameters": scaling}) == rope(raw | {"rope_parameters": base})


@pytest.mark.parametrize("name", ["olmo3", "gemma3"])
def test_rotary_settings_without_kinds_of_layers_are_refused(name):
    raw = SMALL | CONFIGS[name] | {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}
    with pytest.raises(
        UserError, match="give the settings of full_attention and sliding_attention"
    ):
        read_config(raw)


def test_linear_scaling_divides_positions():
    plain, scaled = linear(1.0), linear(4.0)
    positions, lengths = jnp.arange(12)[None], jnp.array([[12]])
    chex.assert_trees_all_close(
        rope_tables(scaled, 4 * positions, lengths),
        rope_tables(plain, positions, lengths),
        atol=1e-6,
    )


def test_llama3_scaling_keeps_high_frequencies_and_divides_low_ones():
    scaling = LLAMA3 | {"rope_theta": 1e4, "original_max_position_embeddings": 256}
    raw = LLAMA | {"head_dim": 64}
    plain, scaled = rope(raw), rope(raw | {"rope_parameters": scaling})
    ratio = np.array(plain.frequencies) / np.array(scaled.frequencies)
    np.testing.assert_allclose([ratio[0], ratio[-1]], [1.0, 8.0], rtol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_distance_alone(interleaved):
    rope = Rope((1.0, 0.3, 0.1, 0.03), interleaved)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 12))

    def score(i, j):
        turned = [
            rotate(x, rope, rope_tables(rope, jnp.array([[p]]), jnp.array([[p + 1]])))
            for x, p in ((q, i), (k, j))
        ]
        return jnp.sum(turned[0] * turned[1])

    np.testing.assert_allclose(score(9, 4), score(25, 20), rtol=1e-5)


# Attention
