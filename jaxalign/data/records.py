"""Records of a preference data set: a prompt and its responses, recognized by their columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import UserError, near_miss
from .fields import COLUMNS, Field, Raw, field, fields, label, listed, text

TURN = "\n\nAssistant:"
"""What the last turn of an HH transcript begins with; the prompt ends just after it."""
HUMAN = "\n\nHuman:"
"""What a turn of the human in an HH transcript begins with."""
PAIR = ("chosen", "rejected")
SCHEMAS = (
    "prompt/chosen/rejected, chosen/rejected, prompt/responses, prompt/completion/label, "
    "prompt/completion, text"
)

Columns = Mapping[str, float | tuple[float, ...]]
"""Numbers of a record by name; `scores` has one for each response."""


class Record(NamedTuple):
    """A prompt and its responses, all of them text or all of them messages."""

    prompt: Field
    responses: tuple[Field, ...]
    names: tuple[str, ...]  # columns that the responses came from
    label: float | None  # 1: desirable, 0: undesirable, None: not said
    where: str  # "path line 118", for messages
    columns: Columns  # what else the objective reads
    prompts: tuple[Field, ...] = ()  # of each response; (): all have the record's

    @property
    def is_pair(self) -> bool:
        """Whether its responses are a chosen and a rejected one."""
        return self.names == PAIR

    @property
    def is_group(self) -> bool:
        """Whether its responses came from the column `responses`."""
        return self.names[0] == "responses[0]"


def make_record(
    prompt: Field,
    responses: tuple[Field, ...],
    where: str,
    names: tuple[str, ...] = PAIR,
    label: float | None = None,
) -> Record:
    """A record whose fields are all messages as soon as one of them is."""
    if any(isinstance(found, list) for found in (prompt, *responses)):
        prompt = _as_messages(prompt, "user")
        responses = tuple(_as_messages(response, "assistant") for response in responses)
    return Record(prompt, responses, names, label, where, {})


def recognize(raw: Raw, where: str) -> Record | None:
    """A raw record without nulls, by the columns it has; None: two transcripts share no prompt.

    Raises:
      UserError: the columns are none of `SCHEMAS`, or a value is of the wrong kind.
    """
    if "chosen" in raw or "rejected" in raw:
        chosen, rejected = (field(raw, k, where) for k in PAIR)
        if "prompt" not in raw or _is_transcript(raw["prompt"], chosen, rejected):
            return _split_transcripts(chosen, rejected, where)
        return make_record(field(raw, "prompt", where), (chosen, rejected), where)
    if "responses" in raw:
        found = fields(raw, "responses", 2, "two or more to compare", where)
        prompt = field(raw, "prompt", where)
        return make_record(prompt, (*found.values(),), where, (*found,))
    if "completion" in raw or "label" in raw:
        prompt, response = (field(raw, k, where) for k in ("prompt", "completion"))
        said = label(raw["label"], where) if "label" in raw else None
        return make_record(prompt, (response,), where, ("completion",), said)
    if "text" in raw:
        whole = text(field(raw, "text", where), "text", where)
        return make_record("", (whole,), where, ("text",))
    hints = [near_miss(k, COLUMNS) for k in raw if k not in COLUMNS]
    hint = next((h for h in hints if h.startswith("did you mean")), f"wanted one of: {SCHEMAS}")
    raise UserError(f"{where}: no known columns; got {listed(raw)}; {hint}")


def _as_messages(found: Field, role: str) -> list[dict[str, str]]:
    if isinstance(found, str):
        return [{"role": role, "content": found}] if found else []
    return found


def _is_transcript(prompt: Field, chosen: Field, rejected: Field) -> bool:
    """Whether the responses are whole chats that repeat a prompt given as plain text."""
    both = (chosen, rejected)
    return isinstance(prompt, str) and all(
        isinstance(x, list) and len(x) > 1 and x[0]["role"] != "assistant" for x in both
    )


def _split_transcripts(chosen: Field, rejected: Field, where: str) -> Record | None:
    """Cut two transcripts at the boundary of turns where they part; None if at none."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        common = min(len(chosen), len(rejected)) - 1
        cut = next((i for i in range(common) if chosen[i] != rejected[i]), common)
        tails = chosen[cut:] + rejected[cut:]
        if cut < 1 or any(message["role"] != "assistant" for message in tails):
            return None
        return make_record(chosen[:cut], (chosen[cut:], rejected[cut:]), where)
    chosen, rejected = text(chosen, "chosen", where), text(rejected, "rejected", where)
    if TURN not in chosen and TURN not in rejected:
        raise UserError(
            f"{where}: 'chosen' and 'rejected' have no turn {TURN!r} to end the prompt at, "
            "and there is no 'prompt'; add a column 'prompt'"
        )
    turns = [match.end() for match in re.finditer(TURN, chosen)]
    cut = max((end for end in turns if rejected.startswith(chosen[:end])), default=0)
    tails = (chosen[cut:], rejected[cut:])
    # A later turn on either side answers something the other side was never asked.
    if cut == 0 or any(turn in tail for turn in (TURN, HUMAN) for tail in tails):
        return None
    return make_record(chosen[:cut], tails, where)
