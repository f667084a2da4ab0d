import io
import json

import jax
import numpy as np
import pytest
from lib import runs as h
from rich.console import Console

from jaxalign.core.sharding import put_batch
from jaxalign.data.pack import CachedStats
from jaxalign.errors import UserError
from jaxalign.hf.load import load_params
from jaxalign.run import reference
from jaxalign.run.reference import cached_reference, reference_forward
from jaxalign.run.stage import prepare
from jaxalign.update.forward import cached_stats, sequence_stats

MESH = h.one_device()
PARTS = h.TRAIN // h.BATCH
FINGERPRINT = {"weights": "a" * 64, "data": "b" * 64}


@pytest.fixture(scope="module", autouse=True)
def part():
    """One batch a part, so that a small data set has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "PART", h.BATCH)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return h.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def stage(inputs, tmp_path_factory):
    """A stage of SLPO, which needs two statistics of every token."""
    folder = tmp_path_factory.mktemp("stage")
    recipe = h.recipe(
        inputs, folder / "run", "slpo", stages__slpo__data__eval_path=f"{inputs}/held_out.jsonl"
    )
    return h.prepared(recipe, "slpo", MESH)


@pytest.fixture(scope="module")
def forward(stage):
    return reference_forward(stage, stage.source)


@pytest.fixture
def compute(forward):
    """A reference pass that counts its batches, and can be killed at one of them."""

    class Pass:
        batches = 0
        dies_at = None

        def __call__(self):
            def counted(batch):
                if self.batches == self.dies_at:
                    raise KeyboardInterrupt
                self.batches += 1
                return forward(batch)

            return counted

    return Pass()


@pytest.fixture
def cached(stage, compute, tmp_path):
    """`cached()`: the statistics of the training data, from a cache of this test's own."""

    def run(**changed):
        loader = stage.loader(stage.train)
        fingerprint = FINGERPRINT | changed
        return reference.cached(tmp_path, fingerprint, loader, compute, lambda done, total: None)

    return run


def whole(stats):
    return {name: values[:] for name, values in stats.items()}


def live(stage, batch):
    """The statistics of a batch under the reference itself, of its scored tokens."""
    params = load_params(stage.source, stage.model)
    run = jax.jit(lambda p, b: jax.lax.map(lambda c: sequence_stats(stage.task, p, c).token, b))
    return run(params, put_batch(batch, MESH))


def assert_equal_where_scored(got, want, mask):
    assert set(got) == {"logp", "log_complement"}
    for name in got:
        ours, theirs = np.asarray(got[name])[mask], np.asarray(want[name])[mask]
        assert np.abs(ours).min() > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [0, 1, 5, 17])
def test_any_batch_gets_the_statistics_of_its_own_examples(stage, cached, step):
    batch = stage.loader(stage.train, CachedStats(cached())).batch(step)
    assert_equal_where_scored(batch.ref, live(stage, batch), batch.mask)
    stats = cached_stats(batch.ref, batch.mask)
    assert stats is not None
    np.testing.assert_array_equal(stats.token["logp"], np.where(batch.mask, batch.ref["logp"], 0))


def test_a_pass_over_the_same_batch_gives_the_same_bits(stage, forward, cached):
    loader = stage.loader(stage.train, CachedStats(cached()))
    batch = next(loader.sequential())
    again = forward(batch._replace(ref={}))
    for name, values in batch.ref.items():
        np.testing.assert_array_equal(values[batch.mask], np.asarray(again[name])[batch.mask])


def test_a_short_last_part_is_whole(stage):
    held_out = cached_reference(stage, "held_out", h.QUIET)
    batches = list(stage.loader(stage.held_out, held_out).sequential())
    assert len(batches) == 2
    for batch in batches:
        assert_equal_where_scored(batch.ref, live(stage, batch), batch.mask)


def test_a_second_use_computes_nothing(cached, compute):
    first = whole(cached())
    assert compute.batches == PARTS
    second = whole(cached())
    assert compute.batches == PARTS
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_whole_cache_does_not_even_load_the_reference(stage, cached, tmp_path):
    cached()

    def refuse():
        raise AssertionError

    loader = stage.loader(stage.train)
    reference.cached(tmp_path, FINGERPRINT, loader, refuse, lambda done, total: None)


@pytest.mark.parametrize("dies_at", range(PARTS))
def test_a_killed_pass_goes_on_with_the_first_missing_part(cached, compute, tmp_path, dies_at):
    compute.dies_at = dies_at
    with pytest.raises(KeyboardInterrupt):
        cached()
    assert len(list(tmp_path.glob("part-*.npz"))) == dies_at
    compute.dies_at = None
    resumed = whole(cached())
    assert compute.batches == PARTS
    for path in tmp_path.iterdir():
        path.unlink()
    for name, values in whole(cached()).items():
        np.testing.assert_array_equal(resumed[name], values)


def test_only_a_missing_part_is_computed_again(cached, compute, tmp_path):
    before = whole(cached())
    sorted(tmp_path.glob("part-*.npz"))[1].unlink()
    again = whole(cached())
    assert compute.batches == PARTS + 1
    for name in before:
        np.testing.assert_array_equal(before[name], again[name])


def test_half_a_part_that_a_kill_left_does_not_count(cached, compute, tmp_path):
    before = whole(cached())
    path = sorted(tmp_path.glob("part-*.npz"))[1]
    path.with_name(path.name + ".tmp").write_bytes(path.read_bytes()[:100])
    path.unlink()
    again = whole(cached())
    assert compute.batches == PARTS + 1
    for name in before:
        np.testing.assert_array_equal(before[name], again[name])
    assert not list(tmp_path.glob("*.tmp"))


def test_progress_counts_examples(stage, compute, tmp_path):
    seen = []
    loader = stage.loader(stage.held_out)
    reference.cached(tmp_path, FINGERPRINT, loader, compute, lambda *done: seen.append(done))
    assert seen == [(8, h.HELD_OUT), (13, h.HELD_OUT)]


def test_parts_of_another_fingerprint_are_computed_again(cached, compute, tmp_path):
    cached()
    parts = sorted(tmp_path.glob("part-*.npz"))
    first = parts[0].read_bytes()
    cached(weights="c" * 64)
    assert compute.batches == 2 * PARTS
    # One stale part among new ones, as a copy or a deleted file leaves it.
    parts[0].write_bytes(first)
    cached(weights="c" * 64)
    assert compute.batches == 2 * PARTS + 1


def test_a_part_of_another_size_is_computed_again(cached, compute, tmp_path):
    cached()
    first, second, *_ = sorted(tmp_path.glob("part-*.npz"))
    found = dict(np.load(second))
    np.savez(second, **{k: v if k == reference.FINGERPRINT else v[:-1] for k, v in found.items()})
    first.unlink()
    cached()
    assert compute.batches == PARTS + 2


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_byte_is_refused_and_names_the_file(cached, tmp_path, where):
    cached()
    path = sorted(tmp_path.glob("part-*.npz"))[1]
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path.name} is damaged .* delete this file"):
        cached()


def test_a_truncated_part_is_refused_and_names_the_file(cached, tmp_path):
    cached()
    path = sorted(tmp_path.glob("part-*.npz"))[1]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=rf"{path.name} is damaged"):
        cached()


CHANGES = {
    "weights": {"stages__slpo__reference": {"path": "other"}},
    "data": {"stages__slpo__data__limit": 16},
    "dtype": {"model__dtype": "bfloat16"},
    "needs": {"stages__slpo__objective": {"name": "dpo"}},
}


@pytest.mark.parametrize("key", CHANGES)
def test_statistics_are_computed_again_if_this_changes(inputs, tmp_path, key):
    other = h.copy_folder(inputs / "model", tmp_path / "other")
    h.edit_tensors(other, lambda tensors: tensors["model.norm.weight"].__imul__(1.5))
    run = tmp_path / "run"
    cached_reference(h.prepared(h.recipe(inputs, run, "slpo"), "slpo", MESH), "train", h.QUIET)
    changes = json.loads(json.dumps(CHANGES[key]).replace('"other"', json.dumps(str(other))))
    changed = h.prepared(h.recipe(inputs, run, "slpo", **changes), "slpo", MESH)
    console = Console(file=io.StringIO(), width=400)
    cached_reference(changed, "train", console)
    assert "reference pass over train data" in console.file.getvalue()


def test_statistics_are_computed_again_if_the_tokenizer_changes(inputs, tmp_path):
    recipe = h.recipe(inputs, tmp_path / "run", "slpo")
    cached_reference(h.prepared(recipe, "slpo", MESH), "train", h.QUIET)
    other = h.copy_folder(inputs / "model", tmp_path / "other")
    file = other / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": "{{ messages }}"}))
    changed = prepare(recipe, "slpo", other, MESH, Console(file=io.StringIO()))
    console = Console(file=io.StringIO(), width=400)
    cached_reference(changed, "train", console)
    assert "reference pass over train data" in console.file.getvalue()


@pytest.mark.slow
def test_training_with_a_cached_and_a_live_reference_gives_the_same_model(inputs, tmp_path):
    for mode in ("cached", "live"):
        recipe = h.recipe(inputs, tmp_path / mode, "slpo", stages__slpo__reference={"mode": mode})
        h.run(recipe, MESH)
    cached, live = (h.tensors(tmp_path / mode / "slpo" / "model") for mode in ("cached", "live"))
    for name in cached:
        np.testing.assert_allclose(cached[name], live[name], atol=1e-5)
    assert (tmp_path / "cached" / "slpo" / "reference" / "train").exists()
    assert not (tmp_path / "live" / "slpo" / "reference").exists()
