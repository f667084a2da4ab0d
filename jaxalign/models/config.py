"""What a decoder computes, read from a Hugging Face `config.json` and nothing else.

A key that could change the mathematics and is not implemented is refused by name; only keys known
to be harmless are passed over. Dropout rates are among the harmless: alignment runs without
dropout, so that a policy at its first step equals its reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ..errors import UserError, near_miss

Raw = Mapping[str, Any]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}

REWARD = "ForSequenceClassification"
"""End of the architecture's name where the head gives scores."""

HARMLESS = frozenset(
    {
        # Identity and bookkeeping.
        *("model_type", "architectures", "_name_or_path", "transformers_version", "auto_map"),
        *("dtype", "torch_dtype", "tokenizer_class", "initializer_range", "use_cache"),
        *("_attn_implementation", "_attn_implementation_autoset", "gradient_checkpointing"),
        *("unsloth_version", "unsloth_fixed"),
        # Tokens and generation: the tokenizer's and the generator's business.
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
        *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p"),
        *("num_beams", "num_beam_groups", "diversity_penalty", "repetition_penalty"),
        *("length_penalty", "encoder_no_repeat_ngram_size", "num_return_sequences"),
        # Outputs, heads of other tasks, and rewrites of the same mathematics.
        *("return_dict", "id2label", "label2id", "num_labels", "classifier_dropout"),
        "problem_type",
        *("chunk_size_feed_forward", "pretraining_tp"),
        # Dropout is off in alignment.
        *("attention_dropout", "hidden_dropout"),
        *("attention_probs_dropout_prob", "hidden_dropout_prob"),
        # Read only where a sliding window is used, which is refused.
        "max_window_layers",
    }
)
ROPE_KEYS = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"),
    *("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding: which part of a head turns, and how fast."""

    theta: float
    """Base of the geometric series of frequencies."""
    width: int
    """Leading dimensions of a head that are rotated; the others pass through."""
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    """Frequencies are divided by this (linear), or only the low ones (llama3)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_positions: int = 0
    """Context length before scaling, tokens; llama3 only."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The mathematics of one decoder. Widths are counts of scalars."""

    family: str
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    max_positions: int
    """Longest sequence the checkpoint was trained on, tokens."""
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"]
    rope: Rope
    gated: bool
    """Feed-forward is down(act(gate(x)) * up(x)) rather than down(act(up(x)))."""
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    parallel_residual: bool
    """x + attention(norm(x)) + mlp(norm(x)) rather than one after the other."""
    tied: bool
    """The head is the transposed embedding table; a reward head never is."""
    scores: int = 0
    """Numbers that a reward head, in place of the unembedding, gives; 0: there is none."""

    @classmethod
    def from_hf(cls, raw: Raw, where: str = "config.json") -> ModelConfig:
        """A configuration from the contents of `config.json`.

        Args:
          raw: the parsed file.
          where: name of the file, for messages.

        Raises:
          UserError: an unknown `model_type`, a missing or ill-typed field, or any feature that is
            not implemented; names it.
        """
        family = raw.get("model_type")
        if family not in FAMILIES:
            hint = near_miss(str(family), FAMILIES)
            raise UserError(f"{where}: model_type '{family}' is not supported; {hint}")
        if raw.get("quantization_config"):
            raise UserError(
                f"{where}: quantization_config: quantized weights cannot be aligned; "
                "use the unquantized checkpoint"
            )
        for name in raw.get("architectures") or ():
            if not name.endswith(("ForCausalLM", REWARD)):
                raise UserError(
                    f"{where}: architectures: got {name}, wanted a causal language model "
                    f"(...ForCausalLM) or a reward model (...{REWARD}); use the checkpoint with "
                    "such a head"
                )
        fields = _Fields(dict(raw), where)
        config = FAMILIES[family](fields)
        fields.refuse_unread()
        return dataclasses.replace(config, scores=_scores(raw, where))


def _scores(raw: Raw, where: str) -> int:
    """Labels of a sequence classifier, which are the numbers of its head; 0 for a language model.

    transformers leaves out both keys where there are two.
    """
    if not any(name.endswith(REWARD) for name in raw.get("architectures") or ()):
        return 0
    named, count = raw.get("id2label"), raw.get("num_labels")
    if not isinstance(named, dict | None) or not isinstance(count, int | None):
        raise UserError(f"{where}: id2label, num_labels: got {named!r}, {count!r}; wanted labels")
    found = {len(named)} if named else set()
    found |= {count} if count is not None else set()
    if len(found) > 1 or 0 in found:
        raise UserError(
            f"{where}: id2label has {len(named or ())} labels, num_labels is {count}; they must "
            "agree; restore the original file"
        )
    return found.pop() if found else 2


_REQUIRED = object()


class _Fields:
    """Reads fields of a raw configuration by type, and remembers which were read."""

    def __init__(self, raw: dict[str, Any], where: str):
        self.raw, self.where, self.read = raw, where, set()

    def get(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The value of `key`; null counts as absent."""
        self.read.add(key)
        value = self.raw.get(key)
        if value is None:
            if default is _REQUIRED:
                raise UserError(f"{self.where}: '{key}' is missing; restore the original file")
            return default
        allowed = (int, float) if kind is float else (kind,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{self.where}: {key}: got {value!r}, wanted {kind.__name__}")
        if kind in (int, float) and value <= 0:
            raise UserError(f"{self.where}: {key}: got {value!r}, wanted a positive number")
        return kind(value)

    def refuse_unread(self) -> None:
        """Refuse the first key that nothing reads and that is neither off nor harmless."""
        for key, value in self.raw.items():
            if key in self.read or key in HARMLESS or not value:
                continue
            raise UserError(
                f"{self.where}: '{key}' = {value!r} is not implemented for model_type "
                f"'{self.raw['model_type']}' and may change what the model computes; "
                "remove the key if you know that it does not"
            )


def _gpt_neox(f: _Fields) -> ModelConfig:
    biased = f.get("attention_bias", bool, True)
    heads = f.get("num_attention_heads", int)
    return _checked(
        f,
        kv_heads=heads,
        head_width=_head_width(f),
        norm="layer",
        norm_eps=f.get("layer_norm_eps", float, 1e-5),
        activation=_activation(f, "gelu"),
        rope=_rope(f, partial=0.25),
        gated=False,
        qkv_bias=biased,
        out_bias=biased,
        mlp_bias=True,
        parallel_residual=f.get("use_parallel_residual", bool, True),
    )


def _llama(f: _Fields) -> ModelConfig:
    biased = f.get("attention_bias", bool, False)
    mlp_bias = f.get("mlp_bias", bool, False)
    return _gated_rms(f, qkv_bias=biased, out_bias=biased, mlp_bias=mlp_bias)


def _qwen2(f: _Fields) -> ModelConfig:
    _refuse_sliding_window(f)
    return _gated_rms(f, qkv_bias=True, out_bias=False, mlp_bias=False)


def _gated_rms(f: _Fields, **biases: bool) -> ModelConfig:
    """What Llama and Qwen2 share: all but where they have biases."""
    return _checked(
        f,
        kv_heads=f.get("num_key_value_heads", int, f.get("num_attention_heads", int)),
        head_width=f.get("head_dim", int, None) or _head_width(f),
        norm="rms",
        norm_eps=f.get("rms_norm_eps", float, 1e-6),
        activation=_activation(f, "silu"),
        rope=_rope(f, partial=1.0),
        gated=True,
        parallel_residual=False,
        **biases,
    )


FAMILIES: dict[str, Callable[[_Fields], ModelConfig]] = {
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "qwen2": _qwen2,
}


def _checked(f: _Fields, **fields: Any) -> ModelConfig:
    """Add the fields that all families share, and check that the sizes fit one another."""
    config = ModelConfig(
        family=f.raw["model_type"],
        vocab=f.get("vocab_size", int),
        width=f.get("hidden_size", int),
        layers=f.get("num_hidden_layers", int),
        heads=f.get("num_attention_heads", int),
        mlp_width=f.get("intermediate_size", int),
        max_positions=f.get("max_position_embeddings", int),
        tied=f.get("tie_word_embeddings", bool, False),
        **fields,
    )
    if config.heads % config.kv_heads:
        raise UserError(
            f"{f.where}: num_attention_heads {config.heads} is not a multiple of "
            f"num_key_value_heads {config.kv_heads}; restore the original file"
        )
    if config.rope.width % 2 or not 0 < config.rope.width <= config.head_width:
        raise UserError(
            f"{f.where}: rotary width: got {config.rope.width}, wanted an even number up to the "
            f"head width {config.head_width}; check partial_rotary_factor"
        )
    return config


def _head_width(f: _Fields) -> int:
    width, heads = f.get("hidden_size", int), f.get("num_attention_heads", int)
    if width % heads:
        raise UserError(
            f"{f.where}: hidden_size {width} is not a multiple of num_attention_heads {heads}; "
            "restore the original file"
        )
    return width // heads


def _activation(f: _Fields, default: str) -> Any:
    name = f.get("hidden_act", str, default)
    if name not in ACTIVATIONS:
        raise UserError(
            f"{f.where}: hidden_act '{name}' is not implemented; {near_miss(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def _refuse_sliding_window(f: _Fields) -> None:
    used = f.get("use_sliding_window", bool, False)
    f.get("sliding_window", int, None)
    other = set(f.get("layer_types", list, [])) - {"full_attention"}
    if used or other:
        raise UserError(
            f"{f.where}: use_sliding_window: sliding-window attention is not implemented; "
            "choose a checkpoint with full attention"
        )


def _rope(f: _Fields, *, partial: float) -> Rope:
    """Rotary settings from either spelling: loose keys and `rope_scaling`, or `rope_parameters`.

    `partial` is the rotated fraction of a head where the file gives none.
    """
    given = _rope_values(f)
    kind = given.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise UserError(
            f"{f.where}: rope_type '{kind}' is not implemented; "
            f"{near_miss(str(kind), ('default', 'linear', 'llama3'))}"
        )
    fraction = float(given.get("partial_rotary_factor", partial))
    if partial == 1.0 and fraction != 1.0:
        raise UserError(
            f"{f.where}: partial_rotary_factor {fraction} is not implemented for model_type "
            f"'{f.raw['model_type']}'; wanted 1"
        )
    head = f.get("head_dim", int, None) if f.raw["model_type"] != "gpt_neox" else None
    rope = Rope(
        theta=float(given.get("rope_theta", 10_000.0)),
        width=int((head or _head_width(f)) * fraction),
    )
    if kind == "default":
        return rope
    wanted = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
    if missing := [key for key in wanted[kind] if key not in given]:
        raise UserError(
            f"{f.where}: rope_type '{kind}' needs {missing[0]}; got {given}; "
            "restore the original file"
        )
    scaling = {key: float(given[key]) for key in wanted[kind]}
    original = given.get("original_max_position_embeddings") or f.get(
        "max_position_embeddings", int
    )
    return dataclasses.replace(
        rope, kind=kind, **scaling, original_positions=int(original) if kind == "llama3" else 0
    )


def _rope_values(f: _Fields) -> dict[str, Any]:
    """All rotary settings of the file under their newer names; one value for each, or an error."""
    loose = {
        "rope_theta": f.get("rope_theta", float, None),
        "partial_rotary_factor": f.get("partial_rotary_factor", float, None),
    }
    sources = [loose, f.get("rope_parameters", dict, {}), f.get("rope_scaling", dict, {})]
    if f.raw["model_type"] == "gpt_neox":
        sources.append(
            {
                "rope_theta": f.get("rotary_emb_base", float, None),
                "partial_rotary_factor": f.get("rotary_pct", float, None),
            }
        )
    merged: dict[str, Any] = {}
    for source in sources:
        for key, value in source.items():
            if key not in ROPE_KEYS:
                raise UserError(
                    f"{f.where}: rotary setting '{key}' is not implemented; "
                    f"{near_miss(key, ROPE_KEYS)}"
                )
            if value is None:
                continue
            name = "rope_type" if key == "type" else key
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
            if name != "rope_type" and not number:
                raise UserError(f"{f.where}: {name}: got {value!r}, wanted a positive number")
            if merged.setdefault(name, value) != value:
                raise UserError(
                    f"{f.where}: {name} is given twice, {merged[name]} and {value}; keep one"
                )
    return merged
