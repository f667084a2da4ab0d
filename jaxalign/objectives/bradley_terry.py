"""Reward models: a score for each response, by logistic regression on score differences."""

from __future__ import annotations

from jax.nn import log_sigmoid

from ..core import stats
from ..core.objective import objective
from ..core.types import Array, Loss, Metrics, Pairs, SequenceStats, per_example
from ._common import NonNegative, reward_metrics


def reward(response: SequenceStats) -> Array:
    """The single score that the reward head gives a response, [B]."""
    return response.token["logit"].sum(-1)


@objective(
    Pairs,
    source="Ouyang et al. 2022, arXiv:2203.02155, Eq. 1",
    needs=(stats.logit,),
    scores=lambda hyper: 1,
)
def bradley_terry(policy: Pairs, *, center: NonNegative = 0.0) -> tuple[Loss, Metrics]:
    """Bradley-Terry: trains a reward model on pairs by logistic regression.

        loss = -log sigmoid(r_w - r_l) + center (r_w + r_l)^2

    averaged over pairs; r is the score of the reward head at the last token of a response. The loss
    is log 2 where both rewards are 0.

    Args:
      policy: both responses under the reward model. Reads token `logit`, [B, 1].
      center: weight of the pull to 0 on the sum of the two rewards, which the first term leaves
        free.

    Returns:
      The loss, and [B] metrics `rewards/*`.

    Source:
      Paper: Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, Eq. 1.
      Code: TRL, `RewardTrainer`; `center` is `center_rewards_coefficient` (Eisenstein et al. 2023,
      arXiv:2312.09244).
      Differences: none from TRL's equation; its `margin` is `adaptive_margin`. TRL scores at the
      last token that is not padding, which is the last but one where EOS pads. Ouyang et al.
      average over all pairs of a prompt's ranking; here each pair is a row.
    """
    chosen, rejected = reward(policy.chosen), reward(policy.rejected)
    loss = -log_sigmoid(chosen - rejected) + center * (chosen + rejected) ** 2
    return per_example(loss), reward_metrics(chosen, rejected)


@objective(
    Pairs,
    source="Wang et al. 2024, arXiv:2401.06080, Eq. 6",
    needs=(stats.logit,),
    columns=("margin",),
    scores=lambda hyper: 1,
)
def adaptive_margin(policy: Pairs, batch: dict[str, Array]) -> tuple[Loss, Metrics]:
    """A reward model with a margin for each pair, estimated by an ensemble of reward models.

        loss = -log sigmoid(r_w - r_l - margin)

    averaged over pairs. A negative margin (the ensemble ranks the pair the other way) tolerates a
    higher reward of the rejected response.

    Args:
      policy: both responses under the reward model. Reads token `logit`, [B, 1].
      batch: `margin`, [B], mean over reward models of r_w - r_l, in units of the reward.

    Returns:
      The loss, and [B] metrics `rewards/*` (without the margin).

    Source:
      Paper: Wang et al. 2024, arXiv:2401.06080, Eq. 6, printed with the margin outside the
      sigmoid, where it has no gradient: a misprint.
      Code: OpenLMLab/MOSS-RLHF only has the loss without a margin; TRL's `RewardTrainer` has this
      one.
      Differences: none. Flipping and smoothing labels of pairs with a low margin is left to the
      data.
    """
    chosen, rejected = reward(policy.chosen), reward(policy.rejected)
    loss = -log_sigmoid(chosen - rejected - batch["margin"])
    return per_example(loss), reward_metrics(chosen, rejected)
