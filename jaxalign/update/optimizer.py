"""The optimizer and its learning rate, from optax, by the values of a recipe."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from ..errors import UserError
from ..settings import Optimizer

READS = {
    "adamw": ("b1", "b2", "eps", "moment_dtype", "weight_decay"),
    "lion": ("b1", "b2", "moment_dtype", "weight_decay"),
    "adafactor": ("weight_decay",),
    "sgd": ("b1",),
}
UNDECAYED = ("bias", "scale", "correction", "sinks", "log_rate", "step")


def learning_rate(settings: Optimizer, total: int) -> Callable[[Any], Any]:
    """Updates made so far -> the learning rate of the next one.

    It rises linearly and is at its peak at update number `warmup` (so no update is wasted on a
    rate of 0), then falls to `final` times the peak, which it would reach one update after the
    last.
    """
    peak, final = settings.learning_rate, settings.final
    rest = max(total - settings.warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, final * peak, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=final),
    }[settings.schedule]
    if not settings.warmup:
        return after
    rise = optax.linear_schedule(peak / settings.warmup, peak, max(settings.warmup - 1, 1))
    return optax.join_schedules([rise, after], [settings.warmup])


def decayed(params: Any) -> Any:
    """True for the matrices of a parameter tree, False for biases and the scales of norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(getattr(k, "key", k) in UNDECAYED for k in path), params
    )


class Rule(NamedTuple):
    """An optimizer by its settings, so that equal ones compare equal."""

    settings: Optimizer
    total: int
    """Updates of the whole stage."""

    def tx(self, learning_rate: Any = None) -> optax.GradientTransformation:
        """The optimizer; a learning rate, which may be traced, takes the place of its own."""
        if learning_rate is None:
            return _by_rule(self)
        return optimizer(
            dataclasses.replace(self.settings, learning_rate=learning_rate), self.total
        )

    def split(self) -> Rule:
        """The same for all learning rates, which are arguments of a compiled step."""
        return self._replace(settings=dataclasses.replace(self.settings, learning_rate=1.0))


@functools.lru_cache(maxsize=16)
def _by_rule(rule: Rule) -> optax.GradientTransformation:
    """One optimizer for equal rules, so that `jax.jit` finds the program of an earlier stage."""
    return optimizer(*rule)


def optimizer(settings: Optimizer, total: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then the update rule.

    Args:
      settings: the recipe's values; the learning rate may be traced.
      total: updates of the whole stage, for the schedule.

    Raises:
      UserError: a value is set that the chosen rule does not read, or the warm-up would not end.
    """
    if settings.warmup > total:
        raise UserError(
            f"optimizer.warmup: {settings.warmup} updates of warm-up in a stage of {total}; "
            "lower it, or train for more steps"
        )
    reads = READS[settings.name]
    given = {k: getattr(settings, k) for k in ("b1", "b2", "eps", "moment_dtype")}
    given = {k: v for k, v in given.items() if v is not None}
    if settings.weight_decay:
        given["weight_decay"] = settings.weight_decay
    if unread := sorted(set(given) - set(reads)):
        raise UserError(
            f"optimizer.{unread[0]}: {settings.name} does not read it; it reads {', '.join(reads)}"
        )
    rate = learning_rate(settings, total)
    given["mu_dtype"] = given.pop("moment_dtype", None)
    decay: dict[str, Any] = {"weight_decay": given.pop("weight_decay", 0.0), "mask": decayed}
    match settings.name:
        case "adamw":
            rule = optax.adamw(rate, **given, **decay)
        case "lion":
            rule = optax.lion(rate, **given, **decay)
        case "adafactor":
            # The decay that adafactor has itself is not multiplied by the learning rate.
            rule = optax.chain(
                optax.adafactor(multiply_by_parameter_scale=False),
                optax.add_decayed_weights(-decay["weight_decay"], decayed),
                optax.scale_by_learning_rate(rate, flip_sign=False),
            )
        case "sgd":
            rule = optax.sgd(rate, momentum=given.get("b1"))
    clip = [] if settings.clip_norm is None else [optax.clip_by_global_norm(settings.clip_norm)]
    return optax.chain(*clip, rule)
