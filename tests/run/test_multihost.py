"""Two processes of two devices each, joined by `jax.distributed`, against one of four."""

import signal
import socket
import subprocess
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
    """The same command in two processes that know of each other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    return [
        subprocess.Popen(
            h.command(*argv, "--run.distributed"),
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
