"""Compiled programs are shared by tasks that differ in numbers alone."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib.steps import B, batch_of, one_device, parameters, small_model, some_examples

from jaxalign.core.sharding import put_batch
from jaxalign.objectives import OBJECTIVES
from jaxalign.run import evaluate
from jaxalign.run.evaluate import evaluator
from jaxalign.settings import Optimizer
from jaxalign.update.forward import Task
from jaxalign.update.optimizer import Rule
from jaxalign.update.state import abstract_state, initial_state
from jaxalign.update.step import Fixed, Step, train_step

HYPER = {"beta": 0.1, "label_smoothing": 0.05}


def task_of(model, name="dpo", hyper=HYPER, **fields):
    return Task(OBJECTIVES[name], hyper, model.forward, **fields)


def run(tasks, rule, *, compiled):
    """Two updates; the second has other learning rates than the first."""
    mesh = one_device()
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        tasks = [build(model) for build in tasks]
        batch = put_batch(batch_of(some_examples(tasks[0].objective.layout, B)), mesh)
        abstract = abstract_state(model, rule.tx(), tasks)
        state = initial_state(parameters(model, 0), tasks, rule.tx(), abstract)
        fixed = Fixed.of(None, [parameters(model, 1)] * len(tasks))
        if compiled:
            update = Step(tasks, rule, abstract, mesh)
        else:
            update = jax.jit(lambda s, b, f: train_step(tasks, rule.tx(), s, b, f))
        for _ in range(2):
            state, out = update(state, [batch] * len(tasks), fixed)
    return state.params, out.loss


def program(model, rule, *tasks):
    state = abstract_state(model, rule.tx(), tasks)
    return Step(tasks, rule, state, one_device())._program


@pytest.mark.parametrize(
    "name",
    ["adamw", *(pytest.param(n, marks=pytest.mark.slow) for n in ("lion", "adafactor", "sgd"))],
)
def test_numbers_as_arguments_give_the_update_of_numbers_as_constants(name):
    rule = Rule(Optimizer(name=name, learning_rate=0.01, warmup=1), 10)
    terms = [
        lambda model: task_of(model, term="a", weight=0.7),
        lambda model: task_of(model, hyper={"beta": 0.3}, term="b", weight=1.0),
    ]
    constants, arguments = run(terms, rule, compiled=False), run(terms, rule, compiled=True)
    # Lion moves by a sign, so a gradient of nearly 0 may go either way.
    chex.assert_trees_all_close(
        arguments, constants, rtol=1e-4, atol=0.02 if name == "lion" else 1e-5
    )


def test_steps_that_differ_in_numbers_share_a_program():
    model = small_model(one_device())
    rule = Rule(Optimizer(learning_rate=1e-3), 10)
    other = Rule(Optimizer(learning_rate=5e-7), 10)
    one = task_of(model, seed=1, weight=0.5)
    two = task_of(model, hyper={"beta": 0.5, "label_smoothing": 0.0}, seed=2**40 + 2, weight=2.0)
    assert program(model, rule, one) is program(model, other, two)


def test_equal_rules_share_the_program_of_the_first_state():
    rule = Rule(Optimizer(learning_rate=1e-3), 10)
    same = Rule(Optimizer(learning_rate=1e-3), 10)
    assert rule.tx().init is same.tx().init
    assert rule.tx().init is not rule._replace(total=11).tx().init


@pytest.mark.parametrize(
    "changed",
    [
        {"hyper": {"beta": 0.1}},  # label_smoothing is a constant of the function then
        {"router_balance": 0.1},
        {"term": "b"},
        {"constant_hyper": True},
    ],
)
def test_steps_that_differ_in_anything_else_do_not(changed):
    model, rule = small_model(one_device()), Rule(Optimizer(), 10)
    other = dataclasses.replace(task_of(model), **changed)
    assert program(model, rule, task_of(model)) is not program(model, rule, other)


def test_rules_of_other_schedules_do_not_share_a_program():
    model, task = small_model(one_device()), task_of(small_model(one_device()))
    rules = [Rule(Optimizer(), 10), Rule(Optimizer(), 11), Rule(Optimizer(warmup=1), 10)]
    assert len({id(program(model, rule, task)) for rule in rules}) == 3


def test_an_objective_that_reads_its_numbers_in_python_has_them_as_constants():
    model = small_model(one_device())
    static, numbers = task_of(model, constant_hyper=True).split()
    assert dict(static.hyper) == HYPER
    assert numbers.hyper == {}


def test_the_seed_of_a_program_gives_the_random_numbers_of_the_task():
    model = small_model(one_device())
    keyed = next(o for o in OBJECTIVES.values() if "key" in o.inputs)

    def keys(task, numbers):
        return jax.random.key_data(task.with_numbers(numbers).keys(jnp.arange(3), 5))

    for seed in (0, 7, 2**32 + 7, -1):
        task = Task(keyed, {}, model.forward, seed=seed)
        got = jax.jit(keys, static_argnums=0)(*task.split())
        want = jax.random.key_data(task.keys(jnp.arange(3), 5))
        np.testing.assert_array_equal(got, want)


def test_evaluations_that_differ_in_numbers_share_a_program_and_not_their_numbers():
    mesh = one_device()
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        batches = [batch_of(some_examples(OBJECTIVES["dpo"].layout, B))]
        fixed = Fixed(reference=parameters(model, 1))
        before = evaluate._step_program.cache_info().misses
        losses = [
            evaluator(task_of(model, hyper={"beta": beta}), mesh, fixed)(
                parameters(model, 0), None, batches
            )["loss"]
            for beta in (0.1, 5.0)
        ]
        assert evaluate._step_program.cache_info().misses == before + 1
    assert losses[0] != losses[1]
