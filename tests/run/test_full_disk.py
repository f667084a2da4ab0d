"""A write that fails is one message with its path, the reason and the remedy."""

import contextlib
import pickle
import resource
from types import SimpleNamespace

import numpy as np
import pytest
from lib.runs import QUIET

from jaxalign.cli import _unraisable
from jaxalign.data.examples import Example
from jaxalign.data.store import Part
from jaxalign.data.stored import _make_folder, _write
from jaxalign.errors import RunError, UserError, unwritten
from jaxalign.files import whole_file, whole_folder, write_text, write_whole
from jaxalign.run.phases import Phases
from jaxalign.run.tracking import Tracker

LONG = "x" * 4096


@contextlib.contextmanager
def small_files():
    """No file may be longer than 1,024 bytes, nor may the output of pytest be written now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def reference_part(folder):
    with whole_file(folder / "part.npz") as file:
        np.savez(file, logp=np.zeros(4096, np.float32))


def export(folder):
    with whole_folder(folder / "model") as partial:
        assert partial is not None
        (partial / "model.safetensors").write_text(LONG)


def metrics(folder):
    with Tracker(folder, stage="sft", total=2) as tracker:
        tracker.log(1, {f"metric_{i}": 0.5 for i in range(200)})


def tokens(folder):
    Part.of([Example.of(np.zeros(4096, np.int32), np.ones(4, np.int32))]).save(folder / "part")


WRITES = {
    "a record": ("a.json", lambda folder: write_whole(folder / "a.json", LONG)),
    "statistics of a reference": ("part.npz", reference_part),
    "an export": ("model", export),
    "metrics": ("metrics.jsonl", metrics),
    "tokens": ("part", tokens),
    "counts of tokens": ("c.json", lambda folder: _write(folder / "c.json", {"a": LONG})),
    "answers": ("out.jsonl", lambda folder: write_text(folder / "out.jsonl", LONG)),
}


@pytest.mark.parametrize(("name", "write"), WRITES.values(), ids=WRITES)
def test_a_write_that_fails_names_its_path_and_the_remedy(tmp_path, name, write):
    with pytest.raises(RunError) as caught, small_files():
        write(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: cannot be written (")
    assert "free space on its disk, or choose another folder, and run the same" in str(caught.value)


def test_the_reason_is_that_of_the_system(tmp_path):
    with pytest.raises(RunError, match=r"\(File too large\)"), small_files():
        write_whole(tmp_path / "a.json", LONG)


def test_a_part_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(RunError), small_files():
        tokens(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_without_permission_is_to_be_made_writable():
    said = str(unwritten("a", PermissionError(13, "Permission denied")))
    assert said.startswith("a: cannot be written (Permission denied); make it writable")


def test_a_token_store_that_is_a_file_is_a_mistake_in_the_recipe(tmp_path):
    (tmp_path / "store").touch()
    with pytest.raises(UserError, match=r"^run\.token_store: .*store/key: cannot be written"):
        _make_folder(tmp_path / "store" / "key")


def test_the_error_of_a_phase_is_not_hidden_by_its_clock(tmp_path):
    (tmp_path / "timings.json.tmp").mkdir()
    with pytest.raises(RunError, match="the checkpoint"), Phases(tmp_path, "sft", QUIET)("saving"):
        raise RunError("the checkpoint")


def test_only_exceptions_that_are_late_for_their_event_loop_are_left_out():
    printed = []
    late, other = (
        SimpleNamespace(exc_value=RuntimeError(f"{x} is closed")) for x in ("Event loop", "a")
    )
    for unraisable in (late, other):
        _unraisable(printed.append, unraisable)
    assert printed == [other]


def test_a_failed_write_passes_between_processes():
    error = unwritten("a", OSError(28, "No space left on device"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
