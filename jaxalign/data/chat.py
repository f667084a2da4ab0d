"""Messages to text, by the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]


def render(
    tokenizer: PreTrainedTokenizerBase, prompt: Messages, responses: Sequence[Messages], where: str
) -> list[str]:
    """The text of the prompt, ready to be answered, then the text of the prompt and each response.

    Every special token is the template's: none may be added when the text is tokenized.

    Raises:
      UserError: the tokenizer has no chat template, or the template refuses the messages.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            f"{where}: got messages, but the tokenizer has no chat template; "
            "give text, or a model whose tokenizer has a template"
        )
    opens_turn = bool(prompt) and prompt[-1]["role"] != "assistant"
    chats = [(prompt, opens_turn), *(([*prompt, *response], False) for response in responses)]
    try:
        return [
            str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opens))
            if chat
            else ""
            for chat, opens in chats
        ]
    except TemplateError as error:
        roles = [message["role"] for message in chats[-1][0]]
        raise UserError(
            f"{where}: the tokenizer's chat template refused roles {roles}: {error}"
        ) from None
