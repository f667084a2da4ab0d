"""A reference that follows the policy (TR-DPO)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import runs as h

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.settings import Mesh, Reference
from jaxalign.update.step import moved_reference

pytestmark = pytest.mark.slow

STEPS = 4


def recipe(inputs, folder, every=1, mix=0.6, **changes):
    changes = {
        "stages__dpo__reference": {"mode": "live", "every": every, "mix": mix},
        "stages__dpo__steps": STEPS,
        "stages__dpo__data__eval_path": f"{inputs}/held_out.jsonl",
    } | changes
    return h.recipe(inputs, folder, "dpo", **changes)


def trained(inputs, folder, mesh=None, **changes):
    """Metrics of the updates, and the weights at the end."""
    h.run(recipe(inputs, folder, **changes), mesh or h.one_device())
    return h.repeated(h.metrics(folder / "dpo")), h.tensors(folder / "dpo" / "model")


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moving")
    return folder, *trained(inputs, folder / "run")


def losses(lines):
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(("step", "mix", "after"), [(4, 0.6, 1.6), (3, 0.6, 1.0), (4, 1.0, 2.0)])
def test_the_reference_moves_at_every_few_updates(step, mix, after):
    settings = Reference(mode="live", every=2, mix=mix)
    out = moved_reference({"w": jnp.ones(2)}, {"w": jnp.full(2, 2.0)}, jnp.int32(step), settings)
    np.testing.assert_allclose(out["w"], after, rtol=1e-6)


def test_a_reference_in_half_precision_keeps_its_dtype():
    half = {"w": jnp.ones(2, jnp.bfloat16)}
    out = moved_reference(half, half, jnp.int32(1), Reference(mode="live", every=1))
    assert out["w"].dtype == jnp.bfloat16


def test_a_reference_that_becomes_the_policy_at_every_update_leaves_log_two(inputs, tmp_path):
    lines, _ = trained(inputs, tmp_path / "run", mix=1.0)
    np.testing.assert_allclose(losses(lines), np.log(2), rtol=1e-6)


def test_a_moving_reference_changes_the_second_update_and_not_the_first(whole, inputs, tmp_path):
    lines, _ = trained(inputs, tmp_path / "run", every=100)
    moved, fixed = losses(whole[1]), losses(lines)
    assert moved[0] == fixed[0]
    assert abs(moved[1] - fixed[1]) > 1e-4


def test_evaluation_is_against_the_reference_as_it_is_then(inputs, tmp_path):
    lines, _ = trained(inputs, tmp_path / "run", mix=1.0)
    np.testing.assert_allclose(lines[-1]["eval/loss"], np.log(2), rtol=1e-6)


def test_a_run_that_goes_on_gives_the_bits_of_a_whole_one(whole, inputs, tmp_path):
    folder, lines, weights = whole
    h.copy_folder(folder / "run", tmp_path / "half")
    h.rewind(tmp_path / "half" / "dpo")
    again, resumed = trained(inputs, tmp_path / "half")
    assert again == lines
    for name in weights:
        np.testing.assert_array_equal(resumed[name], weights[name])


@pytest.mark.parametrize(("n", "devices"), [(4, 1), (1, 2)])
def test_microbatches_and_devices_give_the_same_model(whole, inputs, tmp_path, n, devices):
    mesh = make_mesh(Mesh(data=1, fsdp=devices), jax.devices()[:devices])
    lines, weights = trained(inputs, tmp_path / "run", mesh, stages__dpo__microbatches=n)
    np.testing.assert_allclose(losses(lines), losses(whole[1]), rtol=1e-4)
    for name in weights:
        np.testing.assert_allclose(weights[name], whole[2][name], atol=1e-4)


def test_the_command_evaluates_against_the_moved_reference(
    whole, inputs, tmp_path, jaxalign_command
):
    folder, lines, _ = whole
    values = h.values(
        inputs,
        folder / "run",
        "dpo",
        stages__dpo__reference={"mode": "live", "every": 1, "mix": 0.6},
        stages__dpo__steps=STEPS,
        stages__dpo__data__eval_path=f"{inputs}/held_out.jsonl",
        mesh={"data": 1, "fsdp": len(jax.devices())},
    )
    code, out, _ = jaxalign_command("evaluate", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert code == 0
    loss = re.search(r"^loss +([\d.]+)", out, re.MULTILINE)
    assert loss is not None
    assert float(loss[1]) == pytest.approx(lines[-1]["eval/loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stages__dpo__reference": {"every": 2}},
            r"dpo\.reference\.every: a cached reference cannot be updated; set reference\.mode",
        ),
        (
            {"stages__dpo__lora": {"rank": 2}},
            "every: with adapters the reference is the frozen base model; train without lora",
        ),
        (
            {"stages__dpo__objective": {"name": "simpo"}},
            r"every: simpo has no reference to update; leave it out \(got 1\)",
        ),
        ({"stages__dpo__reference": {"mode": "live", "every": 1, "mix": 0.0}}, r"reference\.mix"),
    ],
)
def test_a_reference_that_cannot_move_is_refused(inputs, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        recipe(inputs, tmp_path / "run", **changes)
