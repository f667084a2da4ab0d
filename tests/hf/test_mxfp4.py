"""Checkpoints with experts in MXFP4."""

import json
import shutil

import numpy as np
import pytest
from lib.checkpoints import load, logits, plain_rows, small_model, tensors_of
from safetensors.numpy import load_file, save_file

from jaxalign.errors import UserError
from jaxalign.hf.save import save_checkpoint

VALUES = (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6)
NAMES = ("gate_up_proj", "down_proj")


@pytest.fixture
def folders(hf_checkpoint, tmp_path):
    """The same checkpoint with experts in MXFP4, and in float32."""
    rng = np.random.default_rng(0)
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    for folder in (packed, plain):
        shutil.copytree(hf_checkpoint("gpt_oss"), folder)
    tensors = load_file(plain / "model.safetensors")
    held = dict(tensors)
    for name in [n for n in tensors if n.endswith(NAMES)]:
        experts, into, out = tensors[name].shape
        blocks = rng.integers(0, 256, (experts, out, into // 32, 16), np.uint8)
        scales = rng.integers(118, 126, (experts, out, into // 32), np.uint8)
        whole = np.empty((experts, into, out), np.float32)
        for e, o, b in np.ndindex(scales.shape):
            for j, byte in enumerate(blocks[e, o, b]):
                for half, code in enumerate((byte & 15, byte >> 4)):
                    value = VALUES[code] * 2.0 ** (int(scales[e, o, b]) - 127)
                    whole[e, 32 * b + 2 * j + half, o] = value
        tensors[name] = whole
        del held[name]
        held |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(held, packed / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (packed / "config.json").write_text(json.dumps(config))
    return packed, plain


def test_experts_in_mxfp4_are_those_of_the_formula_and_are_exported_plain(folders, tmp_path):
    packed, plain = folders
    rows = plain_rows([9, 4], 9)
    found, wanted = (logits(small_model(f), load(f), rows) for f in folders)
    np.testing.assert_array_equal(found, wanted)
    save_checkpoint(
        tmp_path / "out", load(packed), small_model(packed), source=packed, card="# A card\n"
    )
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    ours, theirs = tensors_of(tmp_path / "out"), tensors_of(plain)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor.astype(np.float32), theirs[name])


def test_a_scale_that_is_not_a_number_is_refused(folders):
    file = folders[0] / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("down_proj_scales"))
    tensors[name][0, 0, 0] = 255
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="down_proj': a scale is not a number"):
        load(folders[0])
