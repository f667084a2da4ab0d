"""Damaged inputs for fuzz tests: values, texts and bytes near valid ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    7,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e-300,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    " ",
    "x",
    "0",
    "nan",
    "\x1b]0;title\x07\x1b[2J",
    "[/x]",
    "m[red]x",
    "../../..",
    "/",
    "~",
    "a" * 3000,
    "\u202eabc",
    "\0",
    "\n",
    [],
    {},
    [None],
    [[]],
    [5],
    ["x"],
    {"x": 1},
    {"": None},
)
"""Values that a field seldom has."""
JSON_WORDS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1",
    "9" * 5000,
    "[" * 3000,
    "{" * 3000,
    '{"a":' * 3000,
    "[]",
    "{}",
    "null",
    '""',
    ",",
    ":",
    '"',
    "\\u0000",
    "\\ud800",
    "\n",
    "\r",
    "\ufeff",
    "\u2028",
    "\x1b[2J",
)
"""Words put anywhere into the text of a JSON file."""
YAML_WORDS = (
    "*a",
    "&a ",
    "<<: *a",
    "!!python/object/apply:os.system ['true']",
    "!!binary aaaa",
    "!!set {a}",
    "- ",
    "? ",
    "|\n",
    ">\n",
    "\t",
    "...\n",
    "---\n",
    "%YAML 9.9\n",
    "[" * 3000,
    "{a: " * 2000,
    "1e999",
    "0x1F",
    "1_000",
    "2001-01-01",
    "~",
    ".inf",
    ".nan",
    "=",
    "\x1b[2J",
    "\0",
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b]\n",
)
"""Words put anywhere into the text of a recipe."""

Place = tuple[Any, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """The path of every value in a tree of dicts and lists, the root first."""
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*at, i))


def found(value: Any, at: Place) -> Any:
    """The value at a path."""
    for key in at:
        value = value[key]
    return value


@st.composite
def odd_value(draw: st.DrawFn, value: Any, most: int = 2) -> Any:
    """A tree of dicts and lists with one to `most` of its values replaced, removed or moved."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.sampled_from(list(places(value))))
        other = draw(
            st.one_of(
                st.sampled_from(ODD),
                st.sampled_from(list(places(value))).map(lambda p, v=value: found(v, p)),
            )
        )
        other = copy.deepcopy(other)
        if not at:
            continue
        *before, key = at
        parent = found(value, tuple(before))
        kind = draw(st.sampled_from(("replace", "replace", "remove", "rename", "wrap", "add")))
        if kind == "replace":
            parent[key] = other
        elif kind == "remove":
            del parent[key]
        elif kind == "wrap":
            parent[key] = draw(st.sampled_from(([parent[key]], {"x": parent[key]})))
        elif isinstance(parent, dict):
            name = draw(st.sampled_from((*map(str, parent), "x", "", "path", "[/x]", "\x1b[2J")))
            parent[name] = parent.pop(key) if kind == "rename" else other
        else:
            parent.insert(key, other)
    return value


@st.composite
def odd_text(draw: st.DrawFn, text: str, words: tuple[str, ...]) -> str:
    """A text with one to three places cut, doubled, moved or with a word put in."""
    for _ in range(draw(st.integers(1, 3))):
        a, b = sorted(draw(st.tuples(*(2 * [st.integers(0, len(text))]))))
        kind = draw(st.sampled_from(("put", "put", "cut", "double", "end", "over")))
        word = draw(st.sampled_from(words))
        text = {
            "put": text[:a] + word + text[a:],
            "cut": text[:a] + text[b:],
            "double": text[:b] + text[a:b] + text[b:],
            "end": text[:a],
            "over": text[:a] + word + text[a + len(word) :],
        }[kind]
    return text


@st.composite
def odd_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with one to three places flipped, cut, doubled or put in."""
    for _ in range(draw(st.integers(1, 3))):
        a, b = sorted(draw(st.tuples(*(2 * [st.integers(0, len(data))]))))
        some = draw(st.binary(min_size=1, max_size=8))
        kind = draw(st.sampled_from(("over", "over", "put", "cut", "double", "end")))
        data = {
            "over": data[:a] + some + data[a + len(some) :],
            "put": data[:a] + some + data[a:],
            "cut": data[:a] + data[b:],
            "double": data[:b] + data[a:b] + data[b:],
            "end": data[:a],
        }[kind]
    return data


@st.composite
def odd_json(draw: st.DrawFn, value: Any) -> bytes:
    """The bytes of a JSON file: of an odd value, of an odd text, or damaged."""
    kind = draw(st.sampled_from(("value", "value", "text", "bytes", "encoding")))
    if kind == "value":
        return json.dumps(draw(odd_value(value))).encode()
    text = json.dumps(value)
    if kind == "text":
        return draw(odd_text(text, JSON_WORDS)).encode("utf-8", "surrogatepass")
    if kind == "encoding":
        return text.encode(draw(st.sampled_from(("utf-16", "utf-8-sig", "utf-32", "cp500"))))
    return draw(odd_bytes(text.encode()))
