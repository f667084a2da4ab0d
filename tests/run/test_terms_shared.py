"""Terms on the same data share the forward pass of a stage."""

import pytest
from lib import runs as h
from lib import terms

from jaxalign.recipe.read import parse
from jaxalign.run import stage

MESH = h.one_device()
NAMES = ("dpo", "slpo", "bco")


def values(inputs, run, **changes):
    """The values of a stage of DPO, SLPO and BCO on the same pairs."""
    recipe = h.values(inputs, run, "dpo")
    own = recipe["stages"].pop("dpo")
    data = own.pop("data") | {"eval_path": f"{inputs}/held_out.jsonl"}
    del own["objective"], own["batch_size"]
    objectives = dict(zip(NAMES, ("dpo", "slpo", "bco_pair"), strict=True))
    own["terms"] = {
        name: {"objective": {"name": objective}, "data": data, "batch_size": 8, "weight": 0.5}
        for name, objective in objectives.items()
    }
    for name, change in changes.items():
        data = own["terms"][name]["data"] | change.get("data", {})
        own["terms"][name] |= change | {"data": data}
    recipe["stages"]["mixed"] = own
    return recipe


def shared(recipe, name):
    """{term: the term whose batches it has} of a stage."""
    return {term.term: term.task.batch_of for term in h.prepared(parse(recipe), name, MESH).terms}


def test_terms_with_the_same_data_share_their_batches(inputs, tmp_path):
    found = shared(values(inputs, tmp_path / "run"), "mixed")
    assert found == {"dpo": None, "slpo": "dpo", "bco": "dpo"}


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 4},
        {"data": {"max_length": 30}},
        {"data": {"limit": 10}},
        {"reference": {"mode": "live"}, "objective": {"name": "dpo"}},
        {"objective": {"name": "sft"}},
    ],
    ids=str,
)
def test_terms_with_other_batches_or_a_live_reference_do_not(inputs, tmp_path, change):
    found = shared(values(inputs, tmp_path / "run", slpo=change), "mixed")
    assert found == {"dpo": None, "slpo": None, "bco": "dpo"}


def test_terms_on_data_of_their_own_do_not(inputs, tmp_path):
    recipe = terms.values(inputs, tmp_path / "run", terms.write_samples(tmp_path))
    assert shared(recipe, "hypo") == {"dpo": None, "kl": None}


def test_held_out_data_of_its_own_make_no_difference(inputs, tmp_path):
    recipe = values(inputs, tmp_path / "run", bco={"data": {"eval_path": None}})
    assert shared(recipe, "mixed")["bco"] == "dpo"


STREAMED = {
    name: {"objective": {"name": objective}, "data": {"streaming": True}}
    for name, objective in zip(NAMES, ("simpo", "orpo", "cpo"), strict=True)
}


@pytest.mark.parametrize(
    "changes",
    [{}, pytest.param(STREAMED, marks=pytest.mark.slow)],
    ids=["kept data", "streamed data"],
)
def test_the_metrics_are_those_of_a_forward_pass_for_each(inputs, tmp_path, monkeypatch, changes):
    def metrics(run):
        recipe = values(inputs, run, **changes)
        recipe["stages"]["mixed"] |= {"steps": 4}
        assert set(shared(recipe, "mixed").values()) == {None, "dpo"} - parted
        h.run(parse(recipe), MESH)
        return h.repeated(h.metrics(run / "mixed"))

    parted = set()
    ours = metrics(tmp_path / "shared")
    monkeypatch.setattr(stage, "_sharing", list)
    parted = {"dpo"}
    theirs = metrics(tmp_path / "apart")
    assert len(ours) == len(theirs) > 4
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5)
