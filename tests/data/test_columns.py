"""Columns that an objective reads from the data by their name."""

import jax
import numpy as np
import pytest
from lib import runs as h
from lib.rows import load, pair
from lib.steps import assert_same, batch_of, dense_loss, parameters, small_model, some_examples

from jaxalign.core import layouts
from jaxalign.core.objective import objective
from jaxalign.core.sharding import batch_shards, make_mesh, put_batch
from jaxalign.core.types import Pairs, per_example
from jaxalign.errors import UserError
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives._common import between
from jaxalign.settings import Mesh
from jaxalign.update.forward import Task
from jaxalign.update.gradient import value_and_grad

COLUMNS = ("preference", "weight")


@objective(Pairs, source="a test", columns=COLUMNS, check=between("preference", 0, 1))
def graded(policy, ref, batch):
    """A difference of log-ratios times a column."""
    gap = policy.chosen.logp - ref.chosen.logp - policy.rejected.logp + ref.rejected.logp
    return per_example(-batch["preference"] * gap), {"gap": gap}


@pytest.fixture
def known(monkeypatch):
    """`graded` is an objective that recipes may name."""
    monkeypatch.setitem(OBJECTIVES, "graded", graded)


def rows(*values):
    return [pair("Hi") | {"preference": v, "other": "text"} for v in values]


def test_only_the_columns_that_the_objective_reads_are_kept(tmp_path):
    data = load(tmp_path, *rows(0.25, 1), columns=COLUMNS)
    assert [item.columns for item in data] == [{"preference": 0.25}, {"preference": 1.0}]
    assert load(tmp_path, *rows(0.25))[0].columns == {}


def test_a_column_of_a_pair_is_that_of_both_its_labelled_rows(tmp_path):
    data = load(tmp_path, *rows(0.25), layout=layouts.LABELED, columns=(*COLUMNS, "label"))
    assert [item.columns["preference"] for item in data] == [0.25, 0.25]
    assert [item.columns["label"] for item in data] == [1.0, 0.0]


def test_columns_are_in_the_fingerprint_of_the_data(tmp_path):
    prints = {load(tmp_path, *rows(v), columns=COLUMNS).fingerprint for v in (0.25, 0.5)}
    assert len(prints) == 2


def test_a_column_that_is_missing_names_the_near_one(tmp_path):
    message = "line 1: no 'preference'; the columns are .*; did you mean 'preferences'"
    with pytest.raises(UserError, match=message):
        load(tmp_path, pair("Hi") | {"preferences": 1}, columns=COLUMNS)


def test_a_column_that_is_missing_lists_those_there_are(tmp_path):
    message = "line 2: no 'preference'; the columns are 'prompt', 'chosen', 'rejected'$"
    with pytest.raises(UserError, match=message):
        load(tmp_path, *rows(1), pair("Hi") | {"preference": None}, columns=COLUMNS)


@pytest.mark.parametrize("value", ["0.5", True, [0.5], float("nan"), float("inf"), 1e300])
def test_a_value_that_is_no_finite_number_is_refused(tmp_path, value):
    with pytest.raises(
        UserError, match=r"line 2: .*'preference' is .*(wanted|write null or) a (finite )?number"
    ):
        load(tmp_path, *rows(1, value), columns=COLUMNS)


def graded_examples():
    items = some_examples(layouts.PAIRS, 8)
    return [e._replace(columns={"preference": i / 7}) for i, e in enumerate(items)]


def test_packing_keeps_a_column_beside_its_example():
    items = graded_examples()
    batch = batch_of(items, 2, 2)
    np.testing.assert_array_equal(
        batch.columns["preference"], (batch.example / 7).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("n", "devices"),
    [
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(4, 1, marks=pytest.mark.slow),
        (2, 2),
    ],
)
def test_an_objective_with_a_column_gives_the_dense_gradient(n, devices):
    mesh = make_mesh(Mesh(), jax.devices()[:devices])
    items = graded_examples()
    with jax.set_mesh(mesh):
        model = small_model(mesh)
        params, ref = parameters(model, 0), parameters(model, 1)
        task = Task(graded, {}, model.forward)
        batch = put_batch(batch_of(items, n, batch_shards(mesh)), mesh)
        run = jax.jit(lambda p, r, b: value_and_grad(task, p, b, ref_params=r))
        found = run(params, ref, batch)
        dense = jax.jit(jax.value_and_grad(lambda p: dense_loss(graded, {}, model, p, ref, items)))(
            params
        )
    assert_same((found.loss, found.grads), dense)


def write_graded(inputs, folder, preference):
    path = folder / "graded.jsonl"
    h.write_rows(path, [h.pair(i) | {"preference": preference(i)} for i in range(h.TRAIN)])
    return {"stages__graded__data__path": str(path), "stages__graded__steps": 2}


def test_a_recipe_trains_with_a_column(known, inputs, tmp_path):
    changes = write_graded(inputs, tmp_path, lambda i: i / h.TRAIN)
    h.run(h.recipe(inputs, tmp_path / "run", "graded", **changes), h.one_device())
    lines = h.metrics(tmp_path / "run" / "graded")
    assert np.isfinite([line["loss"] for line in lines]).all()


def test_a_column_out_of_its_range_is_refused_before_training(known, inputs, tmp_path):
    changes = write_graded(inputs, tmp_path, lambda i: i / 2)
    recipe = h.recipe(inputs, tmp_path / "run", "graded", **changes)
    message = (
        r"graded\.jsonl line 4: preference must be between 0 and 1; got preference 1\.5; "
        "correct or drop the row"
    )
    with pytest.raises(UserError, match=message):
        h.run(recipe, h.one_device())


def test_a_check_needs_columns():
    with pytest.raises(TypeError, match="a `check` is of `columns`; declare them"):

        @objective(Pairs, source="a test", check=between("preference", 0, 1))
        def unread(policy):
            """Documented."""


@pytest.mark.parametrize(
    "name, column, value, wrong",
    [
        ("odpo", "score_rejected", 3.0, "score_chosen must be above score_rejected"),
        ("odpo", "score_rejected", 2.0, "score_chosen must be above score_rejected"),
        ("spce", "preference", 1.5, "preference must be between 0 and 1"),
        ("sppo", "preference", -0.1, "preference must be between 0 and 1"),
        ("egpo", "preference_gap", 1.1, "preference_gap must be between -1 and 1"),
        ("bco_udm", "density_ratio", -1.0, "density_ratio must be between 0 and inf"),
    ],
)
def test_a_column_out_of_its_range_is_told(name, column, value, wrong):
    right = {"score_chosen": 2.0, "score_rejected": 1.0, "preference": 0.5}
    right |= {"preference_gap": 0.5, "density_ratio": 2.0}
    check = OBJECTIVES[name].check
    assert check is not None
    assert check(right) == ""
    assert check(right | {column: value}) == wrong
