"""The command on eight devices, its programs optimized as for a user."""

import subprocess

import numpy as np
import pytest
from lib import runs as h


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_next"])  # experts; recurrent layers too
def test_eight_devices_give_the_losses_of_one(hf_checkpoint, tmp_path, name):
    h.write_rows(tmp_path / "pairs.jsonl", [h.pair(i) for i in range(16)])
    losses = []
    for devices, mesh in ((1, {}), (8, {"data": 2, "fsdp": 2, "tensor": 2})):
        folder = tmp_path / str(devices)
        stage = {
            "objective": {"name": "dpo", "beta": 0.5},
            "data": {"path": str(tmp_path / "pairs.jsonl"), "max_length": 64},
            "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
            "batch_size": 8,
            "microbatches": 2,
            "steps": 2,
        }
        values = {
            "run": {"dir": str(folder)},
            "model": {"path": str(hf_checkpoint(name)), "dtype": "float32"},
            "mesh": mesh,
            "stages": {"dpo": stage},
        }
        recipe = h.write_recipe(tmp_path / f"{devices}.yaml", values)
        done = subprocess.run(
            h.command("train", recipe),
            env=h.environment("", devices, XLA_FLAGS=""),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        losses.append([line["loss"] for line in h.metrics(folder / "dpo") if "loss" in line])
    assert len(losses[0]) == 2
    np.testing.assert_allclose(*losses, atol=1e-5)
