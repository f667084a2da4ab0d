"""The metrics of an update, read from the devices; one that is not finite ends the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ..core.batch import Batch
from ..data.pack import TokenCounts
from ..errors import RunError
from ..files import write_whole
from ..update.optimizer import learning_rate
from ..update.step import StepMetrics
from .evaluate import means
from .stage import StageRun

Read = Callable[[int, tuple[Batch, ...], TokenCounts, int, StepMetrics], dict[str, float]]
"""(update, its batches, tokens, shapes compiled so far, metrics on the device) -> the report."""


def reader(stage: StageRun) -> Read:
    """A function that reads the metrics of an update, once the device has computed them.

    It raises a RunError if the loss or the gradient is not finite, and describes the batch on disk.
    """
    rate = learning_rate(stage.settings.optimizer, stage.updates)
    rates = np.asarray(jax.vmap(rate)(jnp.arange(stage.updates)))

    def read(
        step: int,
        batch: tuple[Batch, ...],
        tokens: TokenCounts,
        compiled: int,
        metrics: StepMetrics,
    ) -> dict[str, float]:
        # To the host first: any jax operation would wait in the device's queue for the next update.
        metrics = jax.device_get(metrics)
        loss, norm = float(metrics.loss), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _not_finite(stage, step, batch, metrics)
        values = {"loss": loss, "grad_norm": norm, "learning_rate": float(rates[step - 1])}
        return (
            values
            | means(metrics.sums)
            | {
                "tokens": tokens.real,
                "fill": tokens.real / tokens.slots,
                "shared": 1 - tokens.real / tokens.unshared,
                "compiles": compiled,
            }
        )

    return read


def _not_finite(
    stage: StageRun, step: int, batch: tuple[Batch, ...], metrics: StepMetrics
) -> RunError:
    path = stage.folder / f"not_finite-{step:08d}.json"
    loss, norm = float(metrics.loss), float(metrics.grad_norm)
    record = {"step": step, "loss": loss, "grad_norm": norm}
    for term, own in zip(stage.terms, batch, strict=True):
        record |= term.task.named({"example": own.example.reshape(-1).tolist()})
    record |= {k: np.ravel(v).tolist() for k, v in metrics.examples.items()}
    write_whole(path, json.dumps(record))
    return RunError(
        f"update {step}: loss {loss}, gradient norm {norm} are not finite; the batch's "
        f"examples and statistics are in {path}; the last checkpoint is intact"
    )
