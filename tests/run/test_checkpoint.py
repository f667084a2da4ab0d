import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.run.checkpoint import Checkpoints
from jaxalign.settings import Mesh
from jaxalign.update.state import TrainState


def state(value, sharding=None):
    w = jnp.full((8, 16), value, jnp.float32)
    if sharding is not None:
        w = jax.device_put(w, sharding)
    return TrainState({"w": w}, {"mu": {"w": w * 2}}, jnp.int32(value), None)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def test_the_newest_is_restored_bit_for_bit(saved):
    step, got = saved.restore(abstract(state(0)))
    assert step == 3
    chex.assert_trees_all_equal(got, state(3))


def test_only_the_newest_are_kept(saved, tmp_path):
    assert saved.steps() == [2, 3]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "step-00000002",
        "step-00000003",
    ]


def test_an_empty_folder_restores_nothing(tmp_path):
    assert Checkpoints(tmp_path / "new", keep=1).restore(abstract(state(0))) is None


def test_a_flipped_byte_is_found(saved, tmp_path):
    victim = largest_file(tmp_path / "step-00000003")
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged .* go on from the checkpoint of step 2"):
        saved.restore(abstract(state(0)))


def test_a_missing_file_is_found(saved, tmp_path):
    largest_file(tmp_path / "step-00000003").unlink()
    with pytest.raises(UserError, match="is missing"):
        saved.restore(abstract(state(0)))


def test_without_its_seal_a_checkpoint_does_not_count(saved, tmp_path):
    (tmp_path / "step-00000003.json").unlink()
    again = Checkpoints(tmp_path, keep=2)
    restored = again.restore(abstract(state(0)))
    assert restored is not None
    assert restored[0] == 2
    assert not (tmp_path / "step-00000003").exists()


def test_a_checkpoint_restores_onto_another_mesh(tmp_path):
    mesh = make_mesh(Mesh(data=1, fsdp=8))
    wide = state(5, NamedSharding(mesh, PartitionSpec("fsdp")))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(5, wide)
    checkpoints.wait()
    restored = checkpoints.restore(abstract(state(0)))
    assert restored is not None
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, restored[1]), state(5))


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    clobber = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    for trial in range(5):
        checkpoints = Checkpoints(tmp_path / str(trial), keep=1)
        w = jnp.arange(1_000_000, dtype=jnp.float32) + trial
        want = np.array(w)
        checkpoints.save(1, {"w": w})
        for _ in range(3):
            w = clobber(w)
        checkpoints.wait()
        restored = checkpoints.restore({"w": jax.ShapeDtypeStruct(want.shape, want.dtype)})
        assert restored is not None
        np.testing.assert_array_equal(restored[1]["w"], want)


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
    program = textwrap.dedent(
        """
        import pathlib, resource, sys
        import jax, numpy as np, jax.numpy as jnp
        from jaxalign.run.checkpoint import Checkpoints
        from jaxalign.errors import RunError
        c = Checkpoints(pathlib.Path(sys.argv[1]), keep=1)
        make = lambda seed: {"w": jax.random.normal(jax.random.key(seed), (1 << 20,))}
        c.save(1, make(1))
        c.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            c.save(2, make(2))
            c.wait()
        except RunError as e:
            print("ERROR", e)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "could not be saved" in done.stdout, done.stderr
    assert "step 1 is intact" in done.stdout
    again = Checkpoints(tmp_path, keep=1)
    restored = again.restore({"w": jax.ShapeDtypeStruct((1 << 20,), jnp.float32)})
    assert restored is not None
    assert restored[0] == 1
