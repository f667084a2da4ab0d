from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxalign.core.sharding import batch_shards, check_divisible, make_mesh, repeatable, spec
from jaxalign.errors import UserError
from jaxalign.settings import Mesh


def test_minus_one_takes_the_devices_that_are_left():
    mesh = make_mesh(Mesh(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert batch_shards(mesh) == 4


def test_axes_are_auto():
    assert set(make_mesh(Mesh()).axis_types) == {AxisType.Auto}


def test_sizes_that_do_not_fit_the_devices_are_refused():
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(Mesh(data=3))


def test_two_open_sizes_are_refused():
    with pytest.raises(UserError, match="at most one of them -1"):
        make_mesh(Mesh(data=-1, fsdp=-1))


def test_logical_axes_map_to_mesh_axes():
    assert spec("batch", None, "vocab") == PartitionSpec(("data", "fsdp"), None, "tensor")


def test_an_uneven_parameter_is_refused_by_name():
    mesh = make_mesh(Mesh(data=1, fsdp=4, tensor=2), jax.devices())
    with pytest.raises(UserError, match=r"parameter head \(30, 8\): mesh axis 'fsdp' = 4"):
        check_divisible("head", (30, 8), spec("embed", "vocab"), mesh)


def test_only_gpus_are_asked_for_kernels_that_repeat_their_bits():
    mesh = make_mesh(Mesh())
    assert repeatable(mesh) is None
    gpu = SimpleNamespace(devices=np.array([[[SimpleNamespace(platform="gpu")]]], dtype=object))
    options = repeatable(gpu)
    # XLA refuses a name that it does not know, on every platform.
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
    assert options == {"xla_gpu_exclude_nondeterministic_ops": True}
