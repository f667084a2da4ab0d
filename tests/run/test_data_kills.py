"""Kill -9 while rounds make data and train: the run that resumes has the same bytes."""

import json
import signal
import subprocess
import sys

import chex
import pytest
from lib import rounds
from lib import runs as h

from jaxalign.recipe.read import parse

KILLS = 20
PROGRAM = """
import json, os, pathlib, signal, sys

run, points, log = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]

def watched(move):
    def moved(self, target):
        name = os.path.relpath(target, run)
        when = points.get(name)
        if when:
            os.write(out, f"{name}\\n".encode())
        if when == "before":
            os.kill(os.getpid(), 9)
        found = move(self, target)
        if when == "after":
            os.kill(os.getpid(), 9)
        if not points and not name.startswith(".."):
            os.write(out, f"{name}\\n".encode())
        return found
    return moved

out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
pathlib.Path.replace = watched(pathlib.Path.replace)
pathlib.Path.rename = watched(pathlib.Path.rename)
from jaxalign import cli
sys.exit(cli.main(["train", sys.argv[4]]))
"""
"""Trains a recipe; dies before or after a file or folder of `points` gets its name, and logs it."""


def start(folder, values, points, cache):
    """Run the program to its end: its exit code, and the names that it has logged."""
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    recipe = h.write_recipe(folder / "recipe.yaml", values)
    arguments = [str(folder / "run"), json.dumps(points), str(log), recipe]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=h.environment(cache),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, log.read_text().split("\n")[:-1]


def spread(names, count):
    """Evenly spread names, each with whether the process dies before or after it is written."""
    chosen = [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]
    return {name: ("before", "after")[i % 2] for i, name in enumerate(chosen)}


@pytest.mark.slow
def test_kills_leave_the_files_of_an_uninterrupted_run(inputs, compile_cache, tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    values = {}
    for name, folder in folders.items():
        folder.mkdir()
        values[name] = rounds.values(inputs, folder)
    code, names = start(folders["whole"], values["whole"], {}, compile_cache)
    assert code == 0
    own = [name for name in dict.fromkeys(names) if name.startswith("round-")]
    points = spread(own, KILLS)
    hit = []
    code = -signal.SIGKILL
    while code:
        left = points | {"no other": "after"}
        code, logged = start(folders["killed"], values["killed"], left, compile_cache)
        if code:
            hit.append((logged[-1], points.pop(logged[-1])))
    print(f"{len(own)} names, {len(hit)} kills: {hit}")
    assert not points
    kinds = {name.split("/")[1] for name, _ in hit}
    assert kinds == {"answers", "scores", "pairs", "dpo"}
    for stage in parse(values["whole"]).stages:
        ours, theirs = (folders[name] / "run" / stage for name in ("killed", "whole"))
        if stage.endswith("/dpo"):
            chex.assert_trees_all_equal(h.tensors(ours / "model"), h.tensors(theirs / "model"))
            assert h.repeated(h.metrics(ours)) == h.repeated(h.metrics(theirs))
        else:
            assert (ours / "data.jsonl").read_bytes() == (theirs / "data.jsonl").read_bytes()
            left = {path.name for path in ours.iterdir() if not path.name.startswith("timings")}
            assert left == {"data.jsonl", "summary.json"}
