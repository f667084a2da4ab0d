"""Kill -9 at random points: what is run again ends as if nothing had happened."""

import random
import subprocess
import sys
import time

import chex
import pytest
from lib import runs as h

STEPS, SAVE_EVERY, EXAMPLES, PART = 16, 4, 64, 8
PROGRAM = f"""
import sys, time
from jaxalign import cli
from jaxalign.run import reference
from jaxalign.run.tracking import Tracker

def slowly(function):
    def call(*args, **options):
        time.sleep(0.1)  # so that a kill can be aimed at what goes on
        return function(*args, **options)
    return call

reference.PART = {PART}
reference.whole_file = slowly(reference.whole_file)
Tracker.log = slowly(Tracker.log)
sys.exit(cli.main(sys.argv[1:]))
"""


def unsealed(stage):
    """Checkpoints that a kill at this moment leaves unfinished."""
    folder = stage / "checkpoints"
    return [
        path
        for path in folder.glob("step-*")
        if path.is_dir() and not (folder / f"{path.name[:13]}.json").exists()
    ]


def parts(stage):
    return len(list((stage / "reference" / "train").glob("part-*.npz")))


def last_update(stage, since):
    """The last update whose metrics a process started at `since` has written."""
    path = stage / "metrics.jsonl"
    if not path.exists() or path.stat().st_mtime < since:
        return 0
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return len(whole)


def kills(rng):
    """Twenty points in the order in which a run comes by: (stage, phase, where)."""
    points = []
    for stage in ("sft", "dpo"):
        points.append((stage, "start", rng.uniform(0, 2.5)))
        if stage == "dpo":
            chosen = rng.sample(range(1, EXAMPLES // PART), 4)
            points += [(stage, "reference", part) for part in sorted(chosen)]
        saves = rng.sample(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY), 3)
        updates = rng.sample([i for i in range(1, STEPS) if i % SAVE_EVERY in (1, 2)], 4)
        both = [("save", s) for s in saves] + [("update", s) for s in updates]
        points += [(stage, phase, s) for phase, s in sorted(both, key=lambda x: x[1])]
    return points


def reached(folder, phase, where, since):
    if phase == "start":
        return time.time() - since >= where
    if phase == "reference":
        return parts(folder) >= where
    if phase == "save":
        return any(int(path.name[5:13]) >= where for path in unsealed(folder))
    return last_update(folder, since) >= where


def hit(folder, phase):
    """Whether what a dead process left shows that it died in this phase."""
    if phase == "reference":
        return 0 < parts(folder) < EXAMPLES // PART
    if phase == "save":
        return bool(unsealed(folder))
    return not unsealed(folder) and not (folder / "model").exists()


@pytest.mark.slow
def test_twenty_kills_leave_the_parameters_of_an_uninterrupted_run(tmp_path):
    inputs = h.write_inputs(tmp_path / "inputs", EXAMPLES)
    options = {
        "run__compile_cache": str(tmp_path / "cache"),
        "stages__dpo__data__eval_path": f"{inputs}/held_out.jsonl",
    }
    for stage in ("sft", "dpo"):
        options |= {f"stages__{stage}__steps": STEPS, f"stages__{stage}__save_every": SAVE_EVERY}

    def start(name):
        recipe = h.write_recipe(
            tmp_path / f"{name}.yaml", h.values(inputs, tmp_path / name, **options)
        )
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "train", recipe],
            env=h.environment(tmp_path / "cache"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = start("whole")
    assert whole.wait(300) == 0, whole.communicate()[1]
    rng = random.Random(0)
    landed = []
    for stage, phase, where in kills(rng):
        since, folder = time.time(), tmp_path / "killed" / stage
        process = start("killed")
        while process.poll() is None and not reached(folder, phase, where, since):
            assert time.time() < since + 120
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -9, (stage, phase, where, errors)
        if hit(folder, phase):
            landed.append(phase)
    last = start("killed")
    assert last.wait(300) == 0, last.communicate()[1]

    for phase in ("reference", "save", "update"):
        assert landed.count(phase) >= 3, landed
    for stage in ("sft", "dpo"):
        ours, theirs = (tmp_path / name / stage for name in ("killed", "whole"))
        chex.assert_trees_all_equal(h.tensors(ours / "model"), h.tensors(theirs / "model"))
        assert h.repeated(h.metrics(ours)) == h.repeated(h.metrics(theirs))
