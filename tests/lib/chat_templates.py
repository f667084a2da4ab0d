"""The original chat templates of forty model lines, and the text of a chat that is scored by each.

`python -m lib.chat_templates` in `tests/` prints the page `docs/chat-templates.md`.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

from jaxalign.data.spans import Chat, Drafter
from jaxalign.data.template import ChatTemplate, TemplateError

FOLDER = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
NAMES = sorted(p.stem for p in FOLDER.glob("*.jinja") if not p.stem.endswith("_training"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
GEMMA_4 = ("</s>", "<turn|>", "<|tool_response>")
STOPS = {
    **dict.fromkeys(
        ("diffusion_gemma", *(f"gemma4{v}" for v in ("", "_v2", "_v3", "_v4", "_v5"))), GEMMA_4
    ),
    "glm4moe": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|call|>"),
}
"""Stop tokens of generation configurations, where a template ends a turn with none of its own."""
END = re.compile(r"\s*(<[^<>\s]+>)")


def user(text):
    return {"role": "user", "content": text}


def bot(text, **others):
    return {"role": "assistant", "content": text, **others}


SYSTEM = {"role": "system", "content": "Be kind"}
CALL = {"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {"at": 1}}}
RESULT = {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "42"}
REASON = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "because")
CHATS = {
    "one": ([user("Q1")], [bot("A1")]),
    "three": ([SYSTEM, user("Q1")], [bot("A1"), user("Q2"), bot("A2"), user("Q3"), bot("A3")]),
    "reasoning": ([user("Q1")], [bot("A1", **REASON)]),
    "tool": ([user("Q1")], [bot("", tool_calls=[CALL]), RESULT, bot("A2")]),
}


@functools.cache
def drafter(name, opening=None):
    template = ChatTemplate((FOLDER / f"{name}.jinja").read_text(), TOKENS)
    ends = END.match(template.tail)
    stops = STOPS.get(name) or tuple({"</s>", *([ends[1]] if ends else [])})
    return Drafter(template, stops, "</s>" if "</s>" in stops else stops[0], opening)


def scored(name, prompt, response, opening=None):
    """The scored text of each turn."""
    drafts = drafter(name, opening).drafts(Chat(prompt), response)
    return [
        draft.text[a:b] + (draft.end or "" if (a, b) == draft.spans[-1] else "")
        for draft in drafts
        for a, b in draft.spans
    ]


INTRODUCTION = """# Scored text by chat template

The original templates of forty model lines, as the package trl ships them, and the scored text
of four chats. Between ⟦ and ⟧ is a turn of the assistant with its stop token, ↵ is
a line break; everything else is context. The chats: one answer A1; three answers after a system
message; an answer with the reasoning `because`; a call of the tool `look`, its result, and an
answer.

A refusal is an error that names the row: "leaves out" says that the template does not write that
part of the answer, "generation prompt" that it opens an answer in another way than it writes one,
which `data.generation_prompt` settles. Other reasons are the template's own words."""


def cell(name: str, case: str) -> str:
    """The scored turns of a chat, or why it is refused."""
    try:
        turns = scored(name, *CHATS[case])
    except TemplateError as error:
        text = str(error)
        if "generation prompt" in text:
            return "refused: generation prompt"
        return (
            f"refused: {text.partition(';')[0].removeprefix('it ').removesuffix(' of the answer')}"
        )
    shown = (turn.replace("\n", "↵").replace("|", r"\|") for turn in turns)
    return " ".join(f"`⟦{turn}⟧`" for turn in shown)


def page() -> str:
    """The page of the documentation."""
    heading = ("template", "one answer", "three answers", "reasoning", "tool call and answer")
    rows = [heading, ("---",) * len(heading)]
    rows += [(name, *(cell(name, case) for case in CHATS)) for name in NAMES]
    return "\n".join([INTRODUCTION, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


if __name__ == "__main__":
    print(page(), end="")
