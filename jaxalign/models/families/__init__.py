"""The model families: one file each, and the index `FAMILIES`.

CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from ...errors import UserError
from ...shown import listed, shown
from ..spec import Spec
from ._family import ExpertNames, Family, WeightNames
from ._fields import Fields

__all__ = ["FAMILIES", "ExpertNames", "Family", "WeightNames", "read_config"]

MODULES = (
    "cohere",
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "granitemoe",
    "hunyuan_v1_dense",
    "lfm2",
    "llama",
    "llama4",
    "llama4_text",
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "mixtral",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
)
FAMILIES: dict[str, Family] = {
    name: importlib.import_module(f".{name}", __name__).FAMILY for name in MODULES
}
"""Every supported family by the `model_type` of its `config.json`."""

CAUSAL = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of architectures whose head gives logits."""
REWARD = "ForSequenceClassification"
"""End of the name of an architecture whose head gives scores."""
IMAGES = "ForConditionalGeneration"
"""End of the name of an architecture that reads images too."""


def read_config(raw: Mapping[str, Any], where: str = "config.json") -> Spec:
    """Read the mathematics of a decoder from the contents of `config.json`.

    Args:
      raw: the parsed file.
      where: name of the file, for messages.

    Raises:
      UserError: an unknown `model_type`, a missing or ill-typed field, or any feature that is not
        implemented; names it.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        # No near miss: qwen3 is not qwen2.
        raise UserError(
            f"{where}: model_type {shown(model_type)} is not supported; supported are "
            f"{listed(FAMILIES, quote='')}"
        )
    family = FAMILIES[model_type]
    quantization = raw.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if quantization and method not in family.quantized:
        raise UserError(
            f"{where}: quantization_config: quantized weights cannot be aligned; "
            "use the unquantized checkpoint"
        )
    ends = (*CAUSAL, REWARD) if family.text is None else (*CAUSAL, REWARD, IMAGES)
    for name in _architectures(raw, where):
        if not name.endswith(ends):
            raise UserError(
                f"{where}: architectures: got {shown(name)}, wanted a causal language model "
                f"(...ForCausalLM) or a reward model (...{REWARD}); use the checkpoint with "
                "such a head"
            )
    fields = Fields(raw, where)
    fields.read.add("quantization_config")
    fields = fields if family.text is None else family.text.of(fields)
    spec = family.read(fields)
    fields.refuse_unread()
    return dataclasses.replace(spec, family=model_type, scores=_scores(raw, where))


def _architectures(raw: Mapping[str, Any], where: str) -> list[str]:
    """The names of the class in transformers, mostly one."""
    found = raw.get("architectures") or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(
            f"{where}: architectures: got {shown(found)}, wanted a list of names; restore the "
            "original file"
        )
    return found


def _scores(raw: Mapping[str, Any], where: str) -> int:
    """The number of labels of a sequence classifier, which its head scores; 0 for other heads.

    transformers leaves out both keys if there are two labels.
    """
    if not any(name.endswith(REWARD) for name in _architectures(raw, where)):
        return 0
    named, count = raw.get("id2label"), raw.get("num_labels")
    if not isinstance(named, dict | None) or not isinstance(count, int | None):
        raise UserError(
            f"{where}: id2label, num_labels: got {shown(named)}, {shown(count)}; wanted labels"
        )
    found = {len(named)} if named else set()
    found |= {count} if count is not None else set()
    if len(found) > 1 or 0 in found:
        raise UserError(
            f"{where}: id2label has {len(named or ())} labels, num_labels is {count}; they must "
            "agree; restore the original file"
        )
    return found.pop() if found else 2
