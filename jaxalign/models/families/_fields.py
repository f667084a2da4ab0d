"""Typed reading of a Hugging Face `config.json`.

A key that could change the mathematics and is not implemented is refused by name; only keys known
to be harmless are ignored. Dropout rates are among the harmless: alignment runs without dropout, so
that a policy at its first step equals its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from ...errors import UserError
from ...shown import shown

T = TypeVar("T")
D = TypeVar("D")

HARMLESS = frozenset(
    {
        # Identity and bookkeeping.
        *("model_type", "architectures", "_name_or_path", "transformers_version", "auto_map"),
        *("dtype", "torch_dtype", "tokenizer_class", "initializer_range", "use_cache"),
        *("_commit_hash", "trust_remote_code", "unsloth_version", "unsloth_fixed"),
        *("is_decoder", "max_sequence_length", "model_max_length"),
        # How a program computes attention and gradients.
        *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
        *("use_flash_attention_2", "_flash_attn_2_enabled", "gradient_checkpointing"),
        # Tokens and generation, which the tokenizer and the generator read.
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
        *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
        *("max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p"),
        *("num_beams", "num_beam_groups", "diversity_penalty", "repetition_penalty"),
        *("length_penalty", "encoder_no_repeat_ngram_size", "num_return_sequences"),
        *("no_repeat_ngram_size", "early_stopping", "suppress_tokens", "begin_suppress_tokens"),
        # Outputs, heads of other tasks, and rewrites of the same mathematics.
        *("return_dict", "output_attentions", "output_hidden_states", "output_scores"),
        *("id2label", "label2id", "num_labels", "classifier_dropout", "problem_type"),
        *("task_specific_params", "finetuning_task"),
        *("chunk_size_feed_forward", "pretraining_tp"),
        # Dropout is off in alignment.
        *("attention_dropout", "hidden_dropout"),
        *("attention_probs_dropout_prob", "hidden_dropout_prob", "residual_dropout"),
        *("embedding_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        # The form of a cache.
        "cache_implementation",
    }
)

_REQUIRED: Any = object()


class Fields:
    """Reads fields of a raw configuration by type, and remembers which were read."""

    def __init__(self, raw: Mapping[str, Any], where: str):
        self.raw, self.where = raw, where
        self.read: set[str] = set()
        self.names: Mapping[str, str] = {}
        """The names of settings in this file, by those that most families use."""

    @overload
    def get(self, key: str, kind: type[T]) -> T: ...
    @overload
    def get(self, key: str, kind: type[T], default: D) -> T | D: ...
    def get(self, key: str, kind: type[T], default: D = _REQUIRED) -> T | D:
        """The value of `key`; null counts as absent.

        Raises:
          UserError: the value is missing and has no default, has another type, or is a number that
            is not positive.
        """
        key = self.names.get(key, key)
        self.read.add(key)
        value: Any = self.raw.get(key)
        if value is None:
            if default is _REQUIRED:
                raise UserError(f"{self.where}: '{key}' is missing; restore the original file")
            return default
        allowed: Any = (int, float) if kind is float else kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{self.where}: {key}: got {shown(value)}, wanted {kind.__name__}")
        if kind in (int, float) and value <= 0:
            raise UserError(f"{self.where}: {key}: got {shown(value)}, wanted a positive number")
        if kind is int and value >= 2**31:
            raise UserError(f"{self.where}: {key}: got {shown(value)}, wanted less than 2**31")
        convert: Any = kind
        return convert(value)

    def nullable(self, key: str, kind: type[T], default: T | None) -> T | None:
        """The value of `key`; unlike with `get`, null is a value, and not `default`."""
        return self.get(key, kind, None if self.names.get(key, key) in self.raw else default)

    def number(self, key: str, default: int) -> int:
        """A count that may be 0."""
        self.read.add(key)
        return 0 if self.raw.get(key, default) == 0 else self.get(key, int, default)

    def refuse_unread(self) -> None:
        """Refuse the first key that no reader read and that is neither off nor harmless.

        Raises:
          UserError: there is such a key; names it.
        """
        for key, value in self.raw.items():
            if key in self.read or key in HARMLESS or not value:
                continue
            raise UserError(
                f"{self.where}: '{key}' = {shown(value)} is not implemented for model_type "
                f"'{self.raw['model_type']}' and may change what the model computes; "
                "remove the key if you know that it does not"
            )
