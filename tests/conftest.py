"""Eight CPU devices, cheap compilation, no network."""

import atexit
import functools
import importlib.metadata
import os
import shutil
import signal
import subprocess
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = os.environ.get("JAXALIGN_TEST_PLATFORM", "cpu")
# Tests compile much and run little: without fusion emitters (an option of jaxlib 0.10) they take
# half the time.
FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
# One cache for all processes of pytest: each program is compiled once.
CACHE = os.environ.get("JAXALIGN_TEST_CACHE")
if CACHE is None:
    CACHE = os.environ["JAXALIGN_TEST_CACHE"] = tempfile.mkdtemp(prefix="jaxalign-tests-")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

# Commands in this process keep programs where the tests do.
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE

import jax
import pytest
from lib import runs as h

from jaxalign.cli import main

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", CACHE)
# The operations of tests that are not compiled as a whole are many small programs, mostly the same.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_make_parametrize_id(val, argname):
    """Bytes are in no test's name: those of gzip hold the time, which workers do not share."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def hf_checkpoint(tmp_path_factory):
    """`hf_checkpoint(name, **options)`: the folder of a random checkpoint, written once."""
    from lib.checkpoints import checkpoint

    @functools.cache
    def make(name, **options):
        folder = tmp_path_factory.mktemp(name)
        checkpoint(folder, name, **options)
        return folder

    return make


@pytest.fixture
def damaged_checkpoint(hf_checkpoint, tmp_path):
    """A copy of the small Llama checkpoint, to damage."""
    return shutil.copytree(hf_checkpoint("llama-gqa"), tmp_path / "damaged")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """The folder of a small model and its data; tests leave it as it is."""
    return h.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def compile_cache():
    """The folder of compiled programs that the processes of all tests share."""
    return CACHE


@pytest.fixture(scope="session")
def trained(inputs, compile_cache, tmp_path_factory):
    """A finished run, its recipe, and the finished process."""
    folder = tmp_path_factory.mktemp("trained")
    held_out = {"stages__dpo__data__eval_path": f"{inputs}/held_out.jsonl"}
    recipe = h.write_recipe(folder / "recipe.yaml", h.values(inputs, folder / "run", **held_out))
    return folder / "run", recipe, h.cli("train", recipe, cache=compile_cache)


@pytest.fixture(scope="session")
def running_forever(inputs, compile_cache, tmp_path_factory):
    """`running_forever(signal)`: a run without end, sent a signal after its first checkpoint.

    Returns its folder, recipe, exit code and standard error.
    """

    def start(number):
        folder = tmp_path_factory.mktemp("endless")
        values = h.values(inputs, folder / "run", "sft", stages__sft__steps=100_000)
        recipe = h.write_recipe(folder / "recipe.yaml", values)
        process = subprocess.Popen(
            h.command("train", recipe),
            env=h.environment(compile_cache),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not h.sealed(folder / "run" / "sft"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        return folder / "run", recipe, process.returncode, errors

    return start


@pytest.fixture(scope="session")
def stopped(running_forever):
    """A run stopped by SIGTERM."""
    return running_forever(signal.SIGTERM)


@pytest.fixture
def jaxalign_command(capsys):
    """`jaxalign_command(*argv)`: (exit code, standard output, standard error), in this process."""

    def call(*argv):
        try:
            code = main([str(a) for a in argv])
        except SystemExit as e:
            code = e.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def refused(jaxalign_command):
    """`refused(*argv)`: the one error line of a command that exits with 2."""

    def call(*argv):
        code, _, err = jaxalign_command(*argv)
        assert code == 2, err
        assert err.startswith("jaxalign: ")
        assert err.count("jaxalign: ") == 1
        assert "Traceback" not in err
        return err

    return call
