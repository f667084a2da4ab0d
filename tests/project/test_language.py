"""The documentation, the help texts and the docstrings are plain technical English."""

import ast
import contextlib
import re
from pathlib import Path

import pytest

from jaxalign.commands import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
SOURCES = sorted((ROOT / "jaxalign").rglob("*.py"))
# Words with a plainer one, which is named in CONTRIBUTING.md: next to, is, fix, expensive, again.
WORDS = re.compile(
    r"\b(?:beside|stands?(?!-)|lies|mend(?:s|ed|ing)?|dear|anew|alike|whence|those of|that of)\b",
    re.I,
)
# A clause as a noun: "what is scored" for "scored tokens".
CLAUSE = re.compile(
    r"(?:^|[.,;:(]|\b(?:of|to|for|with|and|than|from|by|in)) what is\b(?! it)", re.I
)
# An entry of `Args` is a noun phrase, which reads alone.
ENTRY = re.compile(r"^ {2,}\w+: (?:of|that) .*", re.M)


def odd_words(text):
    return [m.group() for pattern in (WORDS, CLAUSE) for m in pattern.finditer(text)]


def docstrings(path):
    """(name, docstring) of a module and everything in it, the strings under fields too."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kinds):
            for part in node.body:
                if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                    yield f"{path.name}:{part.lineno}", str(part.value.value)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_a_page_is_plain_english(path):
    assert odd_words(path.read_text()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_plain_english(command, capsys):
    argv = [command, "--help"]
    if command in ("train", "reference", "evaluate"):
        argv = [command, "quickstart", "--help"]
    with contextlib.suppress(SystemExit):
        COMMANDS[command](argv[1:])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert shown
    assert odd_words(shown) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_are_plain_english(path):
    wrong = {
        place: found
        for place, text in docstrings(path)
        if (found := odd_words(text) + ENTRY.findall(text))
    }
    assert wrong == {}
