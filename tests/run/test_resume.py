"""Kill -9 at random points: what is run again ends as if nothing had happened.

`make chaos` kills a hundred times; the tests of every change, a few times.
"""

import collections
import os
import random
import subprocess
import sys
import time

import chex
import pytest
from lib import runs as h

KILLS = int(os.environ.get("JAXALIGN_CHAOS_KILLS", "6"))
SEED = int(os.environ.get("JAXALIGN_CHAOS_SEED", "0"))
STEPS, SAVE_EVERY, EXAMPLES, PART = 16, 4, 64, 8
PHASES = {
    "slpo": ("reference", "save", "update", "start", "export"),
    "lora": ("update", "reference", "save", "export", "start"),
    "bco": ("save", "export", "update", "reference", "start"),
    "tr_dpo": ("export", "update", "save", "start"),
}
"""The stages of the run, and where in them the kills are, the first ones first."""
PROGRAM = f"""
import sys
from jaxalign import cli
from jaxalign.run import reference

reference.PART = {PART}
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
    return path.read_bytes().count(b"\n")


def place(rng, phase):
    """When in a phase to kill: seconds, parts of the reference, or updates."""
    if phase == "start":
        return rng.uniform(0, 2.5)
    if phase == "reference":
        return rng.randrange(1, EXAMPLES // PART)
    if phase == "save":
        return rng.randrange(SAVE_EVERY, STEPS + 1, SAVE_EVERY)
    return rng.randrange(1, STEPS) if phase == "update" else STEPS


def kills(rng, count):
    """Points in the order in which a run comes by: (stage, phase, where)."""
    points = []
    for i, (stage, phases) in enumerate(PHASES.items()):
        own = range(i, count, len(PHASES))
        named = [phases[j % len(phases)] for j in range(len(own))]
        drawn = [(phase, place(rng, phase)) for phase in named]
        early = [d for phase in ("start", "reference") for d in sorted(drawn) if d[0] == phase]
        late = sorted((d for d in drawn if d not in early), key=lambda d: d[1])
        points += [(stage, *d) for d in (*early, *late)]
    return points


def reached(folder, phase, where, since):
    if phase == "start":
        return time.time() - since >= where
    if phase == "reference":
        return parts(folder) >= where
    if phase == "save":
        return any(int(path.name[5:13]) >= where for path in unsealed(folder))
    if phase == "export":
        return (folder / ".model.partial").exists()
    return last_update(folder, since) >= where


def hit(folder, phase):
    """Whether what a dead process left shows that it died in this phase."""
    if phase == "reference":
        return 0 < parts(folder) < EXAMPLES // PART
    if phase == "save":
        return bool(unsealed(folder))
    if phase == "export":
        return (folder / ".model.partial").exists()
    return not (folder / "model").exists()


def killed(start, folder, point, rng):
    """Start, and kill at a point, or where the stage has ended before; whether it died there."""
    stage, phase, where = point
    model = folder / stage / "model"
    if model.exists():  # the kill before this one came after its end
        phase, where = "start", place(rng, "start")
    since, process = time.time(), start()
    while process.poll() is None and not reached(folder / stage, phase, where, since):
        if phase != "start" and model.exists():
            break
        assert time.time() < since + 200
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.005))
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, (point, errors)
    return phase == point[1] and hit(folder / stage, phase)


@pytest.mark.slow
def test_kills_leave_the_parameters_of_an_uninterrupted_run(tmp_path):
    inputs = h.write_inputs(tmp_path / "inputs", EXAMPLES)
    options = {
        "run__compile_cache": str(tmp_path / "cache"),
        "stages__bco__data__eval_path": f"{inputs}/held_out.jsonl",
        "stages__lora__objective": {"name": "dpo"},
        "stages__lora__lora": {"rank": 2},
        "stages__tr_dpo__objective": {"name": "dpo"},
        "stages__tr_dpo__reference": {"mode": "live", "every": 3, "mix": 0.6},
    }
    for stage in PHASES:
        options |= {f"stages__{stage}__steps": STEPS, f"stages__{stage}__save_every": SAVE_EVERY}

    def start(name):
        values = h.values(inputs, tmp_path / name, *PHASES, **options)
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                "train",
                h.write_recipe(tmp_path / f"{name}.yaml", values),
            ],
            env=h.environment(tmp_path / "cache"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole = start("whole")
    assert whole.wait(300) == 0, whole.communicate()[1]
    rng = random.Random(SEED)
    points = kills(rng, KILLS)
    died = [killed(lambda: start("killed"), tmp_path / "killed", point, rng) for point in points]
    last = start("killed")
    assert last.wait(300) == 0, last.communicate()[1]

    landed = collections.Counter(
        point[1] for point, there in zip(points, died, strict=True) if there
    )
    print(f"{len(died)} kills, {sum(landed.values())} where they were aimed: {dict(landed)}")
    assert all(landed[phase] for phase in ("reference", "save", "update")), landed
    for stage in PHASES:
        ours, theirs = (tmp_path / name / stage for name in ("killed", "whole"))
        chex.assert_trees_all_equal(h.tensors(ours / "model"), h.tensors(theirs / "model"))
        assert h.repeated(h.metrics(ours)) == h.repeated(h.metrics(theirs))
