"""The methods of `pair`: the rows that each makes of a prompt and its scored answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..data.fields import Field, field, number
from ..data.records import INSTRUCTIONS
from ..errors import UserError
from ..settings.pair import Pair
from . import pairing
from .answers import SCORER, SINGULAR, Answers

Row = dict[str, Any]


class Lost(NamedTuple):
    """Counts by reason, increased while the rows pass."""

    prompts: Counter[str]
    answers: Counter[str]
    pairs: Counter[str]
    draws: Counter[str]  # of rejection sampling


# Pairs


def best_worst(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """The answer of the highest score, chosen, against the answer of the lowest."""
    return _pairs(y, pair, lost, _placed(y, pairing.best_and_worst(y.pool_scores)))


def all_pairs(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """Every two answers, at most `most` pairs of them (Ouyang et al. 2022, arXiv:2203.02155)."""
    return [_pair(y, pair, *two) for two in _drawn(y, pair, rng, lost)]


def tournament(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """Winner against loser of each match of a tournament (Liu et al. 2023, arXiv:2309.06657)."""
    matches = pairing.tournament(y.pool_scores, rng, first_round=pair.rounds == "first")
    return _pairs(y, pair, lost, _placed(y, matches))


def rso(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """A tournament of `keep` answers from rejection sampling (Liu et al. 2023, Algorithm 1)."""
    assert pair.keep is not None  # `problems` has checked these
    assert pair.beta is not None
    accepted, draws = pairing.rejection_sample(y.pool_scores, pair.keep, pair.beta, rng)
    lost.draws.update(drawn=draws, accepted=len(accepted))
    return tournament(y._replace(pool=[y.pool[i] for i in accepted]), pair, rng, lost)


def beats(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """The best answer against a given one, if it scores higher by more than `margin`."""
    assert pair.against is not None  # `problems` has checked these
    assert pair.against_score is not None
    given = field(y.raw, pair.against, y.where)
    if not isinstance(given, str):
        raise UserError(
            f"{y.where}: '{pair.against}' holds messages; wanted the text of the given answer"
        )
    score = number(y.raw, pair.against_score, y.where)
    best = y.pool[pairing.ranks(y.pool_scores)[0]]
    won = float(y.scores[best])
    reason = "tie" if y.texts[best] == given else _too_close(won - score, pair)
    if reason:
        lost.pairs[reason] += 1
        return []
    others = np.delete(y.pool_scores, y.pool.index(best))
    further = {k: v for k, v in y.further.items() if k not in (pair.against, pair.against_score)}
    texts = {"chosen": y.texts[best], "rejected": given}
    return [{"prompt": y.given, **further, **texts, **pair_columns(won, score, others, pair)}]


def goals(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """Every two answers twice, with a prompt that asks for the score of the one or of the other.

        R(y, g) = -(g - r(y))^2,  g the score asked for

    The answer with this score is chosen; the columns have R as scores.

    Source:
      Zhang et al. 2024, arXiv:2410.08067. UNVERIFIED: the exact form of R.
    """
    assert pair.template is not None  # `problems` has checked it
    made = []
    for winner, loser in _drawn(y, pair, rng, lost):
        for chosen, rejected in ((winner, loser), (loser, winner)):
            goal = float(y.scores[chosen])
            asked = pair.template.replace("{score}", f"{goal:g}")
            columns = pair_columns(0.0, -((goal - float(y.scores[rejected])) ** 2), None, pair)
            texts = {"chosen": y.texts[chosen], "rejected": y.texts[rejected]}
            made.append({"prompt": asking(y.prompt, asked), **y.further, **texts, **columns})
    return made


def asking(prompt: Field, goal: str) -> Field:
    """A prompt after a text: before a text, or before the system message of a chat, maybe new."""
    if isinstance(prompt, str):
        return goal + prompt
    if prompt and prompt[0]["role"] in INSTRUCTIONS:
        first = prompt[0]
        return [{**first, "content": goal + (first["content"] or "")}, *prompt[1:]]
    return [{"role": "system", "content": goal}, *prompt]


def _placed(y: Answers, pairs: list[pairing.Pair]) -> list[pairing.Pair]:
    """Pairs of indices in the pool -> indices of answers."""
    return [(y.pool[i], y.pool[j]) for i, j in pairs]


def _pairs(y: Answers, pair: Pair, lost: Lost, pairs: list[pairing.Pair]) -> list[Row]:
    return [_pair(y, pair, *two) for two in _clear(y, pair, lost, pairs)]


def _drawn(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[pairing.Pair]:
    """Every two answers with a clear winner; of more than `most` pairs, as many at random."""
    clear = _clear(y, pair, lost, _placed(y, pairing.every_two(y.pool_scores)))
    if pair.most is None or len(clear) <= pair.most:
        return clear
    lost.pairs["over the most"] += len(clear) - pair.most
    return [clear[i] for i in sorted(rng.choice(len(clear), pair.most, replace=False))]


def _clear(y: Answers, pair: Pair, lost: Lost, pairs: list[pairing.Pair]) -> list[pairing.Pair]:
    """The pairs whose scores differ enough, and on which enough of the scorers agree."""
    clear = []
    scores, scorers = y.scores, y.scorers("agree") if pair.agree is not None else None
    for winner, loser in pairs:
        reason = _too_close(float(scores[winner] - scores[loser]), pair)
        if not reason and scorers is not None and pair.agree is not None:
            # UPO: pairs on which the scorers disagree are uncertain.
            share = float((scorers[:, winner] > scorers[:, loser]).mean())
            reason = "uncertain" if share < pair.agree else ""
        if reason:
            lost.pairs[reason] += 1
        else:
            clear.append((winner, loser))
    return clear


def _too_close(gap: float, pair: Pair) -> str:
    """Why a difference of scores makes no pair; '' if it does."""
    if gap == 0:
        return "tie"
    return "" if gap > (pair.margin or 0) else "margin"


def _pair(y: Answers, pair: Pair, winner: int, loser: int) -> Row:
    others = y.scores[[i for i in y.pool if i not in (winner, loser)]]
    columns = pair_columns(float(y.scores[winner]), float(y.scores[loser]), others, pair)
    if pair.votes:
        scorers = y.scorers("votes")
        columns["margin"] = float(np.sign(scorers[:, winner] - scorers[:, loser]).mean())
    texts = {"chosen": y.texts[winner], "rejected": y.texts[loser]}
    return {"prompt": y.given, **y.further, **texts, **columns}


def pair_columns(won: float, lost: float, others: np.ndarray | None, pair: Pair) -> Row:
    """The numbers of a pair.

        margin          = r_w - r_l
        preference      = sigmoid((r_w - r_l) / scale)
        preference_gap  = mean over the other answers o of P(y_w > o) - P(y_l > o)

    Args:
      won: r_w, the score of the chosen answer.
      lost: r_l, the score of the rejected answer.
      others: the scores of the prompt's other answers, [N]; None: they cannot be compared.
      pair: the settings, with the scale.
    """
    found = {"score_chosen": won, "score_rejected": lost, "margin": won - lost}
    if pair.scale is not None:
        found["preference"] = float(pairing.preference(won - lost, pair.scale))
        if others is not None and len(others):
            found["preference_gap"] = pairing.preference_gap(won, lost, others, pair.scale)
    return found


# Others


def best(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """The `keep` best answers that reach the threshold: rejection-sampling fine-tuning."""
    order = [y.pool[i] for i in pairing.ranks(y.pool_scores)]
    low = -np.inf if pair.threshold is None else pair.threshold
    reached = [i for i in order if y.scores[i] >= low]
    if below := len(order) - len(reached):
        lost.answers["below the threshold"] += below
    return [
        {"prompt": y.given, **y.further, "completion": y.texts[i], "score": float(y.scores[i])}
        for i in reached[: pair.keep or 1]
    ]


def ranked(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """The answers at `keep` evenly spaced ranks, best first."""
    assert pair.keep is not None  # `_measured` has set it
    order = [y.pool[i] for i in pairing.ranks(y.pool_scores)]
    taken = [order[rank] for rank in pairing.spaced(len(order), pair.keep)]
    lists = {"responses": [y.texts[i] for i in taken], "scores": y.scores[taken].tolist()}
    return [{"prompt": y.given, **y.further, **lists}]


def labels(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """Every answer: desirable from `upper` on, undesirable below the threshold, else left out."""
    assert pair.threshold is not None  # `problems` and `_measured` have seen to it
    upper = pair.threshold if pair.upper is None else pair.upper
    made = []
    for i in y.pool:
        score = float(y.scores[i])
        if pair.threshold <= score < upper:
            lost.answers["between the thresholds"] += 1
            continue
        said = {"completion": y.texts[i], "label": score >= upper, "score": score}
        made.append({"prompt": y.given, **y.further, **said})
    return made


def each(y: Answers, pair: Pair, rng: np.random.Generator, lost: Lost) -> list[Row]:
    """Every answer with its numbers; with `beta`, also under the target of `f_dpg`.

        target_logp = log p(y|x),  p = p_model exp(r / beta) / Z

    The target gives no probability to answers that are left out, which count in Z.
    """
    columns = {_singular(name): found for name, found in y.columns.items()}
    if pair.beta is not None:
        columns["target_logp"] = _targets(y, pair.beta)
    return [
        {
            "prompt": y.given,
            **y.further,
            "completion": y.texts[i],
            **{name: found[i] for name, found in columns.items()},
        }
        for i in y.pool
    ]


def _singular(name: str) -> str:
    return f"score_{name.removeprefix(SCORER)}" if name.startswith(SCORER) else SINGULAR[name]


def _targets(y: Answers, beta: float) -> list[float | None]:
    """The log-probability of every answer under the target; None where it does not take part."""
    for name in ("logps", "sampler_logps"):
        if name not in y.columns:
            raise UserError(
                f"{y.where}: no column '{name}', which pair.beta reads for the target; take "
                "answers of the command `sample`, or leave beta out"
            )
    logps, sampler = (y.numbers(name)[y.pool] for name in ("logps", "sampler_logps"))
    found = pairing.target_logps(logps, sampler, y.pool_scores, beta, len(y.texts))
    if not np.isfinite(found).all():
        raise UserError(
            f"{y.where}: 'scores' divided by pair.beta, {beta:g}, are too large for a "
            "log-probability; raise beta"
        )
    placed = dict(zip(y.pool, found.tolist(), strict=True))
    return [placed.get(i) for i in range(len(y.texts))]


class Method(NamedTuple):
    """A method: its function and the answers that it takes."""

    rows: Callable[[Answers, Pair, np.random.Generator, Lost], list[Row]]
    """(answers, settings, source of random choices, counts) -> the rows of a prompt."""
    least: Callable[[Pair], int]
    """The number of answers without which a prompt is dropped."""
    repeats: bool = False
    """Whether each of several equal answers takes part; otherwise the first does."""


METHODS: dict[str, Method] = {
    "best_worst": Method(best_worst, lambda pair: 2),
    "all_pairs": Method(all_pairs, lambda pair: 2),
    "tournament": Method(tournament, lambda pair: 2),
    "rso": Method(rso, lambda pair: pair.keep or 2),
    "beats": Method(beats, lambda pair: 1),
    "goals": Method(goals, lambda pair: 2),
    "best": Method(best, lambda pair: 1),
    "ranked": Method(ranked, lambda pair: pair.keep or 2),
    "labels": Method(labels, lambda pair: 1, repeats=True),
    "each": Method(each, lambda pair: 1, repeats=True),
}
"""The methods, by the name in `how`."""
