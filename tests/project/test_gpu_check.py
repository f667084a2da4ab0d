"""The check of a GPU: how it runs its parts, what it makes of their results, all of it quickly."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.gpu_check import attention, head, plan, tables, trace
from benchmarks.gpu_check.__main__ import main, wrong
from benchmarks.gpu_check.part import check, record, records
from benchmarks.gpu_check.race import SIDES
from benchmarks.gpu_check.runner import Outcome, Part, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """`module(name, code)` is a part that runs this code; `turn` is at hand."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(name, code, limit=30.0, alone=True):
        given = "from benchmarks.gpu_check.part import turn\n"
        (tmp_path / f"part_{name}.py").write_text(given + code)
        return Part(name, (f"part_{name}",), limit, alone)

    return make


def states(outcomes):
    return {o.part.name: o.state for o in outcomes}


def test_a_part_ends_done_failed_or_cut(module, tmp_path):
    parts = [
        module("fine", "turn()"),
        module("broken", "turn()\nraise SystemExit(3)"),
        module("endless", "turn()\nimport time\nprint('begun')\ntime.sleep(60)", limit=2.0),
        module("after", "turn()"),
    ]
    found = states(run(parts, tmp_path, 60))
    assert found == {"fine": "done", "broken": "failed (3)", "endless": "cut", "after": "done"}
    assert (tmp_path / "endless.log").read_text() == "begun\n"


def test_what_the_budget_leaves_no_time_for_is_left_out(module, tmp_path):
    endless = "turn()\nimport time\ntime.sleep(60)"
    began = time.monotonic()
    parts = [module(name, endless) for name in ("first", "second", "third")]
    found = states(run(parts, tmp_path, 2))
    assert found == {"first": "cut", "second": "left out", "third": "left out"}
    assert time.monotonic() - began < 20


def test_parts_that_are_alone_never_have_the_gpu_at_once(module, tmp_path):
    code = (
        "import time, pathlib\n"
        f"path = pathlib.Path({str(tmp_path)!r}) / 'spans'\n"
        "turn()\nbegan = time.monotonic()\ntime.sleep(0.3)\n"
        "with path.open('a') as file: print(began, time.monotonic(), file=file)\n"
    )
    parts = [module("values", code, alone=False)] + [module(n, code) for n in ("one", "two")]
    assert set(states(run(parts, tmp_path, 60)).values()) == {"done"}
    lines = (tmp_path / "spans").read_text().splitlines()
    spans = sorted(tuple(map(float, line.split())) for line in lines)
    assert len(spans) == 3
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_nothing_is_left_running_when_the_check_ends_early(module, tmp_path):
    code = (
        "import os, pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path)!r}, 'child').write_text(str(child.pid))\n"
        "turn()\ntime.sleep(60)\n"
    )
    list(run([module("parent", code)], tmp_path, 3))
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_results_are_kept_line_by_line(tmp_path):
    record(tmp_path / "a.jsonl", "about", what=1)
    check(tmp_path / "a.jsonl", "close", 1e-6, 1e-5)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"kind": "val')  # killed in the middle of a line
    assert [(r["part"], r["kind"]) for r in records(tmp_path)] == [("a", "about"), ("a", "value")]


@pytest.mark.parametrize("error", [2e-5, float("nan"), float("inf")])
def test_a_wrong_value_is_named_and_fails_the_check(tmp_path, error):
    check(tmp_path / "a.jsonl", "close", 1e-6, 1e-5)
    assert not wrong(tmp_path, [])
    check(tmp_path / "a.jsonl", "far", error, 1e-5)
    assert wrong(tmp_path, [])
    (row,) = [line for line in tables.values(records(tmp_path)).splitlines() if "WRONG" in line]
    assert "far" in row


def test_a_part_that_failed_fails_the_check(tmp_path):
    part = Part("any", (), 1.0, True)
    assert wrong(tmp_path, [Outcome(part, "failed (1)", 0.0)])
    assert not wrong(tmp_path, [Outcome(part, "cut", 1.0), Outcome(part, "left out", 0.0)])


def test_the_formula_of_attention_is_that_of_jax():
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = [(2, 6, n, 4) for n in (4, 2, 2, 4)]
    q, k, v, g = (jax.random.normal(key, size) for key, size in zip(keys, sizes, strict=True))
    sees = np.tril(np.ones((2, 6, 6), bool))

    def plain(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=sees[:, None])

    value, pull = jax.vjp(plain, q, k, v)
    for found, wanted in zip(attention.formula(q, k, v, sees, g), (value, *pull(g)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_formula_of_the_head_is_that_of_jax():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, head_matrix = (jax.random.normal(keys[i], s) for i, s in enumerate([(5, 3), (3, 7)]))
    target, pull = np.array([0, 3, 6, 1, 1]), np.asarray(jax.random.normal(keys[2], (2, 5)))

    def both(hidden, head_matrix):
        logp = jax.nn.log_softmax(hidden @ head_matrix)[np.arange(5), target]
        return jax.numpy.stack([logp, jax.numpy.log1p(-jax.numpy.exp(logp))])

    value, back = jax.vjp(both, hidden, head_matrix)
    wanted = (*value, *back(pull))
    found = head.formula(hidden, head_matrix, target, pull).values()
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "scope", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90", "", "attention"),
        ("loop_fusion", "jit(update)/transpose(jvp(attention))/while/body/add", "attention"),
        ("nvjet_hsh_128x256", "jit(update)/while/body/dot_general", "products"),
        ("nvjet_hsh_128x256", "jit(update)/jvp(head)/dot_general", "head"),
        ("loop_fusion", "jit(update)/optimizer/mul", "optimizer"),
        ("loop_fusion", "jit(update)/overhead/mul", "rest"),
    ],
)
def test_a_kernel_belongs_to_what_it_was_traced_in(name, scope, kind):
    assert trace.kind(name, scope) == kind


def test_time_covered_twice_counts_once():
    assert trace.union([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.2, 5.5)]) == 4.0


def race_record(side, seconds, losses):
    figures = {"tokens": 100, "pairs_count": 4, "flops": 1e12, "peak_bytes": 2**30}
    steps = {"first_pass_seconds": 1.0, "losses": losses, "norms": [2.0, 2.0]}
    about = {"kind": "race", "part": side, "model": "m", "side": side, "seconds": seconds}
    return about | figures | steps


def test_a_race_is_a_ratio_and_void_where_the_sides_differ():
    found = [
        race_record("jaxalign", 0.5, [0.693, 0.690]),
        race_record("torch-compact", 1.5, [0.693, 0.691]),
        race_record("trl", 2.0, [0.693, 0.8]),
        {"kind": "race", "model": "m", "side": "trl-cached", "absent": "trl"},
    ]
    rows = {line.split("|")[2].strip(): line for line in tables.race(found).splitlines()[2:]}
    assert "3.00" in rows["torch-compact"]
    assert "VOID" not in rows["torch-compact"]
    assert "VOID" in rows["trl"]
    assert "no trl" in rows["trl-cached"]


@pytest.mark.parametrize(("loss", "void"), [(0.691, False), (0.8, True), (float("nan"), True)])
def test_a_void_race_fails_the_check(tmp_path, loss, void):
    for side, second in (("jaxalign", 0.690), ("trl", loss)):
        made = race_record(side, 1.0, [0.693, second])
        del made["part"]
        record(tmp_path / f"{side}.jsonl", made.pop("kind"), **made)
    assert wrong(tmp_path, []) == void


def test_every_part_is_planned_and_chosen_by_its_name(tmp_path):
    every = plan.parts(tmp_path, data=None, quick=False)
    names = [part.name for part in every]
    assert len(set(names)) == len(names)
    for part in every:
        assert (ROOT / (part.argv[0].replace(".", "/") + ".py")).exists()
    assert [p.name for p in plan.chosen(every, ["resume", "head"])] == [
        name for name in names if name.startswith(("resume", "head"))
    ]
    with pytest.raises(SystemExit, match="--only speeed: the parts are attention"):
        plan.chosen(every, ["speeed"])


def test_data_that_is_not_there_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", "--out", str(tmp_path / "out"), "--data", "nowhere"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--data nowhere: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_check_runs_on_a_cpu(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--quick", "--out", str(out)]
    command += ["--budget", "1500"]
    # One device and a cache of its own, as a user has.
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    every = plan.parts(out, data=None, quick=True)
    ended = dict(re.findall(r"^(\S+): (\w+), \d+ s$", done.stderr, re.MULTILINE))
    assert ended == {part.name: "done" for part in every}
    found = records(out)
    values = [r for r in found if r["kind"] == "value"]
    checked = {"attention", "head", "step", "losses", "resume-bfloat16"}
    assert {r["part"] for r in values} == checked
    assert all(r["right"] for r in values)
    ran = {r["side"]: r for r in found if r["kind"] == "race"}
    assert set(ran) == set(SIDES)
    assert ran["torch-compact"]["losses"] == pytest.approx(ran["jaxalign"]["losses"], abs=2e-4)
    (spent,) = [r["milliseconds"] for r in found if r["kind"] == "breakdown"]
    assert {"attention", "head", "optimizer", "idle"} <= set(spent)
    (job,) = [r for r in found if r["kind"] == "main job"]
    assert any("win rate" in line for line in job["report"])
    assert (out / "quickstart" / "report.html").exists()
    assert json.loads((out / "quickstart" / "slpo.jsonl").read_text().splitlines()[0])["loss"] > 0
