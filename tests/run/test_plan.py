from types import SimpleNamespace

import chex
import jax
import pytest
from lib import runs as h

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.run import plan, train
from jaxalign.run.weights import fixed_weights
from jaxalign.sealed import read_own
from jaxalign.settings import Mesh

MESH = h.one_device()


def recipe_of(inputs, run, *stages, **changes):
    """A recipe whose batches are large enough for microbatches to matter."""
    large = {f"stages__{name}__batch_size": 64 for name in stages}
    return h.recipe(inputs, run, *stages, **large, **changes)


def auto(inputs, run, *stages, **changes):
    """A recipe whose stages choose their microbatches."""
    stages = stages or ("dpo",)
    chosen = {f"stages__{name}__microbatches": "auto" for name in stages}
    return recipe_of(inputs, run, *stages, **chosen, **changes)


def limited(monkeypatch, limit):
    """Let an update take `limit` bytes on each device."""
    monkeypatch.setattr(plan, "memory", lambda devices: limit / plan.SHARE + 1)


def sizes(inputs, run, *microbatches, mesh=MESH, name="dpo", **changes):
    """Bytes of an update by the number of microbatches."""
    prepared = h.prepared(auto(inputs, run, name, **changes), name, mesh)
    return [plan.update_bytes(prepared.with_microbatches(n)) for n in microbatches]


def planned(run, stage="dpo"):
    """What `plan.json` holds for the one mesh it was made for."""
    (found,) = read_own(run / stage / "plan.json", dict[str, dict]).values()
    return found


def shapes(recipe, microbatches, mesh=MESH):
    """The leading axes [n, S] of the batches of a stage that was settled."""
    prepared = plan.settled(h.prepared(recipe, "dpo", mesh), h.QUIET)
    assert prepared.settings.microbatches == microbatches
    return prepared.loader(prepared.train).batch(0).ids.shape[:2]


# The choice


def test_a_batch_to_plan_with_has_the_statistics_of_both_references(inputs, tmp_path):
    for mode, names in (("cached", {"logp"}), ("live", set())):
        recipe = h.recipe(inputs, tmp_path / mode, "inpo", stages__inpo__reference__mode=mode)
        batch = plan.costliest_batch(h.prepared(recipe, "inpo", MESH))
        assert set(batch.ref) == names
        assert set(batch.start) == {"logp"}


def test_the_batch_to_plan_with_is_the_largest(inputs, tmp_path):
    # In rows as short as these, batches differ in how many they have.
    recipe = h.recipe(inputs, tmp_path, "dpo", stages__dpo__data__row_length=32)
    prepared = h.prepared(recipe, "dpo", MESH)
    loader = prepared.loader(prepared.train)
    assert len({shape.rows * shape.row_length for shape in loader.shapes}) > 1
    batch = plan.costliest_batch(prepared)
    largest = max(loader.shapes, key=lambda shape: shape.rows * shape.row_length + shape.scored)
    assert batch.ids.shape[2:] == batch.segment.shape[2:] == largest[:2]
    assert batch.target.shape[2:] == batch.slot.shape[2:] == largest[2:]


def test_candidates_are_the_divisors_in_order():
    assert plan.divisors(12) == [1, 2, 3, 4, 6, 12]
    assert plan.divisors(1) == [1]


def test_the_first_candidate_that_fits_is_taken_and_no_later_one_is_tried():
    tried = []

    def fits(n):
        tried.append(n)
        return n >= 3

    assert plan.fewest([1, 2, 3, 4, 6], fits) == 3
    assert tried == [1, 2, 3]
    assert plan.fewest([1, 2], fits) is None


def test_the_limit_is_that_of_the_smallest_device():
    devices = [SimpleNamespace(memory_stats=lambda b=b: {"bytes_limit": b}) for b in (7, 5, 9)]
    assert plan.memory(devices) == 5


def test_cpu_devices_share_the_memory_of_the_machine():
    assert plan.memory(jax.devices("cpu")[:2]) == plan.memory(jax.devices("cpu")[:1]) // 2


def test_a_number_in_the_recipe_is_left_alone(inputs, tmp_path):
    prepared = h.prepared(h.recipe(inputs, tmp_path, "dpo"), "dpo", MESH)
    assert plan.settled(prepared, h.QUIET) is prepared
    assert not (tmp_path / "dpo").exists()


# What an update takes


def test_more_microbatches_take_less_memory(inputs, tmp_path):
    one, two = sizes(inputs, tmp_path, 1, 2)
    assert one > two


@pytest.mark.slow
def test_a_live_reference_is_counted_with_its_parameters(inputs, tmp_path):
    # Of a small batch: temporaries of a large one vary by more than these parameters take.
    small = {"stages__dpo__batch_size": 2, "stages__dpo__microbatches": 1}

    def of(mode):
        recipe = h.recipe(inputs, tmp_path, "dpo", **small, stages__dpo__reference__mode=mode)
        return h.prepared(recipe, "dpo", MESH)

    params = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(of("live").model.abstract))
    assert plan.update_bytes(of("live")) > plan.update_bytes(of("cached")) + 0.9 * params


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_base_of_adapters_is_an_argument_with_the_shardings_of_the_loaded_one(
    inputs, tmp_path, quantize
):
    lora = {"rank": 2, "quantize": quantize}
    mesh = make_mesh(Mesh(fsdp=2, tensor=2), jax.devices()[:4])
    prepared = h.prepared(auto(inputs, tmp_path, stages__dpo__lora=lora), "dpo", mesh)
    loaded = fixed_weights(prepared).base
    expected = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), loaded)
    found = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), plan._base(prepared))
    assert found == expected
    assert plan.update_bytes(prepared.with_microbatches(1)) > 0


# A run


@pytest.fixture
def two(inputs, tmp_path, monkeypatch):
    """A limit by which two microbatches are the fewest."""
    one, half = sizes(inputs, tmp_path / "sizes", 1, 2)
    limited(monkeypatch, (one + half) // 2)


@pytest.mark.slow
def test_a_run_trains_with_the_fewest_that_fit_and_goes_on_with_them(
    inputs, tmp_path, monkeypatch, two
):
    recipe = auto(inputs, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(train.export, "write_model", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            h.run(recipe, MESH)
    found = planned(tmp_path / "run")
    assert found["microbatches"] == 2
    assert found["bytes"]["1"] > found["limit"] >= found["bytes"]["2"]
    monkeypatch.setattr(plan, "update_bytes", lambda prepared: 1 / 0)  # is not asked again
    printed = h.run(recipe, MESH)
    assert "resumes after update 6 of 6" in printed
    assert "an update takes" not in printed
    assert shapes(recipe, 2) == (2, 1)
    assert "microbatches: auto" in (tmp_path / "run" / "recipe.yaml").read_text()


@pytest.mark.slow
def test_a_run_that_chose_equals_one_that_was_told_to_the_bit(inputs, tmp_path, two):
    printed = h.run(auto(inputs, tmp_path / "chosen"), MESH)
    assert "dpo: microbatches 1: an update takes" in printed
    assert "dpo: microbatches 2: an update takes" in printed
    assert "microbatches 4" not in printed
    h.run(recipe_of(inputs, tmp_path / "told", "dpo", stages__dpo__microbatches=2), MESH)
    chex.assert_trees_all_equal(
        *(h.tensors(tmp_path / run / "dpo" / "model") for run in ("chosen", "told"))
    )


def test_memory_enough_is_one_microbatch(inputs, tmp_path):
    assert shapes(auto(inputs, tmp_path), 1) == (1, 1)
    assert planned(tmp_path)["microbatches"] == 1


@pytest.mark.slow
def test_another_mesh_has_a_plan_of_its_own(inputs, tmp_path, two):
    recipe = auto(inputs, tmp_path / "run")
    assert shapes(recipe, 2) == (2, 1)
    mesh = make_mesh(Mesh(data=4), jax.devices()[:4])
    assert shapes(recipe, 1, mesh) == (1, 4)
    assert len(read_own(tmp_path / "run" / "dpo" / "plan.json", dict[str, plan.Plan])) == 2
    assert shapes(recipe, 2) == (2, 1)


def test_a_stage_that_fits_in_no_way_is_refused_with_the_figures(inputs, tmp_path, monkeypatch):
    limited(monkeypatch, 2**20)
    monkeypatch.setattr(plan, "update_bytes", lambda prepared: 2**31)
    with pytest.raises(UserError) as error:
        h.run(auto(inputs, tmp_path), MESH)
    said = str(error.value)
    assert "stages.dpo.microbatches: auto finds none that fits; an update in 64" in said
    assert "takes 2,048.0 MiB on each device; wanted at most 1.0 MiB" in said
    assert not (tmp_path / "dpo").exists()  # nothing has begun: the recipe may be mended


def test_a_compiler_that_finds_no_room_is_a_candidate_that_does_not_fit(
    inputs, tmp_path, monkeypatch
):
    def refuse(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm")

    lowered = SimpleNamespace(lower=lambda *args: SimpleNamespace(compile=refuse))
    monkeypatch.setattr(plan, "Step", lambda *args: lowered)
    with pytest.raises(UserError, match="takes more than there is on each device"):
        h.run(auto(inputs, tmp_path), MESH)


@pytest.mark.slow
def test_every_command_reads_the_plan_of_the_training(
    inputs, tmp_path, jaxalign_command, monkeypatch
):
    values = h.values(
        inputs,
        tmp_path / "run",
        "dpo",
        run__compile_cache=jax.config.jax_compilation_cache_dir,
        stages__dpo__batch_size=64,
        stages__dpo__microbatches="auto",
        stages__dpo__data__eval_path=f"{inputs}/held_out.jsonl",
    )
    recipe = h.write_recipe(tmp_path / "recipe.yaml", values)
    assert jaxalign_command("train", recipe)[0] == 0
    monkeypatch.setattr(plan, "update_bytes", lambda prepared: 1 / 0)
    for command in (["evaluate"], ["reference"], ["export", "--out", tmp_path / "out"]):
        code, out, err = jaxalign_command(command[0], recipe, *command[1:])
        assert (code, err) == (0, "")
        assert "an update takes" not in out
