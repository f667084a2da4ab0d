"""The settings of `compare`: the models, what scores their answers, and further measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .sample import Sample
from .types import Text


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Models that answer the same prompts, and the measurements of their answers."""

    models: tuple[Text, ...]
    """Two or more: folders of models, adapters or finished runs, or hub repositories. The first is
    the baseline; each other one is compared with it."""
    by: Any
    """The scorer, or a list of scorers, as in `score`."""
    combine: Literal["sum", "mean", "min"] = "sum"
    """How the scores of several scorers become one, as in `score`; `votes` compares the answers of
    one model with each other, not models."""
    reference: Text | None = None
    """Folder or hub repository of a model with the same tokenizer: the KL divergence of every model
    from it is measured."""
    held_out: Text | None = None
    """Pairs with `chosen` and `rejected`: the change of their log-probabilities from the reference
    is measured."""


def problems(compare: Compare, sample: Sample) -> dict[str, str]:
    """Complaints about settings that are valid by themselves, by the name of the setting.

    Args:
      compare: the settings.
      sample: how the answers are drawn.
    """
    found: dict[str, str] = {}
    if len(compare.models) < 2:
        found["models"] = (
            f"give at least two, the first is the baseline (got {len(compare.models)})"
        )
    if compare.reference is not None:
        plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        for name, value in plain.items():
            if getattr(sample, name) != value:
                found[name] = (
                    f"with a reference it is {value:g}, because the KL divergence is of the "
                    f"distribution that the answers are drawn from (got {getattr(sample, name):g})"
                )
    if compare.held_out is not None and compare.reference is None:
        found["held_out"] = "the change is measured from a reference; give one"
    if compare.held_out is not None and sample.chat_template_kwargs:
        found["chat_template_kwargs"] = (
            "held-out pairs do not read it; give them a column chat_template_kwargs instead, and "
            "so the prompts"
        )
    return found
