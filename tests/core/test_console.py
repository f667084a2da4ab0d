"""The console of the command line prints text from outside as text."""

import errno
import io
import os

import pytest
from rich.table import Table
from rich.text import Text

from jaxalign.console import Terminal

HOSTILE = "a\x1b]0;title\x07b\x1b[2Jc\x9b0m"


def printed(*shown, **options):
    out = io.StringIO()
    Terminal(file=out, width=100, **options).print(*shown)
    return out.getvalue()


def in_a_table(text):
    table = Table(box=None)
    table.add_column(Text(text))
    table.add_row(text)
    return table


@pytest.mark.parametrize("wrap", [str, Text, in_a_table], ids=lambda kind: kind.__name__)
def test_a_control_character_does_not_reach_the_terminal(wrap):
    shown = printed(wrap(HOSTILE))
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert r"a\x1b]0;title" in shown


@pytest.mark.parametrize("text", ["runs/m[/x]", "m[red]x", ":smile: [b]b[/b]"])
def test_brackets_are_printed_as_they_are(text):
    assert printed(text) == text + "\n"


def test_a_terminal_keeps_the_codes_of_its_own_styles():
    assert printed(Text("x", "bold"), force_terminal=True) == "\x1b[1mx\x1b[0m\n"


def test_a_closed_pipe_is_an_error_as_for_print():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with pytest.raises(BrokenPipeError):
        Terminal(file=Closed()).print("x")
