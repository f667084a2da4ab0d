"""The settings of `sample`: the prompts, the model and how its answers are drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Interval

from .endpoint import Endpoint
from .types import Count, Rate, Text, WholeNumber


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Answers of a model to the prompts of a file, with their log-probabilities."""

    prompts: Text
    """File of prompts, with a column `prompt`, `messages` or `conversations`; other columns are
    kept. A text goes to the model as it is, messages by the chat template, as in training."""
    model: Text | None = None
    """Hugging Face folder or hub repository, of a model or of an adapter; none: the model that the
    stages before have trained."""
    endpoint: Endpoint | None = None
    """An OpenAI-compatible endpoint whose model answers, instead of `model` (needs the extra
    `endpoint`)."""
    n: Count = 8
    """Number of answers per prompt."""
    temperature: Rate = 1.0
    """Divisor of the logits; 0 takes the most likely token."""
    top_k: WholeNumber = 0
    """Number of most likely tokens to draw from; 0: all."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Draw from the most likely tokens that together have this probability."""
    max_new: Count = 512
    """Maximum number of new tokens per answer."""
    chat_template: str | None = None
    """File with a chat template; none: the tokenizer's."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Values that the chat template reads, as {enable_thinking: false}."""
    limit: Count | None = None
    """Number of prompts, chosen by the seed, so that each round has others; none: all of the
    file."""
    seed: WholeNumber | None = None
    """Seed of the first answer; none: made of the seed of the run and the name of the stage."""
    batch_size: Count = 64
    """Number of answers drawn at a time."""
    part: Count = 1024
    """Answers of a part of the file; a killed process resumes at the first missing part."""


LOCAL = ("top_k", "chat_template", "chat_template_kwargs")
"""The options of a model on the devices that an endpoint does not have."""


def problems(sample: Sample) -> dict[str, str]:
    """Complaints about options that do not fit an endpoint, by the name of the option.

    Args:
      sample: the settings, each valid by itself.
    """
    if sample.endpoint is None:
        return {}
    found: dict[str, str] = {}
    if sample.model is not None:
        found["model"] = f"give a model or an endpoint, not both (got {sample.model!r})"
    for option in dataclasses.fields(sample):
        if option.name in LOCAL and getattr(sample, option.name):
            found[option.name] = "an endpoint has no such option; leave it out"
    return found
