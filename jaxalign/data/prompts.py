"""Prompts that some responses of a row have for themselves: of a rationale, of a revision."""

from __future__ import annotations

from .schema import HUMAN, TURN, Field, Record

WHY = "Another answer is:\n{rejected}\n\nWhy is the first answer better?"
"""What a rationale answers, after the chosen response."""
REVISE = "Give a better answer."
"""What a revision answers, after the previous response."""


def with_prompts(row: Record, layout: str) -> Record:
    """The row as its layout shows it to the model.

    "Rationales" puts the rationale behind a prompt that shows both responses. "Revised" adds each
    response as a revision of each, behind a prompt that shows what is revised.
    """
    if layout == "Rationales":
        chosen, rejected, _ = row.responses
        why = _follow_up(row.prompt, chosen, WHY.format(rejected=_content(rejected)))
        return row._replace(prompts=(row.prompt, row.prompt, why))
    if layout == "Revised":
        chosen, rejected = row.responses
        after_c, after_r = (_follow_up(row.prompt, y, REVISE) for y in row.responses)
        return row._replace(
            responses=(chosen, rejected, chosen, rejected, rejected, chosen),
            prompts=(row.prompt, row.prompt, after_r, after_c, after_r, after_c),
        )
    return row


def _follow_up(prompt: Field, answer: Field, request: str) -> Field:
    """The prompt with an answer, and a request that comes after it."""
    if isinstance(prompt, str):
        if prompt.endswith(TURN):
            return f"{prompt}{answer}{HUMAN} {request}{TURN}"
        return f"{prompt}{answer}\n\n{request}\n\n"
    assert not isinstance(answer, str)
    return [*prompt, *answer, {"role": "user", "content": request}]


def _content(response: Field) -> str:
    if isinstance(response, str):
        return response.strip()
    return "\n\n".join(message["content"] for message in response)
