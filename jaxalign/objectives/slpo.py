"""Supervised learning preference optimization: probability mass moved from rejected to chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jax.nn import logsumexp, softplus

from ..core import stats
from ..core.numerics import LOG_HALF, bernoulli_kl, kl_term, log1mexp
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ..errors import UserError
from ._common import Fraction, Positive, log_ratio, pair_metrics

Two = tuple[Array, Array]  # chosen and rejected, [B] each
Complement = Literal["tree", "closed"]
Temperature = Literal["length"] | Positive | None


def _rules(hyper: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    if wrong := _wrong_temperature(hyper["form"], hyper["temperature"]):
        found["temperature"] = wrong
    if hyper["mass_shift"] == "paper" and hyper["alpha"] <= 0.5:
        found["alpha"] = (
            "with mass_shift 'paper' the chosen response gets the fraction alpha of the mass of "
            "both; set it over 0.5, or training favors the rejected response"
        )
    return found


def _wrong_temperature(form: str, temperature: object) -> str:
    if form == "joint" and temperature is not None:
        return (
            "form 'joint' has no temperature; set temperature to None (null in YAML), or form to "
            "'split'"
        )
    return ""


@objective(
    Pairs,
    source="Ho 2025, SLPO, TechRxiv preprint, Eq. 6-8 and Code 6.1",
    needs=(stats.logp, stats.log_complement),
    rules=_rules,
)
def slpo(
    policy: Pairs,
    ref: Pairs,
    *,
    form: Literal["split", "joint"] = "split",
    alpha: Fraction = 1.0,
    mass_shift: Literal["repo", "paper"] = "repo",
    temperature: Temperature = "length",
    complement: Complement = "tree",
) -> tuple[Loss, Metrics]:
    """SLPO: fits the policy to the probabilities that the two responses should have.

    The targets are constants: the reference's probabilities, with mass moved from rejected to
    chosen. With pi(not y|x) = 1 - pi(y|x), the probability of any other response,

        w_w  = pi_ref(y_w|x) + alpha pi_ref(y_l|x),   w_l = (1 - alpha) pi_ref(y_l|x)
        s(y) = log(pi(y|x) / pi(not y|x)) / N,        t_i = log(w_i / (1 - w_i)) / N
        loss = 1/4 sum over i in (w, l) of KL(Bern(sigmoid(t_i)) || Bern(sigmoid(s(y_i))))

    averaged over pairs. The loss is 0 when the policy is the reference and alpha is 0. The `joint`
    form is KL((w_w, w_l, 1 - w_w - w_l) || (pi(y_w|x), pi(y_l|x), 1 - pi(y_w|x) - pi(y_l|x))).

    With alpha = 1 training starts as unlikelihood of the rejected response, and never stops; the
    chosen one is held near the reference. With alpha < 1 the rejected one stops at 1 - alpha of
    its reference probability. Gradients are small, 1e-6 to 1e-3 per nat: mind Adam's eps.

    Args:
      policy: responses under the policy. Reads `length`, [B], `logp`, `log_complement`, [B, T].
      ref: both responses under the frozen reference.
      form: kind of fit: `split`, two Bernoulli (Eq. 8); `joint`, three outcomes (Eq. 6 and 7).
      alpha: fraction of the rejected response's mass that moves; over 0.5 with `paper`.
      mass_shift: choice of the targets: `repo` as above; `paper`, alpha and 1 - alpha times
        pi_ref(y_w|x) + pi_ref(y_l|x), which can be below the reference for y_w, above for y_l.
      temperature: N; `length` is the number of tokens of the response, None is 1, where loss and
        gradient vanish in float32 below -100 nats.
      complement: computation of pi(not y|x): `tree` is accurate even where pi(y|x) is near 1;
        `closed`, 1 - exp of the summed log-probability, is stuck where that sum is 0 in float32.

    Returns:
      The loss, and [B] metrics `rewards/*` (log-ratios, nats) and `logps/*`.

    Raises:
      UserError: a temperature with `joint`, which no source defines.

    Source:
      Paper: Ho 2025, SLPO, TechRxiv preprint, Eq. 8 (split), 6 and 7 (joint), Code 6.1.
      Code: yaoshiang/slpo@d14289d, with one temperature for all responses.
      Differences: KL, not cross-entropy (same gradient); the rejected half of Code 6.1, which
      evaluates to NaN, is softplus(s)/4; a branch's prefix ends before the branching token, as in
      the paper's text and code (its displayed formula is off by one).
    """
    if wrong := _wrong_temperature(form, temperature):
        raise UserError(f"objective 'slpo': {wrong}; got {temperature!r}")
    shifts, log_w = _mass_shifts(ref, alpha, mass_shift), _targets(ref, alpha, mass_shift)
    if form == "joint":
        loss = _joint(policy, ref, shifts, log_w, complement)
    else:
        loss = _split(policy, ref, shifts, log_w, complement, temperature)
    rewards = log_ratio(policy.chosen, ref.chosen), log_ratio(policy.rejected, ref.rejected)
    return per_example(loss), pair_metrics(policy, *rewards)


def _mass_shifts(ref: Pairs, alpha: float | Array, mass_shift: str) -> Two:
    """The shifts log(w_w / pi_ref(y_w|x)) and log(w_l / pi_ref(y_l|x)), nats; -inf where w is 0.

    Separate from log w, because next to a reference of -800 nats float32 would lose the shift.
    """
    gap = _difference(ref.rejected, ref.chosen)
    moved, kept = jnp.log(alpha), jnp.log1p(-alpha)
    if mass_shift == "paper":
        return moved + softplus(gap), kept + softplus(-gap)
    return softplus(gap + moved), jnp.broadcast_to(kept, gap.shape)


def _targets(ref: Pairs, alpha: float | Array, mass_shift: str) -> Two:
    """The log-probabilities log w_w and log w_l, nats; -inf where w is 0.

    Not the reference plus its shift: where a response of -3,000 nats gets the mass of a short one,
    float32 would lose 2e-4 nats.
    """
    chosen, rejected = ref.chosen.logp, ref.rejected.logp
    moved, kept = jnp.log(alpha), jnp.log1p(-alpha)
    if mass_shift == "paper":
        both = jnp.logaddexp(chosen, rejected)
        return both + moved, both + kept
    return jnp.logaddexp(chosen, rejected + moved), rejected + kept


def _split(
    policy: Pairs,
    ref: Pairs,
    shifts: Two,
    log_w: Two,
    complement: Complement,
    temperature: Temperature,
) -> Array:
    """Eq. 8: a Bernoulli KL per response, [B]."""
    rest = _log_rest(ref, complement)

    def kl(y: SequenceStats, ref_y: SequenceStats, shift: Array, log_w: Array, others: Array):
        n = _temperature(y, temperature)
        log_not_w = jnp.logaddexp(rest, others)
        log_not_y = complement_logp(y, complement)
        excess = _difference(y, ref_y) - shift - (log_not_y - log_not_w)
        return bernoulli_kl((y.logp - log_not_y) / n, (log_w - log_not_w) / n, excess / n)

    # 1/4: Code 6.1 averages over two rows of a pair and over the two outcomes of each.
    return 0.25 * (
        kl(policy.chosen, ref.chosen, shifts[0], log_w[0], log_w[1])
        + kl(policy.rejected, ref.rejected, shifts[1], log_w[1], log_w[0])
    )


def _joint(policy: Pairs, ref: Pairs, shifts: Two, log_w: Two, complement: Complement) -> Array:
    """Eq. 6 and 7: one KL over the outcomes chosen, rejected, anything else, [B]."""
    rest, target_rest = _log_rest(policy, complement), _log_rest(ref, complement)
    total = kl_term(rest, target_rest, rest - target_rest)
    for name, shift, target in zip(("chosen", "rejected"), shifts, log_w, strict=True):
        y, ref_y = getattr(policy, name), getattr(ref, name)
        total += kl_term(y.logp, target, _difference(y, ref_y) - shift)
    return total


def _difference(a: SequenceStats, b: SequenceStats) -> Array:
    """The log-ratio log p(a) / p(b), [B], nats; token by token, as the two sums may be large."""
    return jnp.sum(a.token["logp"] - b.token["logp"], -1)


def _temperature(y: SequenceStats, temperature: Temperature) -> Array | float:
    if temperature is None:
        return 1.0
    return jnp.maximum(y.length, 1.0) if isinstance(temperature, str) else temperature


def complement_logp(y: SequenceStats, complement: Complement) -> Array:
    """The log-probability of any response but y, log pi(not y|x), [B], nats.

    The tree is the sum over t of the probability of following y up to t and leaving it there,

        log pi(not y|x) = logsumexp_t (sum_{k<t} log p_k + log(1 - p_t)),

    equal to log(1 - pi(y|x)). The sum keeps its digits when pi(y|x) is near 1; when pi(y|x) is
    small its rounding error (1e-7) is larger, and 1 - exp(log pi(y|x)) is exact.
    """
    closed = log1mexp(y.logp)
    if complement == "closed":
        return closed
    near = (y.logp > LOG_HALF) & (y.length > 0)
    followed = jnp.cumsum(y.token["logp"], -1) - y.token["logp"]
    leaves = jnp.where(y.mask > 0, followed + y.token["log_complement"], -jnp.inf)
    # logsumexp of padding, all -inf, has a NaN inside its gradient, where jax_debug_nans stops.
    return jnp.where(near, logsumexp(jnp.where(near[..., None], leaves, 0.0), -1), closed)


def _log_rest(pair: Pairs, complement: Complement) -> Array:
    """The log-probability of neither response, log(1 - pi(y_w|x) - pi(y_l|x)), [B], nats.

    Computed from the complement of the likelier response, which keeps its digits when that response
    is near 1. The two responses are exclusive unless one is a prefix of the other; then the result
    is clamped, and finite.
    """
    chosen, rejected = pair.chosen, pair.rejected
    likelier = chosen.logp > rejected.logp
    first = jnp.where(
        likelier, complement_logp(chosen, complement), complement_logp(rejected, complement)
    )
    second = jnp.where(likelier, rejected.logp, chosen.logp)
    return first + log1mexp(second - first)
