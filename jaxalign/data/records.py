"""Records of a preference data set: a prompt and its responses, recognized by their columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import UserError, nearest
from ..shown import listed
from .fields import CHATS, COLUMNS, NO_ROLES, Field, Raw, Roles, field, fields, label, text
from .turns import Turn, read_json

TURN = "\n\nAssistant:"
"""What the last turn of an HH transcript begins with; the prompt ends just after it."""
HUMAN = "\n\nHuman:"
"""What a turn of the human in an HH transcript begins with."""
RENDERED = re.compile(r"<([|\uff5c])[^<>|\uff5c]+\1>|<(start|end)_of_turn>|\[/?INST\]")
"""A control token of a chat template, in a text."""
PAIR = ("chosen", "rejected")
VARIABLES = "chat_template_kwargs"
INSTRUCTIONS = ("system", "developer")
"""Roles of turns that instruct the model."""
SCHEMAS = (
    "prompt/chosen/rejected, chosen/rejected, prompt/responses, prompt/completion/label, "
    "prompt/completion, messages, conversations, text"
)

Columns = Mapping[str, float | tuple[float, ...]]
"""Numbers of a record by name; `scores` has one for each response."""


class Record(NamedTuple):
    """A prompt and its responses, all of them text or all of them turns."""

    prompt: Field
    responses: tuple[Field, ...]
    names: tuple[str, ...]  # columns that the responses came from
    label: float | None  # 1: desirable, 0: undesirable, None: not said
    where: str  # "path line 118", for messages
    columns: Columns  # what else the objective reads
    prompts: tuple[Field, ...] = ()  # of each response; (): all have the record's
    tools: list[Any] | None = None  # schemas of functions, for the chat template
    variables: Mapping[str, Any] = {}  # what the chat template may read besides
    weight: float = 1.0  # of its loss
    repeated: bool = False  # whether a response repeated the prompt, and was cut

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
    """A record whose fields are all turns as soon as one of them is."""
    if any(isinstance(found, list) for found in (prompt, *responses)):
        prompt = _as_turns(prompt, "user")
        responses = tuple(_as_turns(response, "assistant") for response in responses)
    return Record(prompt, responses, names, label, where, {})


def recognize(raw: Raw, where: str, roles: Roles = NO_ROLES) -> Record | None:
    """A raw record without nulls, by the columns it has; None: two responses share no prompt.

    Args:
      raw: the record.
      where: its place, for messages.
      roles: names of roles in the file.

    Raises:
      UserError: the columns are none of `SCHEMAS`, or a value is of the wrong kind.
    """
    record = _recognize(raw, where, roles)
    if record is None:
        return None
    return record._replace(**for_template(raw, where))


def for_template(raw: Raw, where: str) -> dict[str, Any]:
    """The `tools` and `variables` that a raw record gives the chat template, where it has them.

    Raises:
      UserError: a column is of the wrong kind.
    """
    found: dict[str, Any] = {}
    # Templates test whether tools are given, some by `is not none`; an empty list gives none.
    if "tools" in raw and (tools := read_json(raw["tools"], list, f"{where}: 'tools'")):
        found["tools"] = tools
    if VARIABLES in raw:
        found["variables"] = read_json(raw[VARIABLES], dict, f"{where}: '{VARIABLES}'")
    return found


def template_columns(tools: Sequence[Any] | None, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The columns from which `for_template` reads these values; no column for nothing.

    Args:
      tools: schemas of functions.
      variables: what the chat template may read besides.
    """
    return {name: found for name, found in (("tools", tools), (VARIABLES, variables)) if found}


def _recognize(raw: Raw, where: str, roles: Roles) -> Record | None:
    if "chosen" in raw or "rejected" in raw:
        chosen, rejected = (field(raw, name, where, roles) for name in PAIR)
        prompt = _prompt(raw, where, roles)
        if prompt is None:
            return _split_transcripts(chosen, rejected, where)
        return _without_repeats(prompt, (chosen, rejected), where, PAIR)
    if "responses" in raw:
        found = fields(raw, "responses", 2, "two or more to compare", where, roles)
        prompt = field(raw, "prompt", where, roles)
        return _without_repeats(prompt, (*found.values(),), where, (*found,))
    said = label(raw["label"], where) if "label" in raw else None
    chat = next((name for name in CHATS if name in raw), None)
    if "completion" in raw or (said is not None and chat is None):
        prompt, response = (field(raw, name, where, roles) for name in ("prompt", "completion"))
        return _without_repeats(prompt, (response,), where, ("completion",), said)
    if chat is not None:
        return _whole_chat(raw, chat, where, roles, said)
    if "text" in raw:
        whole = text(field(raw, "text", where, roles), "text", where)
        return make_record("", (whole,), where, ("text",))
    near = filter(None, (nearest(k, COLUMNS) for k in raw if k not in COLUMNS))
    hint = next((f"did you mean '{name}'? " for name in near), "") + f"wanted one of: {SCHEMAS}"
    raise UserError(f"{where}: no known columns; got {listed(raw)}; {hint}")


def _prompt(raw: Raw, where: str, roles: Roles) -> Field | None:
    """The prompt of a pair: its own column, or a chat that ends before an answer."""
    if "prompt" in raw:
        return field(raw, "prompt", where, roles)
    for name in CHATS:
        turns = field(raw, name, where, roles) if name in raw else ""
        if isinstance(turns, list) and turns and turns[-1]["role"] != "assistant":
            return turns
    return None


def _whole_chat(raw: Raw, name: str, where: str, roles: Roles, said: float | None) -> Record:
    """A chat: the prompt ends before the first turn of the assistant; with a label, the last."""
    turns = field(raw, name, where, roles)
    if isinstance(turns, str):
        raise UserError(f"{where}: '{name}' is text; wanted messages; call the column 'text'")
    places = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not places:
        raise UserError(f"{where}: '{name}' has no turn of the assistant; drop the row")
    cut = places[0] if said is None else places[-1]
    return Record(turns[:cut], (turns[cut : places[-1] + 1],), (name,), said, where, {})


def _without_repeats(
    prompt: Field,
    responses: tuple[Field, ...],
    where: str,
    names: tuple[str, ...],
    said: float | None = None,
) -> Record | None:
    """A record; where the responses are whole chats that repeat the prompt, they are cut."""
    if isinstance(prompt, str) and (TURN in prompt or RENDERED.search(prompt)):
        cut = tuple(y.removeprefix(prompt) if isinstance(y, str) else y for y in responses)
        if cut != responses:
            return make_record(prompt, cut, where, names, said)._replace(repeated=True)
    asked = _as_turns(prompt, "user")
    whole = [isinstance(y, list) and _is_whole(y, asked) for y in responses]
    if not any(whole):
        return make_record(prompt, responses, where, names, said)
    if names == PAIR and isinstance(prompt, str) and all(whole):
        chosen, rejected = responses
        record = _split_transcripts(chosen, rejected, where)
        if record and prompt.strip() and not _contains(_as_turns(record.prompt, "user"), prompt):
            raise UserError(
                f"{where}: 'prompt' is no turn of the chats in 'chosen' and 'rejected', so what it "
                "is for is unclear; remove it, or give it as a turn of both chats"
            )
        return record and record._replace(repeated=True)
    heads, tails = [], []
    for name, response, is_whole in zip(names, responses, whole, strict=True):
        chat = _as_turns(response, "assistant")
        cut = _after_prompt(chat, asked) if is_whole else 0
        if cut is None:
            raise UserError(
                f"{where}: '{name}' begins with a turn of the {chat[0]['role']}, but does not "
                "repeat the prompt, so where the answer begins is unclear; give the answer alone, "
                "or the whole chat"
            )
        heads.append(_with_system(chat[:cut], asked) if is_whole else asked)
        tails.append(chat[cut:])
    if any(head != heads[0] for head in heads):
        return None
    return make_record(heads[0], tuple(tails), where, names, said)._replace(repeated=True)


def _contains(head: list[Turn], prompt: str) -> bool:
    """Whether a text is a turn of the others in a chat, or a transcript of all of them."""
    asked = [turn["content"] or "" for turn in head if turn["role"] == "user"]
    texts = [content.strip() for content in asked]
    return prompt.strip() in texts or all(content in prompt for content in texts)


def _is_whole(chat: list[Turn], prompt: list[Turn]) -> bool:
    """Whether a response is a whole chat: it begins with another's turn, or with the prompt."""
    if chat and chat[0]["role"] != "assistant":
        return True
    return 0 < len(prompt) < len(chat) and all(map(_same, chat, prompt))


def _after_prompt(chat: list[Turn], prompt: list[Turn]) -> int | None:
    """Where the answer to a prompt begins in a chat that repeats the prompt; None: it does not."""
    asked = [turn for turn in prompt if turn["role"] not in INSTRUCTIONS]
    for end in range(len(asked), len(chat)):
        if chat[end]["role"] == "assistant" and all(map(_same, chat[end - len(asked) :], asked)):
            return end
    return None


def _with_system(head: list[Turn], prompt: list[Turn]) -> list[Turn]:
    """The repeated prompt, with the prompt's own instructions if it lacks them."""
    return head if head and head[0]["role"] in INSTRUCTIONS else prompt


def _same(a: Turn, b: Turn) -> bool:
    texts = ((turn["content"] or "").strip() for turn in (a, b))
    return a["role"] == b["role"] and len(set(texts)) == 1


def _as_turns(found: Field, role: str) -> list[Turn]:
    if isinstance(found, str):
        return [{"role": role, "content": found}] if found else []
    return found


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
