"""Prompts that some responses of a record have for themselves: a rationale's, a revision's."""

from __future__ import annotations

from .fields import Field
from .records import HUMAN, TURN, Record
from .turns import content_of

WHY = "Another answer is:\n{rejected}\n\nWhy is the first answer better?"
"""What a rationale answers, after the chosen response."""
REVISE = "Give a better answer."
"""What a revision answers, after the previous response."""


def why(record: Record) -> Record:
    """A pair and a rationale: the rationale gets a prompt that shows both responses."""
    chosen, rejected, _ = record.responses
    asked = _follow_up(record.prompt, chosen, WHY.format(rejected=_content(rejected)))
    return record._replace(prompts=(record.prompt, record.prompt, asked))


def revisions(record: Record) -> Record:
    """A pair: adds each response as a revision of each, after a prompt that shows the revised."""
    chosen, rejected = record.responses
    after_c, after_r = (_follow_up(record.prompt, y, REVISE) for y in record.responses)
    return record._replace(
        responses=(chosen, rejected, chosen, rejected, rejected, chosen),
        prompts=(record.prompt, record.prompt, after_r, after_c, after_r, after_c),
    )


def _follow_up(prompt: Field, answer: Field, request: str) -> Field:
    """The prompt with an answer, and a request that comes after it."""
    if isinstance(prompt, str):
        if prompt.endswith(TURN):
            return f"{prompt}{answer}{HUMAN} {request}{TURN}"
        return f"{prompt}{answer}\n\n{request}\n\n"
    assert not isinstance(answer, str)
    return [*prompt, *answer, {"role": "user", "content": request}]


def _content(response: Field) -> str:
    return response.strip() if isinstance(response, str) else content_of(response)
