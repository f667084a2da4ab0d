"""The training state: its shapes on the mesh, and its first value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ..core.sharding import replicated
from ..models.adapted import Adapted
from ..models.decoder import Model, Params
from .forward import Task


class TermState(NamedTuple):
    """What a step changes of one term, in addition to the parameters."""

    objective_state: Any = None  # None where the objective keeps none
    ref_params: Params | None = None  # of a reference that moves


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes: donated to the step, checkpointed whole."""

    params: Params
    opt_state: Any
    step: Any  # [] int32, updates made
    objective_state: Any  # of the first term
    ref_params: Params | None = None  # of the first term
    others: tuple[TermState, ...] = ()  # of the other terms of a stage with several

    @classmethod
    def of(
        cls, params: Params, opt_state: Any, step: Any, terms: Sequence[TermState]
    ) -> TrainState:
        """A state by its terms, of which there is at least one."""
        first, *others = terms
        return cls(params, opt_state, step, *first, tuple(others))

    @property
    def terms(self) -> tuple[TermState, ...]:
        """What the state holds of each term."""
        return (TermState(self.objective_state, self.ref_params), *self.others)


def abstract_state(
    model: Model | Adapted, tx: optax.GradientTransformation, tasks: Sequence[Task]
) -> TrainState:
    """Shapes, dtypes and shardings of a training state; moments are sharded like their parameter.

    With adapters, the adapters alone are the parameters. A reference that moves is part of the
    state.
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

    def term(task: Task) -> TermState:
        state = jax.tree.map(place, _first(task))
        return TermState(state, None if task.moves is None else model.abstract)

    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState.of(model.abstract, opt_state, step, [term(task) for task in tasks])


def initial_state(
    params: Params,
    tasks: Sequence[Task],
    tx: optax.GradientTransformation,
    abstract: TrainState,
    references: Sequence[Params | None] = (),
) -> TrainState:
    """The state before the first update.

    Args:
      params: the parameters.
      tasks: the terms.
      tx: the optimizer.
      abstract: shapes and shardings of the state.
      references: the moving reference of each term, or None; empty: no reference moves.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    first = (jnp.int32(0), [_first(task) for task in tasks])
    where = shardings.step, [term.objective_state for term in shardings.terms]
    # Copied: a number that an objective uses twice would be donated twice.
    step, states = jax.device_put(first, where, may_alias=False)
    references = references or [None] * len(tasks)
    return TrainState.of(params, opt_state, step, list(map(TermState, states, references)))


def _first(task: Task) -> Any:
    """The state of an objective before the first batch."""
    return None if task.objective.init_state is None else task.objective.init_state()
