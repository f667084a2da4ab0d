"""What every objective promises to the step, the cache and the config."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib.objectives import call, draw, inputs, reduce, train_call

from jaxalign.core import stats
from jaxalign.objectives import OBJECTIVES

pytestmark = pytest.mark.parametrize("o", OBJECTIVES.values(), ids=OBJECTIVES)


def totals(loss):
    return np.stack([np.asarray(t.total) for t in loss.terms])


def part(case, rows):
    return jax.tree.map(lambda x: x[rows], case)


def differ(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.allclose(x, y, rtol=1e-5) for x, y in pairs)


def test_it_reads_no_more_than_it_declares(o):
    call(o, draw(o))  # statistics and columns that are not declared are not there


def test_every_declared_statistic_changes_the_loss_or_its_gradient(o):
    given = inputs(o, draw(o))
    policy = given["policy"]

    def fn(policy):
        loss = o.bind()(**given | {"policy": policy})[0]
        return sum(t.total.sum() for t in loss.terms), loss

    def outcome(policy):
        grad, loss = jax.grad(fn, has_aux=True)(policy)
        slopes = jax.tree.map(lambda g: g.token, grad, is_leaf=lambda x: hasattr(x, "token"))
        return totals(loss), slopes

    before = outcome(policy)
    for need in o.needs:
        row = o.layout.responses[0]
        y = getattr(policy, row)
        token = y.token | {need.name: y.token[need.name] - 0.3}
        moved = policy.replace(**{row: stats.reduce_tokens(token, y.mask > 0)})
        assert differ(before, outcome(moved)), need.name


def test_every_declared_statistic_of_layers_changes_the_loss(o):
    given = inputs(o, draw(o))
    row = o.layout.responses[0]
    y = getattr(given["ref"], row)
    for stat in o.layers:
        token = y.token | {stat.name: y.token[stat.name] * 0.5}
        ref = given["ref"].replace(**{row: y.replace(token=token)})
        before, after = (totals(o.bind()(**given | {"ref": r})[0]) for r in (given["ref"], ref))
        assert differ(before, after), stat.name


def test_every_declared_column_changes_something(o):
    case = draw(o)
    before = train_call(o, case)
    for name in o.columns:
        columns = case["columns"] | {name: case["columns"][name].at[0].add(-1.0) ** 2}
        after = train_call(o, case | {"columns": columns})
        assert differ((before[0], *before[2:]), (after[0], *after[2:])), name


def test_the_declared_reference_changes_the_loss(o):
    case = draw(o)
    moved = case | {"ref": jax.tree.map(lambda m: m - 0.7, case["ref"])}
    assert differ(totals(train_call(o, case)[0]), totals(train_call(o, moved)[0])) == o.uses_ref


def test_the_declared_start_changes_the_loss(o):
    case = draw(o)
    moved = case | {"start": jax.tree.map(lambda m: m - 0.7, case["start"])}
    assert differ(totals(train_call(o, case)[0]), totals(train_call(o, moved)[0])) == o.uses_start


def test_examples_meet_only_where_that_is_declared(o):
    case = draw(o)
    halves = [part(case, slice(0, 2)), part(case, slice(2, 4))]
    whole, outs = call(o, case), [call(o, h) for h in halves]
    apart = np.concatenate([totals(out[0]) for out in outs], 1)
    couples = differ(totals(whole[0]), apart) or any(differ(whole[2:], out[2:]) for out in outs)
    assert couples == o.couples_examples


def test_given_the_state_examples_do_not_meet(o):
    case = draw(o)
    state = call(o, draw(o, 1))[2] if o.init_state else None
    apart = [totals(call(o, part(case, slice(i, i + 2)), state)[0]) for i in (0, 2)]
    meet = differ(totals(call(o, case, state)[0]), np.concatenate(apart, 1))
    assert meet == (o.couples_examples and o.init_state is None)


def test_no_gradient_flows_through_the_next_state(o):
    case = draw(o)

    def fn(policy):
        out = call(o, case | {"policy": policy})
        return (
            sum(x.sum() for x in jax.tree.leaves(out[2:])) + 0.0 * next(iter(policy.values())).sum()
        )

    for g in jax.tree.leaves(jax.grad(fn)(case["policy"])):
        np.testing.assert_array_equal(g, 0.0)


def test_counts_do_not_depend_on_the_policy(o):
    case = draw(o)
    moved = case | {"policy": jax.tree.map(lambda m: m * 2.0 + 1.0, case["policy"])}
    before, after = ([t.count for t in train_call(o, c)[0].terms] for c in (case, moved))
    chex.assert_trees_all_equal(before, after)


@pytest.mark.parametrize("m", [-1e4, 13.8, 1e4], ids=["logp-1e4", "logp-1e-6", "logp0"])
@pytest.mark.parametrize("ref", ["same", pytest.param("normal", marks=pytest.mark.slow)])
def test_value_and_gradient_are_finite_at_the_ends(o, m, ref):
    case = draw(o)
    extreme = jax.tree.map(lambda x: jnp.full_like(x, m), case["policy"])

    def fn(policy):
        out = train_call(o, case | {"policy": policy})
        return reduce(out[0], case["columns"]["weight"]), out[1]

    case = case | {"ref": extreme} if ref == "same" else case
    with jax.debug_nans(True):
        out, grad = jax.value_and_grad(fn, has_aux=True)(extreme)
    chex.assert_tree_all_finite((out, grad))


def test_value_and_gradient_are_finite_on_padding(o):
    case = draw(o)
    case["masks"] = jax.tree.map(jnp.zeros_like, case["masks"])

    def fn(policy):
        return train_call(o, case | {"policy": policy})[0].terms[0].total.sum()

    with jax.debug_nans(True):
        chex.assert_tree_all_finite(jax.value_and_grad(fn)(case["policy"]))


def test_metrics_are_one_number_per_example(o):
    metrics = call(o, draw(o))[1]
    assert metrics
    chex.assert_shape(list(metrics.values()), (4,))


def test_it_is_float32_under_strict_promotion(o):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        case = draw(o)
        leaves = jax.tree.leaves(train_call(o, case))
    assert {x.dtype for x in leaves} == {jnp.dtype("float32")}


def test_numeric_hyper_parameters_may_be_traced(o):
    case = draw(o)
    numbers = {k: p.default for k, p in o.hyper.items() if isinstance(p.default, float)}
    traced = jax.jit(lambda h: train_call(o, case, **h)[0])(numbers)
    chex.assert_trees_all_close(traced, train_call(o, case)[0], rtol=1e-5)


def test_every_hyper_parameter_changes_the_result(o):
    case = draw(o)
    state = call(o, draw(o, 1))[2] if o.init_state else None
    before = train_call(o, case, state)[0]
    for name, p in o.hyper.items():
        if isinstance(p.default, float):
            after = train_call(o, case, state, **{name: p.default * 0.7 + 0.2})[0]
            assert differ(before, after), name


def test_a_padding_example_has_no_influence(o):
    case = draw(o)
    case["columns"]["weight"] = jnp.asarray([1.0, 1.0, 1.0, 0.0])
    strange = case | {"policy": jax.tree.map(lambda m: m.at[3].set(-50.0), case["policy"])}
    (before, after) = (train_call(o, c) for c in (case, strange))
    chex.assert_trees_all_equal(before[2:], after[2:])
    np.testing.assert_array_equal(totals(before[0])[:, :3], totals(after[0])[:, :3])


def test_an_unknown_hyper_parameter_is_named_with_its_near_miss(o):
    known = next(iter(o.hyper), None)
    hint = f"did you mean '{known}'" if known else "known:"
    with pytest.raises(TypeError, match=f"'{o.name}' has no hyper-parameter.*{hint}"):
        o.bind(**{f"{known}s" if known else "beta": 1.0})
