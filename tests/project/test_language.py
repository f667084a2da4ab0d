"""The documentation is plain technical English."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# objectives.md is made of docstrings.
PAGES = [ROOT / "README.md", *sorted(set(ROOT.glob("docs/*.md")) - {ROOT / "docs/objectives.md"})]
# Words with a plainer one, which is named in CONTRIBUTING.md: next to, is, fix, expensive, again.
WORDS = re.compile(
    r"\b(?:beside|stands?|lies|mend(?:s|ed|ing)?|dear|anew|alike|whence|those of|that of)\b", re.I
)
# A clause as a noun: "what is scored" for "scored tokens".
CLAUSE = re.compile(
    r"(?:^|[.,;:(]|\b(?:of|to|for|with|and|than|from|by|in)) what is\b(?! it)", re.I
)


def odd_words(text):
    return [m.group() for pattern in (WORDS, CLAUSE) for m in pattern.finditer(text)]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_a_page_is_plain_english(path):
    assert odd_words(path.read_text()) == []
