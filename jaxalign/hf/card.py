"""Whether a model is one for chats, by its name and its model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub.repocard import REGEX_YAML_BLOCK

from ..data.encode import Encoder
from ..documents import from_yaml
from .peft import base_folder

WORDS = ("chat", "instruct", "it")
"""Words of a name that say so, as in Qwen2.5-7B-Instruct, Llama-2-7b-chat-hf and gemma-2-2b-it."""
CONVERSATIONAL = "conversational"
"""The tag of the card of a model that was trained on chats."""
TAGS = (CONVERSATIONAL, "chat", "instruct")


class Choice(NamedTuple):
    """Whether a text becomes a message of a chat, and why."""

    chat: bool
    why: str

    def __str__(self) -> str:
        return f"chat: {'on' if self.chat else 'off'}, {self.why}"


def chat_choice(folder: Path, encoder: Encoder) -> Choice:
    """The choice for a model where nobody has made it.

    It is on if there is a chat template and the model says that it answers chats: a word of the
    name of its folder or repository is one of `WORDS`, or a tag of its card is one of `TAGS`. An
    adapter says so too if its base model does. A template from outside the tokenizer is enough.

    Args:
      folder: the folder of the model or of the adapter.
      encoder: its tokenizer and chat template.
    """
    if encoder.template:
        return Choice(True, "a chat template is given; --no-chat gives the text as it is")
    if not encoder.has_template:
        return Choice(False, "the tokenizer has no chat template")
    for place in dict.fromkeys((folder, base_folder(folder))):
        if sign := _sign(place):
            return Choice(
                True,
                f"the tokenizer has a chat template and {sign}; --no-chat gives the text as it is",
            )
    return Choice(
        False,
        "neither the name of the model nor a tag of its card says that it answers chats; --chat "
        "applies the chat template",
    )


def _sign(folder: Path) -> str | None:
    """What says that the model in a folder answers chats."""
    said = set(re.split(r"[^a-z0-9]+", _name(folder).lower()))
    if word := next((word for word in WORDS if word in said), None):
        return f"the name of the model has the word '{word}'"
    if tag := next((tag for tag in TAGS if tag in _tags(folder)), None):
        return f"the model card has the tag '{tag}'"
    return None


def _name(folder: Path) -> str:
    """The name of a folder; in the cache of the hub, of the repository without its owner."""
    folder = folder.expanduser().absolute()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def _tags(folder: Path) -> list[object]:
    """The tags of the model card; a card that is missing or damaged has none."""
    try:
        block = REGEX_YAML_BLOCK.search((folder / "README.md").read_text(encoding="utf-8"))
        about = from_yaml(block[2]) if block else {}
    except (OSError, ValueError):
        return []
    found = about.get("tags") if isinstance(about, dict) else None
    return found if isinstance(found, list) else []
