"""Damaged checkpoints and tokenizers: read right, or refused in words."""

import contextlib
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lib.damage import odd_bytes, odd_json
from lib.fuzz import fuzz, limited
from lib.steps import one_device
from safetensors.numpy import load_file, save_file

from jaxalign.data.encode import Encoder
from jaxalign.data.spans import Chat
from jaxalign.hf import load
from jaxalign.hf.tokenizer import load_tokenizer, stop_tokens
from jaxalign.run.stage import describe_model
from jaxalign.settings import Model

pytestmark = pytest.mark.slow

DESCRIBED = ("config.json", "generation_config.json", "model.safetensors.index.json")
WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.fixture(scope="module")
def sharded(inputs, tmp_path_factory):
    """The small checkpoint, its weights in two files."""
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(inputs / "model", folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    where = {name: file for file, own in halves.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [1], "max_length": 20})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


@st.composite
def damage(draw, folder: Path, names):
    """(file, bytes)."""
    name = draw(st.sampled_from([n for n in names if (folder / n).exists()]))
    data = (folder / name).read_bytes()
    if name.endswith(".json"):
        return name, draw(odd_json(json.loads(data)))
    head = 8 + int.from_bytes(data[:8], "little")
    if draw(st.booleans()):
        return name, draw(odd_bytes(data[:head])) + data[head:]
    header = draw(odd_json(json.loads(data[8:head])))
    return name, len(header).to_bytes(8, "little") + header + data[head:]


@contextlib.contextmanager
def damaged(good, folder, case):
    """A copy of a good folder with a damaged file, whose name it gives; whole again at the end."""
    name, data = case
    (folder / name).write_bytes(data)
    try:
        yield name
    finally:
        shutil.copy(good / name, folder / name)


def numbers(value):
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return []
    if isinstance(value, (int, float)):
        return [value]
    inner = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, (list, tuple))
        else vars(value).values()
        if hasattr(value, "__dict__")
        else ()
    )
    return [n for x in inner for n in numbers(x)]


@pytest.mark.parametrize("names", [DESCRIBED, ("a.safetensors",)])
def test_a_damaged_checkpoint_is_read_or_refused(sharded, tmp_path, names):
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    _, exact = read(folder)

    @fuzz(0.15)
    @given(damage(sharded, names))
    def check(case):
        with damaged(sharded, folder, case) as name, limited() as refused:
            model, params = read(folder)
        if refused:
            return
        assert all(math.isfinite(n) for n in numbers(model.spec))
        if name != "config.json":
            same = jax.tree.map(lambda a, b: np.array_equal(a, b), params, exact)
            assert all(jax.tree.leaves(same)), "other weights"

    check()


def read(folder):
    model = describe_model(folder, Model(path=str(folder), dtype="float32"), one_device())
    return model, load.load_params(folder, model)


def test_a_damaged_tokenizer_is_read_or_refused(sharded, tmp_path):
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    chat = Chat([{"role": "user", "content": "1+2="}])

    @fuzz(0.1)
    @given(damage(sharded, WORDS))
    def check(case):
        with damaged(sharded, folder, case), limited() as refused:
            tokenizer = load_tokenizer(folder)
            encoder = Encoder(tokenizer, stops=stop_tokens(folder, tokenizer))
            (ids,) = encoder.prompts([("a prompt", chat)])
        if not refused:
            assert "1" in tokenizer.decode(ids)
            assert encoder.stops, "no stop token"

    check()
