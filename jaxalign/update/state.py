"""The training state: its shapes on the mesh, and its first value."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ..core.objective import Objective
from ..core.sharding import replicated
from ..models.adapted import Adapted
from ..models.decoder import Model, Params


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes: donated to the step, checkpointed whole."""

    params: Params
    opt_state: Any
    step: Any  # [] int32, updates made
    objective_state: Any
    ref_params: Params | None = None  # of a reference that moves


def abstract_state(
    model: Model | Adapted,
    tx: optax.GradientTransformation,
    objective: Objective[Any],
    *,
    moving: bool = False,
) -> TrainState:
    """Shapes, dtypes and shardings of a training state; moments are sharded like their parameter.

    With adapters, the adapters alone are the parameters. A reference that is `moving` is part of
    the state.
    """
    whole = replicated(model.mesh)

    def place(x: Any, sharding: Any = whole) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    opt_state = optax.tree_utils.tree_map_params(
        tx,
        # Factored moments (adafactor) have fewer axes than their parameter.
        lambda o, p: place(o, p.sharding if o.shape == p.shape else whole),
        jax.eval_shape(tx.init, model.abstract),
        model.abstract,
        transform_non_params=place,
    )
    state = objective.init_state() if objective.init_state else None
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    ref_params = model.abstract if moving else None
    return TrainState(model.abstract, opt_state, step, jax.tree.map(place, state), ref_params)


def initial_state(
    params: Params,
    objective: Objective[Any],
    tx: optax.GradientTransformation,
    abstract: TrainState,
    ref_params: Params | None = None,
) -> TrainState:
    """The state before the first update, from the parameters and a moving reference."""
    init = objective.init_state
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    rest = (jnp.int32(0), init() if init else None)
    where = shardings.step, shardings.objective_state
    # Copied: a number that an objective uses twice would be donated twice.
    step, objective_state = jax.device_put(rest, where, may_alias=False)
    return TrainState(params, opt_state, step, objective_state, ref_params)
