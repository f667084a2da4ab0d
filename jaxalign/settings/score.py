"""Settings of scores: the rows, the scorers and how their scores are combined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Gt

from .endpoint import Endpoint
from .types import Count, Rate, Text

Positive = Annotated[float, Gt(0)]
Combine = Literal["sum", "mean", "min", "votes"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Numbers for every answer of a file."""

    data: Text
    """Rows with prompt and responses, a pair or a completion: a file, or a data set on the hub."""
    by: Any
    """The scorer, or a list of scorers, each a mapping with its kind as the key:
    {numeric: {answer: answer}}."""
    combine: Combine = "sum"
    """The column `scores` from several scorers: the weighted sum, the weighted mean, the minimum of
    the weighted scores, or the weight of the scorers that prefer an answer to the mean of the
    others of its prompt (half the weight where both are equal)."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What all scorers have in common."""

    name: Text | None = None
    """Ending of the scorer's own column, `scores_NAME`; none: its kind."""
    weight: float = 1.0
    """Factor of its scores in the combination; negative if lower scores are better."""


@dataclass(frozen=True, kw_only=True)
class LogRatio(Scorer):
    """beta * (logp under the model - logp under the reference): the implicit reward of DPO."""

    model: Text
    """Hugging Face folder or hub repository."""
    reference: Text
    """Hugging Face folder or hub repository of the reference, or of the weaker model."""
    beta: Positive = 1.0
    """Reward per nat of log-ratio."""
    per_token: bool = False
    """Divide each log-probability by the number of scored tokens."""


@dataclass(frozen=True, kw_only=True)
class RewardModel(Scorer):
    """The score of a reward model."""

    model: Text
    """Hugging Face folder or hub repository of a model with a reward head of one score."""


@dataclass(frozen=True, kw_only=True)
class Process(Scorer):
    """Implicit process rewards: the log-ratio of each step of an answer (Yuan et al. 2024)."""

    model: Text
    """Hugging Face folder or hub repository of the trained model."""
    reference: Text
    """Hugging Face folder or hub repository of its reference, with the same tokenizer."""
    beta: Positive = 0.05
    """Reward per nat of log-ratio."""
    split: Text = "\n\n"
    """Text between two steps."""
    over: Literal["min", "sum", "last", "mean"] = "min"
    """The score of an answer from the rewards of its steps."""


@dataclass(frozen=True, kw_only=True)
class Length(Scorer):
    """The length of an answer, or a share from 1 at `target` to 0 at `limit`."""

    limit: int | None = None
    """Length with score 0; the score changes evenly up to 1 at `target`. None: the plain length."""
    target: int = 0
    """Length with score 1; above `limit`, longer answers are better."""
    unit: Literal["characters", "words", "tokens"] = "characters"
    """Unit of the length; tokens are read from the answer column `tokens`."""


@dataclass(frozen=True, kw_only=True)
class Repetition(Scorer):
    """The share of repeated n-grams of words, from 0 to 1; give a negative weight."""

    n: Count = 3
    """Number of words of an n-gram."""


@dataclass(frozen=True, kw_only=True)
class Regex(Scorer):
    """1 if the whole answer matches a regular expression, else 0."""

    pattern: Text
    """Python regular expression; flags are part of it, as (?s) at its start."""
    captured: bool = False
    """Score a match by the number in the first group."""


@dataclass(frozen=True, kw_only=True)
class Exact(Scorer):
    """1 if the answer is the text in a column of the row, or one of the texts in its list."""

    answer: Text = "answer"
    """Column of the right answer."""
    strip: bool = True
    """Ignore white space at both ends."""
    ignore_case: bool = False
    """Ignore the case of letters."""


@dataclass(frozen=True, kw_only=True)
class Numeric(Scorer):
    """1 if the last number of an answer is the number in a column of the row, else 0."""

    answer: Text = "answer"
    """Column of the right number, or of a solution with the number after ####."""
    after: Text | None = None
    """Read the first number after the last place of this text; none: the last number."""
    tolerance: Rate = 0.0
    """Largest relative error of a right number."""


@dataclass(frozen=True, kw_only=True)
class Votes(Scorer):
    """Self-consistency: the share of a prompt's answers that give the same number."""

    after: Text | None = None
    """Read the first number after the last place of this text; none: the last number."""


@dataclass(frozen=True, kw_only=True)
class Function(Scorer):
    """The Python function `name`, (prompt, response, row) -> number, of a file that is run."""

    file: Text
    """The Python file."""


@dataclass(frozen=True, kw_only=True)
class Program(Scorer):
    """A program that reads JSON lines {prompt, response, ...} and writes one number for each."""

    command: tuple[Text, ...]
    """The program and its arguments."""
    timeout: Positive = 10.0
    """Seconds for one answer; then the program is killed and started again."""
    memory: Count | None = None
    """Limit of the program's address space, in MiB; none: no limit."""
    failed: float | None = None
    """Score of an answer on which the program fails; none: an error."""


@dataclass(frozen=True, kw_only=True)
class Judge(Scorer, Endpoint):
    """A model behind an endpoint compares the answers of a prompt, or rates each one."""

    mode: Literal["pairs", "rating"] = "pairs"
    """`pairs`: the share of comparisons that an answer wins, each pair judged in both orders;
    `rating`: a number from 1 to 10."""
    template: Text | None = None
    """File with the text of a request, with {prompt} and {a}, and {b} in pairs. The reply ends with
    a verdict in double brackets: A, B, C for a tie, or a rating, as in [[7]]. None: a template of
    the package."""
    against: Text | None = None
    """Column of an answer that each answer is compared with; none: each other."""
    max_tokens: Count = 1024
    """Maximum number of tokens of a reply."""


KINDS: dict[str, type[Scorer]] = {
    "log_ratio": LogRatio,
    "reward_model": RewardModel,
    "process": Process,
    "length": Length,
    "repetition": Repetition,
    "regex": Regex,
    "exact": Exact,
    "numeric": Numeric,
    "votes": Votes,
    "function": Function,
    "program": Program,
    "judge": Judge,
}
"""The settings of every kind of scorer, by the key in a recipe."""
