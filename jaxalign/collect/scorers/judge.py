"""A scorer that asks a model behind an endpoint."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from ...data.fields import field
from ...errors import UserError
from ...files import read_text
from ...settings import score
from ..endpoint import Ask, Client
from .answers import Answered, Scored, text_of

PLACE = re.compile(r"\{(prompt|a|b)\}")
VERDICT = re.compile(r"\[\[([ABC])\]\]")
RATING = re.compile(r"\[\[(10|[1-9])(?:\.0)?\]\]")
FIRST_WINS = {"A": 1.0, "B": 0.0, "C": 0.5}
UNDECIDED = 0.5
NEUTRAL = 5.5
"""The rating of an answer that has none, the middle of 1 and 10."""


class _Pair(NamedTuple):
    """Two texts that are compared, in this order."""

    prompt: str
    a: str
    b: str


class Judge:
    """A model that compares the answers of a prompt in both orders, or rates each one."""

    def __init__(self, record: score.Judge):
        """Read the template and the cache.

        Args:
          record: the settings.

        Raises:
          UserError: the template lacks a place, or the key or the `openai` package is missing.
          RunError: the cache is damaged.
        """
        self._record, self._client = record, Client(record)
        if record.template is None:
            file = resources.files("jaxalign.collect.scorers") / f"judge_{record.mode}.txt"
            self._template = file.read_text(encoding="utf-8")
        else:
            self._template = read_text(Path(record.template))
        wanted = {"prompt", "a", "b"} if record.mode == "pairs" else {"prompt", "a"}
        if (found := set(PLACE.findall(self._template))) != wanted:
            names = [f"{{{name}}}" for name in sorted(wanted ^ found)]
            raise UserError(
                f"judge.template: {record.template}: {', '.join(names)} "
                f"{'is missing' if wanted - found else 'has no text'}; a template for "
                f"{record.mode} has {', '.join(f'{{{name}}}' for name in sorted(wanted))}"
            )
        self._compared = self._flipped = self._first = self._decided = self._undecided = 0

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The options that the scores depend on, and the SHA-256 of the template."""
        names = ("answers", "mode", "against", "max_tokens", "name", "weight", "attempts")
        about = {name: getattr(self._record, name) for name in names}
        return about | {"template": hashlib.sha256(self._template.encode()).hexdigest()}

    def score(self, rows: Sequence[Answered]) -> Scored:
        """Score the answers of every row; see `Scorer`."""
        if self._record.mode == "rating":
            return Scored(self._rated(rows))
        return Scored(self._compare(rows))

    def _rated(self, rows: Sequence[Answered]) -> list[list[float]]:
        asked = [_Pair(text_of(row.prompt), text, "") for row in rows for text in row.texts]
        found = iter(self._read(asked, lambda text: _last(RATING, text)))
        ratings = [[next(found) for _ in row.responses] for row in rows]
        return [[NEUTRAL if x is None else float(x) for x in row] for row in ratings]

    def _compare(self, rows: Sequence[Answered]) -> list[list[float]]:
        """The share of the comparisons that each answer wins, a tie as half."""
        rivals = [self._rivals(row) for row in rows]
        asked = []
        for row, pairs in zip(rows, rivals, strict=True):
            prompt = text_of(row.prompt)
            asked += [_Pair(prompt, *order) for _, _, a, b in pairs for order in ((a, b), (b, a))]
        found = iter(self._read(asked, lambda text: _last(VERDICT, text)))
        values = []
        for row, pairs in zip(rows, rivals, strict=True):
            won: list[list[float]] = [[] for _ in row.responses]
            for i, j, _, _ in pairs:
                share = self._won(next(found), next(found))
                won[i].append(share)
                if j is not None:
                    won[j].append(1 - share)
            values.append([sum(shares) / len(shares) for shares in won])
        return values

    def _rivals(self, row: Answered) -> list[tuple[int, int | None, str, str]]:
        """(number, number of the other or None, text, text) of the answers to compare."""
        texts, name = row.texts, self._record.against
        if name is not None:
            other = text_of(field(row.row, name, row.where))
            return [(i, None, text, other) for i, text in enumerate(texts)]
        if len(texts) < 2:
            raise UserError(
                f"{row.where}: has one answer and none to compare it with; give the column of "
                "another in `against`, or set mode: rating"
            )
        return [(i, j, texts[i], texts[j]) for i, j in itertools.combinations(range(len(texts)), 2)]

    def _won(self, forward: str | None, backward: str | None) -> float:
        """The share of the first text of a pair, from its verdicts in both orders; counts them."""
        shares = [None if v is None else FIRST_WINS[v] for v in (forward, backward)]
        self._decided += sum(share not in (None, 0.5) for share in shares)
        self._first += sum(share == 1 for share in shares)
        ahead, behind = (UNDECIDED if share is None else share for share in shares)
        if None not in shares:
            self._compared += 1
            self._flipped += ahead != 1 - behind
        return (ahead + 1 - behind) / 2

    def _read(self, asked: Sequence[_Pair], read: Callable[[str], str | None]) -> list[str | None]:
        """The verdict of each request; one that has none is sent again, up to `attempts` times."""
        requests = [self._request(pair) for pair in asked]
        found: list[str | None] = [None] * len(asked)
        for again in range(self._record.attempts):
            open_ = [i for i, verdict in enumerate(found) if verdict is None]
            replies = self._client.ask([Ask(requests[i], again) for i in open_])
            for i, reply in zip(open_, replies, strict=True):
                found[i] = read(reply.texts[0])
        self._undecided += found.count(None)
        return found

    def _request(self, pair: _Pair) -> Mapping[str, Any]:
        texts = pair._asdict()
        # One pass, so that a text with {a} in it stays as it is.
        content = PLACE.sub(lambda match: texts[match[1]], self._template)
        return {
            "messages": [{"role": "user", "content": content}],
            "temperature": 0.0,
            "max_tokens": self._record.max_tokens,
        }

    def report(self) -> dict[str, float]:
        """Requests, tokens and price; requests without a verdict; the bias of the position.

        `flipped`: the share of pairs whose verdict changes with the order; `first`: the share of
        verdicts, without ties, for the answer shown first. Without bias they are 0 and 0.5.
        """
        found = self._client.report() | {"undecided": float(self._undecided)}
        if self._record.mode == "pairs":
            found["flipped"] = self._flipped / max(self._compared, 1)
            found["first"] = self._first / self._decided if self._decided else 0.5
        return found


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    return next(reversed(pattern.findall(text)), None)
