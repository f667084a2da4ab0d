"""The settings of `pair`: which training data the scored answers of a model become."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from .types import Count, Rate, Text

Score = Annotated[float, Interval(gt=-math.inf, lt=math.inf)]
Scale = Annotated[float, Interval(gt=0, lt=math.inf)]
How = Literal[
    "best_worst",
    "all_pairs",
    "tournament",
    "rso",
    "beats",
    "goals",
    "best",
    "ranked",
    "labels",
    "each",
]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Scored answers, and how they become training data.

    An option that the method does not read is refused.
    """

    data: Text
    """File of scored answers: rows of prompt, responses and scores, one row per prompt."""
    how: How
    """Method. Pairs: `best_worst`, the answers of the highest and the lowest score; `all_pairs`,
    any two; `tournament`, the two of each match; `rso`, a tournament of answers that rejection
    sampling accepts; `beats`, the best answer against a given one; `goals`, any two with a prompt
    that asks for the score of one. Others: `best`, the best answers; `ranked`, lists, best first;
    `labels`, desirable and undesirable answers; `each`, every answer with its numbers."""
    unfinished: Literal["drop", "keep"] = "drop"
    """Answers cut at the maximum number of tokens: `drop` leaves them out, `keep` uses them."""
    margin: Rate | None = None
    """Pairs: the chosen answer scores higher by more than this; none: 0."""
    agree: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Pairs: minimum share of the scorers (columns `scores_NAME`) that prefer the chosen answer
    (UPO); none: they are not read."""
    votes: bool = False
    """Pairs: make the column `margin` the votes of the scorers, (for - against) / scorers, from -1
    to 1, instead of the difference of the scores."""
    scale: Scale | None = None
    """Pairs: difference of scores at which winning is e times as likely as losing; adds the columns
    `preference` and, where the prompt has a third answer, `preference_gap`; none: adds neither."""
    most: Count | None = None
    """all_pairs, goals: maximum number of pairs of a prompt, drawn by the seed; none: all."""
    rounds: Literal["first", "all"] | None = None
    """tournament, rso: rounds whose matches give pairs: `first`, n/2 pairs of n answers; `all`,
    n - 1 pairs; none: `all`."""
    keep: Count | None = None
    """Number of answers of a prompt: the best (best; none: 1), at evenly spaced ranks (ranked;
    none: as many as the prompt with the most has), or accepted (rso)."""
    beta: Scale | None = None
    """Temperature of exp(score / beta), in units of the score. rso: smaller accepts better answers;
    each: adds the column `target_logp`, under the model times exp(score / beta), for `f_dpg`."""
    threshold: Score | None = None
    """Least score of a desirable answer (labels), or of an answer to keep (best; none: any)."""
    quantile: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """labels: the threshold as a quantile of all scores of the file; instead of `threshold`."""
    upper: Score | None = None
    """labels: least score of a desirable answer, where answers from the threshold up to it get no
    label; a quantile if `quantile` is given; none: the threshold."""
    template: Text | None = None
    """goals: text put before the prompt, with {score} for the score asked for; in a chat it begins
    the system message."""
    against: Text | None = None
    """beats: column of the given answer, a text, which becomes the rejected one."""
    against_score: Text | None = None
    """beats: column of the score of the given answer."""


_PAIRS = ("margin", "scale", "agree", "votes")
READS: dict[str, tuple[str, ...]] = {
    "best_worst": _PAIRS,
    "all_pairs": (*_PAIRS, "most"),
    "tournament": (*_PAIRS, "rounds"),
    "rso": (*_PAIRS, "rounds", "keep", "beta"),
    "beats": ("margin", "scale", "against", "against_score"),
    "goals": ("margin", "scale", "agree", "most", "template"),
    "best": ("keep", "threshold"),
    "ranked": ("keep",),
    "labels": ("threshold", "quantile", "upper"),
    "each": ("beta",),
}
"""The options that each method reads, in addition to `data` and `unfinished`."""
NEEDS: dict[str, tuple[str, ...]] = {
    "rso": ("keep", "beta"),
    "beats": ("against", "against_score"),
    "goals": ("template",),
}
"""The options that a method cannot do without."""


def problems(pair: Pair) -> dict[str, str]:
    """Complaints about options that do not fit the method, by the name of the option.

    Args:
      pair: the settings, each valid by itself.
    """
    options = [f for f in dataclasses.fields(pair) if f.name not in ("data", "how", "unfinished")]
    given = {f.name: v for f in options if (v := getattr(pair, f.name)) != f.default}
    found: dict[str, str] = {}
    for name in given:
        if name not in READS[pair.how]:
            readers = ", ".join(how for how, names in READS.items() if name in names)
            found[name] = f"`how: {pair.how}` does not read it; leave it out, or choose {readers}"
    for name in NEEDS.get(pair.how, ()):
        if name not in given:
            found[name] = f"missing; `how: {pair.how}` needs it"
    return found | _misfits(pair, found)


def _misfits(pair: Pair, known: dict[str, str]) -> dict[str, str]:
    """Complaints about values of options that the method reads."""
    found: dict[str, str] = {}
    low = pair.threshold if pair.quantile is None else pair.quantile
    if pair.how == "labels":
        if (pair.threshold is None) == (pair.quantile is None):
            found["threshold"] = "give one of threshold and quantile"
        elif pair.upper is not None and low is not None and pair.upper <= low:
            found["upper"] = f"wanted more than the threshold, {low:g} (got {pair.upper:g})"
        elif pair.upper is not None and pair.quantile is not None and pair.upper >= 1:
            found["upper"] = (
                f"next to quantile it is one too; wanted less than 1 (got {pair.upper:g})"
            )
    if pair.how in ("ranked", "rso") and pair.keep == 1:
        found["keep"] = "wanted two or more answers to compare (got 1)"
    if pair.how == "goals" and "template" not in known and "{score}" not in (pair.template or ""):
        found["template"] = "no {score} in it, the place of the score asked for; add it"
    return found
