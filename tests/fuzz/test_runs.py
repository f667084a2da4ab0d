"""Damaged folders of runs between two starts: resumed exactly, or refused in words."""

import contextlib
import io
import json
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lib import runs
from lib.damage import odd_bytes, odd_json
from lib.fuzz import CONTROL, fuzz, limited
from lib.steps import one_device
from rich.console import Console

from jaxalign.report import figures, terminal, write_report
from jaxalign.run.checkpoint import Checkpoints
from jaxalign.run.ledger import settle
from jaxalign.run.reference import cached_reference
from jaxalign.run.train import claim

pytestmark = pytest.mark.slow

MESH = one_device()


@pytest.fixture(scope="module")
def killed(inputs, tmp_path_factory):
    """(folder of a run of SLPO as a kill left it, its recipe)."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    tokens = {"run__token_store": str(folder / "tokens")}
    recipe = runs.recipe(inputs, folder, "slpo", stages__slpo__steps=4, **tokens)
    runs.run(recipe, MESH)
    shutil.rmtree(folder / "slpo" / "model")
    return folder, recipe


def resumed(recipe):
    """(tokens, statistics of the reference, the newest update and its state) to continue with."""
    claim(recipe)
    stage = runs.prepared(recipe, "slpo", MESH)
    settle(stage, runs.QUIET, accept_changes=False)
    tokens = [(x.prompt, *((b.ids, b.scored) for b in x.branches)) for x in stage.train]
    with jax.set_mesh(MESH):
        cached = cached_reference(stage, "train", runs.QUIET)
    statistics = {name: array[:] for name, array in cached.ref.items()}
    checkpoints = Checkpoints(stage.folder / "checkpoints", 2)
    try:
        return tokens, statistics, checkpoints.restore(stage.state_spec)
    finally:
        checkpoints.close()


@st.composite
def damage(draw, folder):
    """(file relative to the run, its new bytes; None: removed)."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    # As often a file of the run itself as one of its many arrays.
    few = [p for p in files if p.suffix in (".json", ".jsonl", ".yaml", ".txt", ".npz")]
    file = draw(st.sampled_from(draw(st.sampled_from((files, few)))))
    data = file.read_bytes()
    kind = draw(st.sampled_from(("remove", "bytes", "bytes", "json")))
    if kind == "remove":
        return file.relative_to(folder), None
    if kind == "json" and file.suffix == ".json" and data:
        return file.relative_to(folder), draw(odd_json(json.loads(data)))
    return file.relative_to(folder), draw(odd_bytes(data))


@contextlib.contextmanager
def damaged(folder, good, case):
    """The folder of the run with a damaged file, and whole again at the end."""
    name, data = case
    if data is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)
    try:
        yield
    finally:
        shutil.rmtree(folder)
        shutil.copytree(good, folder)


def same(found, exact):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, found, exact)))


def test_a_damaged_run_is_resumed_exactly_or_refused(killed, tmp_path):
    folder, recipe = killed
    good = shutil.copytree(folder, tmp_path / "good")
    *inputs, newest = resumed(recipe)
    assert newest is not None
    seal = f"slpo/checkpoints/step-{newest[0]:08d}"
    with damaged(folder, good, (f"{seal}.json", None)):
        *_, older = resumed(recipe)
    assert older is not None
    assert older[0] < newest[0]
    states = dict([newest, older])

    @fuzz(0.05)
    @given(damage(good))
    def check(case):
        with damaged(folder, good, case), limited() as refused:
            *others, checkpoint = resumed(recipe)
        if not refused:
            assert same(others, inputs), "other tokens or statistics"
            update, state = checkpoint
            assert update == newest[0] or str(case[0]).startswith(seal), "an older checkpoint"
            assert same(state, states[update]), "another state"

    check()


def test_a_damaged_run_is_reported_in_words(killed, tmp_path):
    folder, _ = killed
    good = shutil.copytree(folder, tmp_path / "good")
    drawn = ("metrics.jsonl", "samples.json")

    @fuzz(0.1)
    @given(damage(good))
    def check(case):
        with pytest.MonkeyPatch.context() as patch, damaged(folder, good, case):
            if case[0].name not in drawn:
                patch.setattr(figures, "curves", lambda metrics: {})
            with limited():
                page = write_report(folder).read_text(encoding="utf-8")
                screen = io.StringIO()
                Console(file=screen, width=120).print(terminal(folder))
        for shown in (page, screen.getvalue()):
            assert not CONTROL.search(shown)

    check()
