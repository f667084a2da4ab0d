"""The weights that a stage starts from, as a second frozen reference."""

import io

import numpy as np
import pytest
from lib import runs as h
from lib.worked import PAIR, REF_PAIR, single_tokens, worked
from rich.console import Console

from jaxalign.core.types import Pairs
from jaxalign.objectives import OBJECTIVES
from jaxalign.objectives.inpo import inpo
from jaxalign.run.reference import cached_reference
from jaxalign.run.stage import prepare
from jaxalign.update.forward import cached_stats

MESH = h.one_device()
REFERENCE = "stages__inpo__reference__path"


@pytest.fixture
def other(inputs, tmp_path):
    """A checkpoint with other weights."""
    folder = h.copy_folder(inputs / "model", tmp_path / "other")
    h.edit_tensors(folder, lambda tensors: tensors.update(
        {k: v * 1.5 for k, v in tensors.items()}
    ))  # fmt: skip
    return folder


def prepared(inputs, folder, **changes):
    recipe = h.recipe(inputs, folder / "run", "inpo", **changes)
    return prepare(recipe, "inpo", inputs / "model", MESH, h.QUIET)


def logps(stage, split="train", console=h.QUIET):
    """The flat log-probabilities under the reference and under the start."""
    found = cached_reference(stage, split, console)
    assert set(found.ref) <= {"logp"}
    assert set(found.start) == {"logp"}
    ref = found.ref.get("logp")
    return None if ref is None else ref[:], found.start["logp"][:]


def test_the_start_is_not_the_reference_where_that_has_a_path(inputs, other, tmp_path):
    ref, start = logps(prepared(inputs, tmp_path, **{REFERENCE: str(other)}))
    own, same = logps(prepared(inputs, tmp_path / "b"))
    np.testing.assert_array_equal(start, own)
    np.testing.assert_array_equal(start, same)
    assert np.abs(ref - start).max() > 0.1


def test_each_has_a_folder_of_its_own(inputs, other, tmp_path):
    stage = prepared(inputs, tmp_path, **{REFERENCE: str(other)})
    console = Console(file=io.StringIO(), width=400)
    logps(stage, console=console)
    said = console.file.getvalue()
    assert f"reference pass over train data with {other}" in said
    assert f"start pass over train data with {inputs / 'model'}" in said
    assert list((stage.folder / "reference" / "train").glob("part-*.npz"))
    assert list((stage.folder / "start" / "train").glob("part-*.npz"))


def test_one_pass_is_enough_where_they_are_the_same(inputs, tmp_path):
    stage = prepared(inputs, tmp_path)
    logps(stage)
    assert not (stage.folder / "start").exists()


def test_a_second_call_reads_what_the_first_one_wrote(inputs, other, tmp_path):
    before = logps(prepared(inputs, tmp_path, **{REFERENCE: str(other)}))
    stage = prepared(inputs, tmp_path, **{REFERENCE: str(other)})
    console = Console(file=io.StringIO(), width=400)
    after = logps(stage, console=console)
    assert console.file.getvalue() == ""
    np.testing.assert_array_equal(before, after)


def test_a_start_that_has_changed_is_computed_again(inputs, other, tmp_path):
    _, before = logps(prepared(inputs, tmp_path, **{REFERENCE: str(other)}))
    recipe = h.recipe(inputs, tmp_path / "run", "inpo", **{REFERENCE: str(other)})
    moved = h.copy_folder(inputs / "model", tmp_path / "moved")
    h.edit_tensors(moved, lambda tensors: tensors.update(
        {k: v * 0.9 for k, v in tensors.items()}
    ))  # fmt: skip
    stage = prepare(recipe, "inpo", moved, MESH, Console(file=io.StringIO(), width=400))
    _, after = logps(stage)
    assert np.abs(before - after).max() > 0.01


def test_the_start_is_cached_beside_a_live_reference(inputs, tmp_path):
    ref, start = logps(prepared(inputs, tmp_path, stages__inpo__reference__mode="live"))
    assert ref is None
    np.testing.assert_array_equal(start, logps(prepared(inputs, tmp_path / "b"))[1])


def test_an_objective_without_start_has_none(inputs, tmp_path):
    stage = h.prepared(h.recipe(inputs, tmp_path / "run", "dpo"), "dpo", MESH)
    assert cached_reference(stage, "train", h.QUIET).start == {}


def test_a_batch_keeps_them_apart(inputs, other, tmp_path):
    stage = prepared(inputs, tmp_path, **{REFERENCE: str(other)})
    batch = stage.loader(stage.train, cached_reference(stage, "train", h.QUIET)).batch(0)
    ref, start = (cached_stats(token, batch.mask) for token in (batch.ref, batch.start))
    assert set(ref.token) == set(start.token) == {"logp"}
    assert np.abs(ref.logp - start.logp).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cached", "live"])
def test_a_recipe_trains_from_two_references(inputs, other, tmp_path, mode):
    changes = {
        REFERENCE: str(other),
        "stages__inpo__reference__mode": mode,
        "stages__inpo__objective": {"name": "inpo", "eta": 0.1},
        "stages__inpo__steps": 3,
        "stages__inpo__data__eval_path": f"{inputs}/held_out.jsonl",
    }
    h.run(h.recipe(inputs, tmp_path / "run", "inpo", **changes), MESH)
    losses = [line["loss"] for line in h.metrics(tmp_path / "run" / "inpo") if "loss" in line]
    # The policy is the start, so what is left of the margin is a third of that to the reference.
    stage = prepared(
        inputs, tmp_path / "b", **changes | {"stages__inpo__reference__mode": "cached"}
    )
    batch = stage.loader(stage.train, cached_reference(stage, "train", h.QUIET)).batch(0)
    start, ref = (cached_stats(token, batch.mask) for token in (batch.start, batch.ref))
    gap = np.asarray(start.logp - ref.logp)[0, 0]
    want = (((gap[:, 0] - gap[:, 1]) / 3 - 5.0) ** 2).mean()
    np.testing.assert_allclose(losses[0], want, rtol=1e-4)
    assert losses[-1] < losses[0]


def test_a_missing_start_is_named():
    message = r"objective 'inpo' reads \['start'\]; got \['policy', 'ref'\]"
    with pytest.raises(TypeError, match=message):
        inpo.bind()(policy=None, ref=None)


def summed(rows):
    return Pairs(*(single_tokens(float(np.sum(rows[row][0]))) for row in ("chosen", "rejected")))


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_inpo_with_one_reference_is_ipo_with_sums(ratio):
    ipo, _ = worked(OBJECTIVES["ipo"], PAIR, REF_PAIR, tau=0.3, reduction="sum")
    policy, ref = summed(PAIR), summed(REF_PAIR)
    loss = inpo.bind(eta=0.3, ratio=ratio)(policy=policy, ref=ref, start=ref)[0].terms[0].total[0]
    np.testing.assert_allclose(loss, ipo, rtol=1e-5)  # sums of float32 in another order


@pytest.mark.parametrize(("ratio", "unread"), [(0.0, "ref"), (1.0, "start")])
def test_inpo_at_the_ends_of_its_mixture_has_one_reference(ratio, unread):
    given = {"policy": summed(PAIR), "ref": summed(REF_PAIR), "start": summed(REF_PAIR)}
    other = given | {unread: Pairs(single_tokens(-1.0), single_tokens(-50.0))}
    losses = [inpo.bind(ratio=ratio)(**x)[0].terms[0].total[0] for x in (given, other)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_inpo_at_both_references_is_the_square_of_the_margin():
    same = summed(PAIR)
    loss = inpo.bind()(policy=same, ref=same, start=same)[0].terms[0].total[0]
    np.testing.assert_allclose(loss, 1e4, rtol=1e-6)
