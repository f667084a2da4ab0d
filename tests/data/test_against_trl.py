"""Tokens of chats against those of TRL: what transformers renders, from where the prompt ends."""

import re
from typing import Any

import pytest
from lib.chat_templates import CALL, FOLDER, STOPS, SYSTEM, bot, drafter, user
from lib.chats import one
from lib.tokenizers import make_tokenizer

CONTROL = re.compile(r"<\|[^<>\s'\"{}]+\|>|<(?:start|end)_of_turn>")
NAMES = (
    *("cohere2", "gemma3", "glm4moe", "gptoss", "lfm2_2_5_v2", "llama3", "llama3_1"),
    *("phi3", "qwen2_5", "qwen3", "qwen3_5_think"),
)
LOOK = {"name": "look", "description": "looks", "parameters": {"type": "object", "properties": {}}}
PAIRS = {
    "system": {"prompt": [SYSTEM, user("Hi")], "chosen": [bot("yes")], "rejected": [bot("no")]},
    "common": {"prompt": [user("Hi")], "chosen": [bot("no yes")], "rejected": [bot("no green")]},
    "turns": {
        "prompt": [user("Hi"), bot("yes"), user("you?")],
        "chosen": [bot("green")],
        "rejected": [bot("grey")],
    },
    "tool": {
        "prompt": [user("Hi")],
        "chosen": [bot("", tool_calls=[CALL])],
        "rejected": [bot("no")],
        "tools": [{"type": "function", "function": LOOK}],
    },
}
WITHOUT_TOOLS = ("cohere2", "gemma3", "llama3", "phi3")
CASES = [(n, case) for n in NAMES for case in PAIRS if case != "tool" or n not in WITHOUT_TOOLS]


def tokenizer_of(name):
    """A tokenizer with the control tokens of a template, and the ids of its stop tokens."""
    source, stops = (FOLDER / f"{name}.jinja").read_text(), drafter(name).stops
    eos = (STOPS.get(name) or stops[::-1])[0]
    tokenizer = make_tokenizer(chat_template=source, eos_token=eos)
    control = sorted({*CONTROL.findall(source), *stops})
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    return tokenizer, tokenizer.convert_tokens_to_ids(list(stops))


def common(a, b):
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_pair_has_the_ids_of_trl_up_to_its_stop_token(name, case):
    tokenizer, stops = tokenizer_of(name)
    row = PAIRS[case]
    tools = row.get("tools")
    found = one(row, tokenizer=tokenizer, stops=stops, max_length=8192)

    def ids(turns, **options) -> Any:
        return tokenizer.apply_chat_template(turns, tools=tools, return_dict=False, **options)

    asked = ids(row["prompt"], add_generation_prompt=True)
    theirs = [ids(row["prompt"] + row[side]) for side in ("chosen", "rejected")]
    start = min(common(asked, whole) for whole in theirs)
    for whole, branch in zip(theirs, found.branches, strict=True):
        ours = [*found.prompt, *branch.ids]
        assert ours[-1] in stops
        # TRL goes on after the stop token, or, where the template ends the chat without, lacks it.
        assert ours[: len(whole)] == whole[: len(ours)]
        assert len(ours) <= len(whole) + 1
        scored = [False] * len(found.prompt) + [bool(x) for x in branch.scored]
        assert scored == [i >= start for i in range(len(ours))]
