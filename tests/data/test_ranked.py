"""Rankings of K responses, and responses to forget: from the file to the loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import runs as h
from lib.rows import DEMO, LABELED, PAIR, one, read, write
from lib.worked import KL, LP, RP, rows

from jaxalign.core import layouts
from jaxalign.core.stats import reduce_tokens
from jaxalign.core.types import Pairs, Ranked
from jaxalign.data.tally import Tally
from jaxalign.errors import UserError
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.dpo import dpo

GROUP = {"prompt": "Q", "responses": [" a", " b", " c"], "scores": [3, 1.5, 1]}
SCORES = ("scores", "weight")


def ranked(folder, *records, columns=SCORES, **changes):
    from jaxalign.data.read import read_records
    from jaxalign.settings import Data

    path = write(folder, *records)
    settings = Data(path=path, **changes)
    return list(read_records(settings, path, "train", layouts.RANKED, Tally(), columns))


# Reading


def test_a_group_has_its_responses_and_their_scores(tmp_path):
    (row,) = ranked(tmp_path, GROUP)
    assert (row.responses, row.columns) == ((" a", " b", " c"), {"scores": (3.0, 1.5, 1.0)})


def test_a_group_of_messages_is_read_like_one_of_text(tmp_path):
    chat = [[{"role": "assistant", "content": x}] for x in "ab"]
    (row,) = ranked(tmp_path, GROUP | {"responses": chat, "scores": [1, 2]})
    assert row.responses == tuple(chat)
    assert row.prompt == [{"role": "user", "content": "Q"}]


def test_a_pair_is_a_group_of_two_with_the_scores_of_its_responses(tmp_path):
    (row,) = ranked(tmp_path, PAIR | {"score_chosen": 8, "score_rejected": 6.5})
    assert (row.responses, row.columns) == ((" yes", " no"), {"scores": (8.0, 6.5)})


def test_scores_that_are_read_may_be_in_any_order(tmp_path):
    (row,) = ranked(tmp_path, GROUP | {"scores": [1, 2, 3]})
    assert row.columns["scores"] == (1.0, 2.0, 3.0)


def test_scores_out_of_order_are_refused_where_the_order_is_read(tmp_path):
    message = r"line 1: 'scores' \[1\.0, 2\.0, 3\.0\] are out of order; .* put the best first"
    with pytest.raises(UserError, match=message):
        ranked(tmp_path, GROUP | {"scores": [1, 2, 3]}, columns=())


def test_a_ranking_needs_no_scores_where_they_are_not_read(tmp_path):
    record = {k: GROUP[k] for k in ("prompt", "responses")}
    assert ranked(tmp_path, record, columns=())[0].columns == {}


@pytest.mark.parametrize("responses", [[" a"], [], " a"])
def test_a_group_of_one_response_is_refused(tmp_path, responses):
    with pytest.raises(UserError, match=r"line 1: 'responses' is .*; wanted a list of two or more"):
        ranked(tmp_path, GROUP | {"responses": responses})


def test_groups_of_several_sizes_are_refused(tmp_path):
    other = {"prompt": "Q", "responses": [" a", " b"], "scores": [2, 1]}
    with pytest.raises(UserError, match="line 2: has 2 responses; the rows before have 3"):
        ranked(tmp_path, GROUP, other)


@pytest.mark.parametrize("scores", [[1, 2], 3, "high"])
def test_scores_are_one_a_response(tmp_path, scores):
    with pytest.raises(UserError, match=r"line 1: 'scores' is .*; wanted a list of 3, one a resp"):
        ranked(tmp_path, GROUP | {"scores": scores})


def test_a_score_that_is_no_number_is_named(tmp_path):
    with pytest.raises(UserError, match=r"'scores\[1\]' is 'good'; wanted a finite number"):
        ranked(tmp_path, GROUP | {"scores": [1, "good", 2]})


def test_a_pair_without_scores_names_the_column_that_lacks(tmp_path):
    with pytest.raises(UserError, match="no 'score_chosen'; the columns are"):
        ranked(tmp_path, PAIR)


def test_an_empty_response_of_a_group_is_named(tmp_path):
    with pytest.raises(UserError, match=r"line 1: 'responses\[2\]' is empty"):
        ranked(tmp_path, GROUP | {"responses": [" a", " b", " "]})


@pytest.mark.parametrize("layout", [layouts.PAIRS, layouts.DEMOS, layouts.LABELED, layouts.FORGET])
def test_a_group_fits_no_other_layout(tmp_path, layout):
    with pytest.raises(UserError, match=r"the objective needs .*; got 'responses\[0\]'"):
        one(tmp_path, GROUP, layout)


def test_a_labelled_row_is_no_ranking(tmp_path):
    with pytest.raises(UserError, match="the objective needs 'responses', or pairs; got 'compl"):
        ranked(tmp_path, LABELED, columns=())


def test_what_is_forgotten_of_a_pair_is_its_rejected_response(tmp_path):
    row = one(tmp_path, PAIR, layouts.FORGET)
    assert (row.responses, row.names, row.label) == ((" no",), ("rejected",), None)


def test_what_is_forgotten_of_labelled_rows_is_the_undesirable(tmp_path):
    tally = Tally()
    found = read(write(tmp_path, LABELED, LABELED | {"label": 0}), layouts.FORGET, tally)
    assert [(row.responses, row.label) for row in found] == [((" yes",), None)]
    assert tally.dropped == {"label is 1": 1}


def test_a_response_without_label_is_to_be_forgotten_as_it_is(tmp_path):
    assert one(tmp_path, DEMO, layouts.FORGET).responses == (" yes",)


# Worked values


def grouped(tokens):
    """K summed log-probabilities -> the statistics of one example."""
    values, masks = rows(y=[[x] for x in tokens])
    stats = reduce_tokens({"logp": values["y"]}, masks["y"])
    return Ranked(jax.tree.map(lambda x: x[None], stats))


def moved(stats, by):
    """Statistics whose log-probabilities are higher, by the first token of each response."""
    tokens = stats.token["logp"].at[..., 0].add(by)
    return stats.replace(logp=stats.logp + by, token=stats.token | {"logp": tokens})


def slopes(name, policy, ref, scores, **hyper):
    """Loss, and its slope in each response's log-probability."""
    batch = {"scores": jnp.asarray([scores], jnp.float32)}

    def fn(move):
        after = Ranked(moved(grouped(policy).responses, move))
        out = OBJECTIVES[name].bind(**hyper)(policy=after, ref=grouped(ref), batch=batch)
        return out[0].terms[0].total.sum()

    return jax.value_and_grad(fn)(jnp.zeros((1, len(policy))))


@pytest.mark.parametrize(
    ("name", "loss", "grad"),
    [
        ("nca", 1.369651648187, [-0.009390818969, 0.001102032621, 0.01002508484, 0.0003206497857]),
        (
            "info_nca",
            1.352712181528,
            [-0.0201591172, 0.001536844477, 0.01867986284, -5.759011222e-05],
        ),
    ],
)
def test_worked_value_of_four_responses(name, loss, grad):
    value, slope = slopes(name, LP, RP, [8, 6.5, 3, 7], beta=0.1, alpha=2.0)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(slope[0], grad, rtol=1e-5, atol=2e-8)  # differences of float32


def test_nca_of_a_pair_with_hard_scores_is_its_worked_value():
    value, slope = slopes("nca", [-12.3, -14.1], [-13.0, -13.7], [1, 0], beta=0.1, alpha=1e-3)
    np.testing.assert_allclose(value, 1.359812916937, rtol=1e-6)
    np.testing.assert_allclose(slope[0], [-0.02237607135004, 0.024500066656], rtol=2e-6)


@pytest.mark.parametrize("name", ["info_nca", "plackett_luce"])
def test_two_responses_are_compared_as_by_dpo(name):
    hard = {"alpha": 1e-3} if name == "info_nca" else {}
    value, slope = slopes(name, LP[:2], RP[:2], [1, 0], beta=0.1, **hard)

    def fn(move):
        policy, ref = (grouped(x).responses for x in (LP[:2], RP[:2]))
        policy = moved(policy, move)
        pairs = [Pairs(*(jax.tree.map(lambda x, k=k: x[:, k], y) for k in (0, 1)))
                 for y in (policy, ref)]  # fmt: skip
        return dpo.bind()(policy=pairs[0], ref=pairs[1])[0].terms[0].total.sum()

    wanted = jax.value_and_grad(fn)(jnp.zeros((1, 2)))
    np.testing.assert_allclose(value, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(slope, wanted[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("info_nca", math.log(4)), ("nca", 2 * math.log(2)),
                        ("plackett_luce", math.log(24))]
)  # fmt: skip
def test_the_loss_of_a_ranking_at_the_reference_is_known(name, value):
    assert abs(slopes(name, KL, KL, [1, 0, 2, 4])[0] - value) < 1e-6


def test_the_order_of_a_ranking_matters():
    there, back = (slopes("plackett_luce", x, y, [0] * 4, beta=0.5)[0]
                   for x, y in ((LP, RP), (LP[::-1], RP[::-1])))  # fmt: skip
    assert abs(there - back) > 0.1


def test_worked_value_of_npo():
    values, masks = rows(response=[[-14.1]])
    o = OBJECTIVES["npo"]

    def fn(y):
        policy, ref = (
            o.data(reduce_tokens({"logp": x}, masks["response"]))
            for x in (y, jnp.full_like(y, -13.7))
        )
        return o.bind()(policy=policy, ref=ref)[0].terms[0].total.sum()

    value, slope = jax.value_and_grad(fn)(values["response"])
    np.testing.assert_allclose(value, 13.46694334456, rtol=1e-6)
    np.testing.assert_allclose(slope[0, 0], 0.9800026662401, rtol=2e-6)


# Runs


def test_a_recipe_trains_on_groups(inputs, tmp_path):
    path = tmp_path / "groups.jsonl"
    groups = [
        {"prompt": p["prompt"], "responses": [p["chosen"], p["rejected"], "n"], "scores": [2, 0, 1]}
        for p in map(h.pair, range(h.TRAIN))
    ]
    h.write_rows(path, groups)
    changes = {"stages__info_nca__data__path": str(path), "stages__info_nca__steps": 3}
    h.run(h.recipe(inputs, tmp_path / "run", "info_nca", **changes), h.one_device())
    lines = h.metrics(tmp_path / "run" / "info_nca")
    losses = [line["loss"] for line in lines if "loss" in line]
    np.testing.assert_allclose(losses[0], np.log(3), rtol=1e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["plackett_luce", "npo"])
def test_a_recipe_trains_on_pairs(inputs, tmp_path, name):
    changes = {f"stages__{name}__steps": 3}
    h.run(h.recipe(inputs, tmp_path / "run", name, **changes), h.one_device())
    losses = [line["loss"] for line in h.metrics(tmp_path / "run" / name) if "loss" in line]
    assert losses[-1] < losses[0]
