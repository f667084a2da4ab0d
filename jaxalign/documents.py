"""JSON and YAML from outside, read strictly and within bounds.

A key is given once, a number is finite, and no document nests, grows or refers to itself without
end. What both functions raise is a `ValueError` in words for a message.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .shown import cut, shown

DEPTH = 100
"""How deep lists and objects may nest."""
DIGITS = 300
"""The most digits of an integer, which a float64 still holds."""
NODES = 100_000
"""How many values a YAML document may have, each alias counted with all the values behind it."""
YAML_BYTES = 2**18
"""The largest YAML document."""
POINTER = b"version https://git-lfs"
"""What a file begins with that holds the address of another, which Git LFS has not fetched."""


def refuse_pointer(file: Path) -> None:
    """Refuse a file that is a pointer of Git LFS in place of its contents.

    Raises:
      UserError: it is one.
      OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise UserError(
                f"{file}: a pointer of Git LFS, not the file itself; run `git lfs pull` in its "
                "repository"
            )


def from_json(text: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON document.

    Args:
      text: the document; bytes are UTF-8, maybe with a byte order mark.
      finite: whether NaN and infinite numbers are refused, which JSON does not have.

    Raises:
      ValueError: it is no JSON, or gives a key twice, nests too deeply, or has a number that is not
        finite or has too many digits.
    """
    reader = JsonReader(finite=finite)
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        return reader.checked(reader.decoder.decode(text), text)
    except RecursionError:
        raise too_deep() from None


class JsonReader:
    """A strict decoder of JSON; `checked` is to follow it."""

    def __init__(self, *, finite: bool = True):
        """Take whether NaN and infinite numbers are refused."""
        self._finite, self._odd = finite, False
        self.decoder = json.JSONDecoder(
            object_pairs_hook=_object,
            parse_constant=self._float,
            parse_float=self._float,
            parse_int=_integer,
        )

    def _float(self, text: str) -> float:
        found = float(text)
        self._odd |= not math.isfinite(found)
        return found

    def checked(self, found: Any, text: str) -> Any:
        """What the decoder found in a text, if it is not too deep and its numbers are finite."""
        if self._odd and self._finite:
            key, number = next(x for x in leaves(found) if _is_odd(x[1]))
            name = f"'{cut(key, 80)}' is " if key else ""
            raise ValueError(
                f"{name}{json.dumps(number)}, which is no number of JSON; write null or a number"
            )
        # A document with fewer brackets cannot be too deep.
        if text.count("[") + text.count("{") > DEPTH and _depth_over(found, DEPTH):
            raise too_deep()
        return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal keys, `json` would keep the last without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the key {shown(max(names, key=names.count))} twice")
    return found


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"it has an integer of {len(text):,} digits")
    return int(text)


def _bounded(number: int) -> int:
    if number.bit_length() > 3 * DIGITS:
        raise ValueError("too many digits")
    return number


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted path of every value that is no list and no object, and that value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{at}[{i}]")
    else:
        yield at, value


def _depth_over(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def too_deep() -> ValueError:
    """The error for a document that nests too deeply."""
    return ValueError(f"it nests more than {DEPTH} lists and objects")


def from_yaml(text: str | bytes) -> Any:
    """The value of a YAML document of plain values.

    Raises:
      ValueError: it is no YAML, is larger than the bounds, has a tag that makes no plain value, or
        gives a key twice or a key that is no text; names the line where it is known.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"it has {len(text):,} bytes; the most is {YAML_BYTES:,}")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


class _Loader(yaml.SafeLoader):
    """`SafeLoader` within bounds, whose keys are text and are given once."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._open = 0
        self._sizes: dict[int, tuple[int, int]] = {}
        """{id of a node: its values and its depth, aliases in it included}."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _refused("an alias refers to what contains it", mark)
            return node
        self._open += 1
        if self._open > DEPTH:
            raise _refused(f"it nests more than {DEPTH} lists and mappings", mark)
        node = super().compose_node(parent, index)
        self._open -= 1
        inner = [self._sizes[id(x)] for x in _inner(node)]
        count, depth = 1 + sum(n for n, _ in inner), 1 + max((d for _, d in inner), default=0)
        if count > NODES:
            raise _refused(f"it has more than {NODES:,} values, aliases included", mark)
        if depth > DEPTH:
            raise _refused(f"it nests more than {DEPTH} lists and mappings, aliases included", mark)
        self._sizes[id(node)] = count, depth
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _refused(
                    f"the key {shown(key.value)} is not read as text; quote it", key.start_mark
                )
            if key.value in seen:
                raise _refused(f"the key {shown(key.value)} is given twice", key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            found = super().construct_object(node, deep)
            return _bounded(found) if isinstance(found, int) else found
        except yaml.YAMLError:
            raise
        except Exception as error:  # the constructors of dates, integers and others raise any
            raise _refused(
                f"{shown(node.value)} is no {node.tag.rpartition(':')[2]} ({error}); quote it",
                node.start_mark,
            ) from None


def _inner(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _refused(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
