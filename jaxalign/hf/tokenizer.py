"""Tokenizers of checkpoints: reading, fingerprint, the pad token and the stop tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.encode import Encoder
from ..data.store import Examples
from ..documents import leaves
from ..errors import UserError
from ..files import read_json, read_text
from ..models.spec import Spec
from ..shown import cut, shown
from .kinds import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROBE = (
    "Hello world! It's 2024,  don't <b>panic</b>\n\n\tdef f(x):\r\n    return x+1  "
    "Über café 漢字かな🙂 1234567 I'LL"
)

NAMED = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that name special tokens next to `tokenizer.json`."""
LONGEST = 5000
"""Characters of a token or a setting; the time to add a token grows with their square."""
HOLES = 2**16
"""Ids without a token that a small vocabulary may have."""
SLOW = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of tokenizers without a `tokenizer.json`."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint, with its special tokens and chat template.

    `tokenizer.json` is read without changes, except that truncation and padding saved in it are
    off. The tokenizer classes that transformers chooses by model type rebuild parts of it, and can
    give other ids for the same text.

    Raises:
      UserError: `tokenizer.json` is missing or damaged, or transformers makes a tokenizer from it
        that gives other ids.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    file = Path(folder) / "tokenizer.json"
    other = next((name for name in SLOW if (Path(folder) / name).is_file()), None)
    if other and not file.is_file():
        raise UserError(
            f"{file}: missing; {other} is not read; make the file once, in Python: transformers."
            f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        )
    require(file)
    _check_tokens(Path(folder))
    try:
        plain = tokenizers.Tokenizer.from_file(str(file))
        plain.no_truncation()
        plain.no_padding()
        wanted = plain.encode(PROBE, add_special_tokens=False).ids
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        got = tokenizer.encode(PROBE, add_special_tokens=False)
        Encoder(tokenizer)
    except BaseException as error:  # `tokenizers` raises bare exceptions, and panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(
            f"{file}: not a usable tokenizer ({cut(str(error), 300)}); restore it and "
            "tokenizer_config.json from the original"
        ) from error
    if got != wanted:
        raise UserError(
            f"{file}: transformers gives other ids than the file itself on a probe text; got "
            f"{got[:8]}..., wanted {wanted[:8]}...; check tokenizer_config.json"
        )
    return tokenizer


def _check_tokens(folder: Path) -> None:
    """Refuse tokens so long, or ids so large, that making the tokenizer would take hours.

    Raises:
      UserError: a file of the tokenizer is damaged, or has such a token.
    """
    for name in ("tokenizer.json", *NAMED):
        if not (folder / name).is_file():
            continue
        about = read_json(folder / name)
        if name == "tokenizer.json":
            _check_holes(folder / name, about.get("model"))
            about = {"added_tokens": about.get("added_tokens")}
        for key, value in leaves(about):
            long = max(len(key), len(value) if isinstance(value, str) else 0)
            if long > LONGEST and not key.startswith("chat_template"):
                raise UserError(
                    f"{folder / name}: '{cut(key, 60)}' has {long:,} characters, more than a token "
                    "has; restore the original file"
                )


def _check_holes(file: Path, model: Any) -> None:
    """Refuse large ids in a small vocabulary: `tokenizers` prints a line for each hole.

    Raises:
      UserError: the model of the tokenizer has such a vocabulary.
    """
    vocab = model.get("vocab") if isinstance(model, dict) else None
    vocab = vocab if isinstance(vocab, dict) else {}
    ids = [number for number in vocab.values() if isinstance(number, int)]
    if ids and max(ids) > 2 * len(ids) + HOLES:
        token = next(token for token, number in vocab.items() if number == max(ids))
        raise UserError(
            f"{file}: model.vocab: got id {max(ids):,} for {shown(token)} in a vocabulary of "
            f"{len(ids):,} tokens; restore the original file"
        )


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over all that turns messages into ids: tokenizer, chat template, special tokens."""
    total = hashlib.sha256()
    folder = Path(folder)
    named = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    for file in (folder / "tokenizer.json", folder / "chat_template.jinja", *named):
        total.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    keys = ("chat_template", "bos_token", "eos_token", "add_bos_token", "add_eos_token")
    total.update(json.dumps({key: config.get(key) for key in keys}, sort_keys=True).encode())
    return total.hexdigest()


def read_template(file: str | None) -> str | None:
    """The chat template in a file; None for no file.

    Raises:
      UserError: the file cannot be read, or is empty.
    """
    if file is None:
        return None
    template = read_text(Path(file))
    if not template.strip():
        raise UserError(
            f"{file}: an empty chat template; give one that writes the messages, or none for the "
            "tokenizer's own"
        )
    return template


def stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The ids that end an answer.

    They are the tokenizer's EOS, `eos_token_id` of `config.json` and `generation_config.json`, and
    the token by which the chat template ends a turn of the assistant.

    Raises:
      UserError: an `eos_token_id` is no id.
    """
    ids = set()
    for name in ("config.json", "generation_config.json"):
        path = Path(folder) / name
        named = read_json(path).get("eos_token_id") if path.exists() else None
        found = [] if named is None else named if isinstance(named, list) else [named]
        if not all(type(i) is int and 0 <= i < 2**31 for i in found):
            raise UserError(
                f"{path}: eos_token_id: got {shown(named)}, wanted the id of a token or a list of "
                "ids; restore the original file"
            )
        ids |= set(found)
    return Encoder(tokenizer, stops=ids).all_stops()


def pad_token(tokenizer: PreTrainedTokenizerFast, data: Iterable[Examples], spec: Spec) -> str:
    """A pad token that no response ends with: the tokenizer's own, or another special token.

    transformers reads scores at the last token that is not the pad token, on whichever side the
    padding is. If a response ends with the pad token, as EOS often is, transformers would read its
    score one token too early.

    Args:
      tokenizer: the tokenizer of the checkpoint.
      data: the examples whose responses are scored.
      spec: the decoder's configuration.

    Raises:
      UserError: there is no such token.
    """
    eos: Any = tokenizer.eos_token_id
    ends = {eos}.union(*(examples.last_tokens for examples in data))
    special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    by_name = sorted(special, key=lambda token: "pad" not in token.lower())
    for token in (tokenizer.pad_token, *by_name):
        number = tokenizer.get_vocab().get(str(token)) if token else None
        if number is not None and number not in ends and number < spec.vocab:
            return str(token)
    raise UserError(
        "tokenizer_config.json: no pad token but those that end a response, where transformers "
        f"could not tell padding from the end; got pad_token {tokenizer.pad_token!r}; add one"
    )
