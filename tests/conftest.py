"""Eight CPU devices, cheap compilation, no network."""

import atexit
import functools
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = os.environ.get("JAXALIGN_TEST_PLATFORM", "cpu")
# Tests compile much and run little. Programs that several tests share are compiled once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
CACHE = tempfile.mkdtemp(prefix="jaxalign-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def single_mesh():
    """The mesh of one device."""
    from jaxalign.settings import Mesh
    from jaxalign.sharding import make_mesh

    return make_mesh(Mesh(), jax.devices()[:1])


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """`source(name, **options)` is the folder of a random Hugging Face checkpoint, written once."""
    from helpers_hf import checkpoint

    @functools.cache
    def make(name, **options):
        folder = tmp_path_factory.mktemp(name)
        checkpoint(folder, name, **options)
        return folder

    return make


@pytest.fixture
def copy(source, tmp_path):
    """A copy of the small Llama checkpoint, to damage."""
    return shutil.copytree(source("llama-gqa"), tmp_path / "copy")
