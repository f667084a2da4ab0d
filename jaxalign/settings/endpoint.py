"""Settings of a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from .types import Count, Rate, Text


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model that answers over the network, and how patiently it is asked."""

    endpoint: Text
    """URL of the endpoint, such as http://localhost:8000/v1."""
    model: Text
    """Name of the model at the endpoint."""
    key_env: Text | None = "OPENAI_API_KEY"
    """Environment variable with the API key, which is never written; none: send no key."""
    cache: Text = "endpoint_cache.jsonl"
    """File of all replies. A request that is in it is not sent again."""
    attempts: Count = 5
    """Most attempts of a request that fails: status 429 or 5xx, a timeout, no connection."""
    timeout: Annotated[float, Gt(0)] = 60.0
    """Seconds to wait for a reply."""
    concurrency: Count = 8
    """Requests in flight at a time."""
    price_in: Rate = 0.0
    """Price of a million tokens of input, for the report."""
    price_out: Rate = 0.0
    """Price of a million tokens of output, for the report."""

    @property
    def answers(self) -> tuple[str, str]:
        """What its replies depend on: the endpoint and the model."""
        return self.endpoint, self.model
