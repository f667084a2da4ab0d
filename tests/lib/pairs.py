"""Rows of scored answers, and what `pair` makes of them."""

from hypothesis import strategies as st

from jaxalign.collect.pair import pair_rows
from jaxalign.data.read import fit_records
from jaxalign.data.tally import Tally
from jaxalign.objectives import OBJECTIVES
from jaxalign.settings import Data
from jaxalign.settings.pair import Pair

FINISHED = {
    "finishes": ["stop", "stop"],
    "tokens": [5, 6],
    "logps": [-2.0, -4.0],
    "sampler_logps": [-1.5, -3.0],
    "seeds": [7, 8],
}
"""The answer columns of two answers."""

OPTIONS = {
    "best_worst": {"scale": 1.0},
    "all_pairs": {"scale": 1.0},
    "tournament": {"scale": 1.0},
    "rso": {"keep": 3, "beta": 1.0, "scale": 1.0},
    "beats": {"against": "gold", "against_score": "gold_score", "scale": 1.0},
    "goals": {"template": "Aim at {score}. ", "scale": 1.0},
    "best": {"keep": 2},
    "ranked": {"keep": 2},
    "labels": {"threshold": 0.0},
    "each": {"beta": 1.0},
}
"""Options with which each method makes rows with all of its columns."""


def line(scores, /, **columns):
    """A row of answers a0, a1, ... with these scores."""
    scores = list(scores)
    return {
        "prompt": "Q",
        "responses": [f"a{i}" for i in range(len(scores))],
        "scores": scores,
    } | columns


def made(*lines, seed=0, **options):
    """The rows and the counts of `pair`."""
    rows = ((f"f.jsonl line {n}", raw) for n, raw in enumerate(lines, 1))
    return pair_rows(rows, Pair(data="f.jsonl", **options), seed)


def read_as(rows, objective):
    """The records that an objective reads from rows; its checks of columns pass."""
    found = OBJECTIVES[objective]
    named = ((f"out.jsonl line {n}", row) for n, row in enumerate(rows, 1))
    records = fit_records(Data(path="out.jsonl"), named, found.layout, Tally(), found.columns)
    records = list(records)
    if found.check is not None:
        assert [found.check(record.columns) for record in records] == [""] * len(records)
    return records


@st.composite
def prompts(draw, columns=False):
    """Rows of a file, numbered by their prompts, with repeated answers and tied scores."""
    lines = []
    for n in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 6))
        texts = draw(st.lists(st.sampled_from("abcdefgh"), min_size=size, max_size=size))
        scores = draw(st.lists(st.integers(-3, 3).map(float), min_size=size, max_size=size))
        raw = {"prompt": str(n), "responses": texts, "scores": scores}
        if columns:
            ends = st.lists(st.sampled_from(["stop", "length"]), min_size=size, max_size=size)
            numbers = st.lists(st.floats(-50, -1), min_size=size, max_size=size)
            raw |= {"finishes": draw(ends), "logps": draw(numbers), "sampler_logps": draw(numbers)}
            raw |= {"gold": "h", "gold_score": 0.0}
        lines.append(raw)
    return lines


def rows_of(raw):
    """{text: score} of a row, the first of equal texts."""
    return dict(reversed(list(zip(raw["responses"], raw["scores"], strict=True))))


def pairs_of(rows):
    """(number of the prompt, chosen, rejected) of every pair."""
    return [(int(row["prompt"]), row["chosen"], row["rejected"]) for row in rows]
