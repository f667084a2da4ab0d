import time
from fractions import Fraction

import pytest

from jaxalign.collect.scorers.numbers import answer_number, numbers, whole_number_text

HALF = Fraction(1, 2)

LAST = {
    "The answer is 42.": 42,
    "She pays $1,234.50 in total.": Fraction(123450, 100),
    "It costs 18 dollars": 18,
    "$18.00": 18,
    "-$5": -5,
    "$-5": -5,
    "a loss of -3": -3,
    "\u22127": -7,
    "10-12": 12,
    "5 - 3 = 2": 2,
    "x=2": 2,
    "x=-2": -2,
    "the answer is...18": 18,
    "50%": 50,
    "0.5": HALF,
    ".5": HALF,
    "-.5": -HALF,
    "1/2": HALF,
    "1 1/2 cups": 3 * HALF,
    "-1 1/2": -3 * HALF,
    r"\frac{1}{2}": HALF,
    r"-\frac{1}{2}": -HALF,
    r"3\frac{1}{2}": 7 * HALF,
    r"\boxed{1{,}234}": 1234,
    r"\$70,000": 70_000,
    "1e3": 1000,
    "2.5e-1 m": Fraction(1, 4),
    "25 m2": 25,
    "**18**": 18,
    "_18_": 18,
    "1,2": 2,
    "1,23": 23,
    "1,234,567": 1_234_567,
    "3.5.2": Fraction(7, 2),
    "5/0": 0,
    "on 1/2/2023": 2023,
    "007": 7,
    "(18)": 18,
    "18\n": 18,
    "+4": 4,
    "1E3": 1000,
    "\u7b54\u6848\u662f18\u3002": 18,
}


@pytest.mark.parametrize(("text", "want"), LAST.items(), ids=ascii)
def test_the_last_number_of_a_text_is_read(text, want):
    assert answer_number(text) == want


@pytest.mark.parametrize(
    "text", ["", "none", "B12", "m2", "-", "$", "1" * 301, "\u0663", "e5", "USD18"]
)
def test_a_text_without_a_readable_number_gives_none(text):
    assert answer_number(text) is None


def test_the_first_number_after_the_last_marker_is_read():
    text = "#### 3\nNo, wait.\n#### 1,234 apples, not 5"
    assert answer_number(text, "####") == 1234
    assert answer_number("the answer is 5", "####") is None
    assert answer_number("#### none", "####") is None


SOLUTION = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72"
)


@pytest.mark.parametrize(
    ("text", "want"),
    [(SOLUTION, 72), ("#### 1,234", 1234), ("#### -5", -5), ("$70,000", 70_000), (" 12. ", 12)],
)
def test_the_number_of_a_solution_is_read(text, want):
    assert whole_number_text(text) == want


@pytest.mark.parametrize("text", ["", "1 and 2", "none", "#### none"])
def test_a_text_of_several_numbers_or_none_is_no_number(text):
    assert whole_number_text(text) is None


@pytest.mark.parametrize("text", ["1" * 200_000, "1 " * 100_000, "1,111" * 50_000, "-" * 200_000])
def test_the_time_to_read_numbers_is_linear(text):
    start = time.monotonic()
    numbers(text)
    assert time.monotonic() - start < 5
