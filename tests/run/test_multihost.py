"""Two processes of two devices each, joined by `jax.distributed`, against one of four."""

import signal
import socket
import subprocess
import sys
import time

import chex
import pytest
from lib import runs as h

pytestmark = pytest.mark.slow

STAGES = ("sft", "bco")  # bco couples the examples of a batch, and keeps a state
STEPS = 40
MESH = {"data": 2, "fsdp": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return h.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def recipe(inputs, folder, **changes):
    changes |= {"mesh": MESH, "stages__bco__data__eval_path": f"{inputs}/held_out.jsonl"}
    changes |= {"stages__bco__steps": STEPS, "stages__bco__save_every": 20}
    changes["stages__sft__microbatches"] = "auto"
    for stage in STAGES:
        # Adam divides a gradient near 0 by its size, and so shows the rounding of its last bits.
        changes[f"stages__{stage}__optimizer"] = {"name": "sgd", "learning_rate": 1e-2}
    values = h.values(inputs, folder / "run", *STAGES, **changes)
    return h.write_recipe(folder / "recipe.yaml", values)


def start(cache, *argv):
    """The same command of the program in two processes that know of each other."""
    return start_both(cache, h.command(*argv, "--run.distributed"))


def start_both(cache, command):
    """The same command line in two processes that know of each other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    return [
        subprocess.Popen(
            command,
            env=h.environment(
                cache,
                devices=2,
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(i),
                JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def finish(processes):
    """Wait for all; the exit code, standard output and standard error of each."""
    try:
        streams = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *s) for p, s in zip(processes, streams, strict=True)]


@pytest.fixture(scope="module")
def single(inputs, cache, tmp_path_factory):
    """The run of one process with four devices."""
    folder = tmp_path_factory.mktemp("single")
    done = subprocess.run(
        h.command("train", recipe(inputs, folder)),
        env=h.environment(cache, devices=4),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def double(inputs, cache, tmp_path_factory):
    """The run of two processes, and how each of them ended."""
    folder = tmp_path_factory.mktemp("double")
    done = finish(start(cache, "train", recipe(inputs, folder)))
    assert [code for code, _, _ in done] == [0, 0], done
    return folder / "run", done


def test_two_processes_train_the_model_of_one(single, double):
    ours, theirs = double[0], single
    for stage in STAGES:
        chex.assert_trees_all_close(
            h.tensors(ours / stage / "model"), h.tensors(theirs / stage / "model"), atol=1e-5
        )
        pairs = zip(*(h.repeated(h.metrics(run / stage)) for run in (ours, theirs)), strict=True)
        for one, two in pairs:
            assert one.keys() == two.keys()
            if one["step"] == 1:  # the policy is its reference: rounding decides which reward leads
                for metrics in (one, two):
                    metrics.pop("rewards/accuracies", None)
            assert one == pytest.approx(two, rel=1e-3, abs=1e-4)


def test_the_first_process_alone_speaks(double):
    _, (first, second) = double
    assert "sft: microbatches 1: an update takes" in first[1]
    assert "bco: model written to" in first[1]
    assert "sft" not in second[1]
    assert "bco" not in second[1]


def test_sigterm_to_one_process_saves_and_stops_both_and_both_go_on(
    inputs, cache, double, tmp_path
):
    command = ("train", recipe(inputs, tmp_path))
    processes = start(cache, *command)
    path = tmp_path / "run" / "bco" / "metrics.jsonl"
    while not path.exists() or not path.stat().st_size:
        assert processes[0].poll() is None, finish(processes)
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    done = finish(processes)
    assert [code for code, _, _ in done] == [143, 143], done
    assert "bco: stopped and saved after update" in done[0][2]
    assert h.sealed(path.parent)[-1] < STEPS
    done = finish(start(cache, *command))
    assert [code for code, _, _ in done] == [0, 0], done
    assert "bco: resumes after update" in done[0][1]
    for stage in STAGES:
        ours, theirs = (h.tensors(run / stage / "model") for run in (tmp_path / "run", double[0]))
        chex.assert_trees_all_equal(ours, theirs)


def test_a_wrong_recipe_is_one_error_on_every_process(inputs, cache, tmp_path):
    path = recipe(inputs, tmp_path, stages__sft__batch_size=6)
    done = finish(start(cache, "train", path))
    assert [code for code, _, _ in done] == [2, 2], done
    assert all("batch_size 6 cannot be divided" in err for _, _, err in done)


def test_after_the_death_of_a_process_the_other_ends_and_both_resume(
    inputs, cache, double, tmp_path
):
    command = ("train", recipe(inputs, tmp_path))
    processes = start(cache, *command)
    while not h.sealed(tmp_path / "run" / "bco"):
        assert processes[0].poll() is None, finish(processes)
        time.sleep(0.01)
    processes[1].kill()
    killed = time.monotonic()
    _, err = processes[0].communicate(timeout=30)
    assert (processes[0].returncode, err.count("\n")) == (1, 1), err
    assert err.startswith("jaxalign: host 1 of 2 ended; the last checkpoint is intact"), err
    print(f"ended {time.monotonic() - killed:.1f} s after the other")
    done = finish(start(cache, *command))
    assert [code for code, _, _ in done] == [0, 0], done
    assert "bco: resumes after update" in done[0][1]
    for stage in STAGES:
        ours, theirs = (h.tensors(run / stage / "model") for run in (tmp_path / "run", double[0]))
        chex.assert_trees_all_equal(ours, theirs)


HEARTBEAT = 6
PEER = f"""
import sys
import numpy as np
from jax.experimental import multihost_utils
from jaxalign.errors import UserError
from jaxalign.run import hosts

hosts.join({HEARTBEAT})
with hosts.together():
    multihost_utils.process_allgather(np.array(0))
    print("ready", flush=True)
    if hosts.place().host == int(sys.argv[1]):
        raise UserError("a mistake of one host")
    while True:
        multihost_utils.process_allgather(np.array(0))
"""


def start_peers(cache, wrong):
    """Two processes that wait for each other again and again; `wrong` is one that fails, or -1."""
    processes = start_both(cache, [sys.executable, "-c", PEER, str(wrong)])
    for process in processes:
        for line in process.stdout:
            if line == "ready\n":
                break
        else:
            pytest.fail(process.stderr.read())
    return processes


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_ends_in_time_when_the_other_is_killed_or_stopped(cache, victim, number):
    processes = start_peers(cache, -1)
    other = processes[1 - victim]
    began = time.monotonic()
    processes[victim].send_signal(getattr(signal, number))
    try:
        _, err = other.communicate(timeout=30)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    print(f"ended {time.monotonic() - began:.1f} s after {number} to process {victim}")
    why = "ended" if number == "SIGKILL" else f"has been silent for {HEARTBEAT} s"
    assert err == (
        f"jaxalign: host {victim} of 2 {why}; the last checkpoint is intact: run the same command "
        "again on every host\n"
    )
    assert other.returncode == 1


def test_an_error_of_one_process_ends_the_other_with_its_message(cache):
    done = finish(start_peers(cache, 1))
    assert [code for code, _, _ in done] == [1, 2]
    assert done[0][2] == "jaxalign: host 1 of 2 ended: a mistake of one host\n"
