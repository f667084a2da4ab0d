"""Messages: what they say of values from outside is short and harmless."""

import pickle

import pytest

from jaxalign.errors import LINE, RunError, UserError, near_miss
from jaxalign.shown import VALUE, listed, shown


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_a_message_escapes_what_a_terminal_would_obey(kind):
    error = kind("a\x1b]0;title\x07 b\x1b[2J c\x9b0m\ttab\r\nnext \u202eline")
    assert str(error) == r"a\x1b]0;title\x07 b\x1b[2J c\x9b0m" + "\ttab\\r\nnext \\u202eline"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_brackets_in_a_message_are_as_they_were_given():
    assert str(UserError("runs/m[/x] and m[red]x")) == "runs/m[/x] and m[red]x"


def test_a_message_is_bounded_and_keeps_the_remedy_at_its_end():
    line = str(UserError(f"data: got {'x' * 10_000_000}; shorten it"))
    assert len(line) == LINE
    assert line.startswith("data: got xxx")
    assert line.endswith("xxx; shorten it")
    many = str(UserError("\n".join("x" for _ in range(1000))))
    assert many.endswith("… (980 more lines)\nx")


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        ["x" * 10_000] * 10_000,
        {f"k{i}": list(range(1000)) for i in range(1000)},
        10**5000,
        [10**5000],
        b"x" * 1_000_000,
        [[[[[[[[[["x"] * 100] * 100] * 100] * 100]]]]]],
    ],
    ids=["text", "list", "mapping", "integer", "integers", "bytes", "nested"],
)
def test_a_value_is_shown_in_a_bounded_number_of_characters(value):
    assert len(shown(value)) <= VALUE


@pytest.mark.parametrize("value", ["x", 5, [1, "a"], {"a": None}, None, -1.5])
def test_a_short_value_is_shown_as_python_writes_it(value):
    assert shown(value) == repr(value)


def test_names_are_listed_as_far_as_there_is_room_and_counted():
    text = listed(f"column{i}" for i in range(1000))
    assert text.startswith("'column0', 'column1', ")
    assert text.endswith("more)")
    assert len(text) < 900
    assert len(listed(["a" * 10_000])) < 100


def test_a_near_miss_does_not_hide_the_known_names():
    assert near_miss("dpoo", ["dpo", "sft"]) == "did you mean 'dpo'? known: dpo, sft"
    assert near_miss("zzz", ["dpo", "sft"]) == "known: dpo, sft"
    assert len(near_miss("a" * 10_000_000, ["a" * 50])) < 100
