"""Adapters go to PEFT and come from it."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from lib.adapters import RANK, adapted, opened, peft_model, randomized
from lib.checkpoints import (
    FAST_FAMILIES,
    FEW_FAMILIES,
    in_torch,
    logits,
    plain_rows,
    small_model,
    torch_logits,
)
from safetensors.numpy import load_file, save_file

from jaxalign.errors import UserError
from jaxalign.hf.load import load_params
from jaxalign.hf.peft import base_folder, load_adapter, load_merged, save_adapter
from jaxalign.hf.save import save_checkpoint
from jaxalign.settings import Lora, Mesh

ROWS = plain_rows([9, 4], 9)
REAL = ROWS["segment"] > 0
MESH = Mesh(data=2, fsdp=2, tensor=2)
CARD = "# A model card\n"


def close(ours, theirs, atol=1e-4):
    """Logits equal the logits of transformers to 1e-4, as without adapters."""
    np.testing.assert_allclose(ours[REAL], theirs[REAL], atol=atol)


def adapted_logits(model, frozen, adapters):
    """[K, L, V] float32."""
    args = [ROWS[key] for key in ("ids", "positions", "segment", "branch")]
    with jax.set_mesh(model.mesh):
        hidden, head, *_ = jax.jit(model.forward)(frozen, adapters, *args)
        return np.asarray(jax.jit(head.logits)(hidden))


@pytest.fixture(scope="module")
def made(hf_checkpoint, tmp_path_factory):
    """`made(name)`: the folders of a checkpoint and of an adapter by PEFT, and PEFT's logits."""
    known = {}

    def make(name, **options):
        key = (name, *options.items())
        if key not in known:
            folder = tmp_path_factory.mktemp("adapter")
            model = peft_model(hf_checkpoint(name), **options)
            model.save_pretrained(folder)
            known[key] = hf_checkpoint(name), folder, torch_logits(model, ROWS)
        return known[key]

    return make


@pytest.mark.parametrize("name", FEW_FAMILIES)
def test_an_adapter_of_peft_gives_the_logits_of_peft(made, name):
    base, folder, wanted = made(name)
    model = small_model(base, mesh=MESH)
    with_adapters, adapters = load_adapter(folder, model)
    close(adapted_logits(with_adapters, load_params(base, model), adapters), wanted)
    assert np.abs(torch_logits(in_torch(base), ROWS) - wanted)[REAL].max() > 0.1


@pytest.mark.parametrize("name", FAST_FAMILIES)
def test_a_rank_stabilized_adapter_gives_the_logits_of_peft(made, name):
    base, folder, wanted = made(name, use_rslora=True)
    model = small_model(base)
    with_adapters, adapters = load_adapter(folder, model)
    close(adapted_logits(with_adapters, load_params(base, model), adapters), wanted)
    close(logits(model, load_merged(folder, model), ROWS), wanted)


def test_an_adapter_of_some_matrices_is_read_as_such(made):
    base, folder, wanted = made("llama-gqa", target_modules=("q_proj", "down_proj"))
    model = small_model(base)
    with_adapters, adapters = load_adapter(folder, model)
    assert with_adapters.low_rank.targets == (("attention", "query"), ("mlp", "down"))
    close(adapted_logits(with_adapters, load_params(base, model), adapters), wanted)


@pytest.mark.parametrize("name", FAST_FAMILIES)
@pytest.mark.parametrize("stabilized", [False, True])
def test_peft_opens_what_is_saved_and_gives_equal_logits(hf_checkpoint, tmp_path, name, stabilized):
    settings = Lora(rank=RANK, alpha=6, rank_stabilized=stabilized)
    model = adapted(hf_checkpoint(name), settings, mesh=MESH)
    adapters = randomized(model)
    save_adapter(tmp_path / "out", adapters, model, base=str(hf_checkpoint(name)), card=CARD)
    theirs = opened(tmp_path / "out", hf_checkpoint(name))
    # PEFT passes in silence over tensors that it does not know, and keeps zeros for them.
    trained = [p for n, p in theirs.named_parameters() if "lora_" in n]
    assert len(trained) == len(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert all(bool(p.ne(0).any()) for p in trained)
    ours = adapted_logits(model, load_params(hf_checkpoint(name), model.base), adapters)
    close(ours, torch_logits(theirs, ROWS))


@pytest.mark.parametrize("name", FEW_FAMILIES)
def test_the_file_is_the_one_that_peft_writes(made, tmp_path, name):
    base, folder, _ = made(name)
    model, adapters = load_adapter(folder, small_model(base, mesh=MESH))
    save_adapter(tmp_path / "out", adapters, model, base=str(base), card=CARD)
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "out", folder))
    chex.assert_trees_all_equal(ours, theirs)
    ours, theirs = (
        json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path / "out", folder)
    )
    named = {name.rpartition(".")[-1] for name in theirs.pop("target_modules")}
    assert ours.pop("target_modules") == sorted(named)
    assert ours == {key: theirs[key] for key in ours}


@pytest.mark.parametrize("name", FEW_FAMILIES)
def test_the_merged_export_gives_the_logits_of_peft_in_transformers(made, tmp_path, name):
    base, folder, wanted = made(name)
    model, adapters = load_adapter(folder, small_model(base, mesh=MESH))
    merged = model.merged(load_params(base, model.base), adapters)
    save_checkpoint(tmp_path / "out", merged, model.base, source=base, card=CARD)
    # The random Starcoder2 magnifies rounding: torch itself is 2.2e-4 from its float64 logits.
    close(torch_logits(in_torch(tmp_path / "out"), ROWS), wanted, atol=3e-4)


def test_a_merged_export_is_rounded_once(hf_checkpoint, tmp_path):
    """A base in bfloat16 is merged in float32; only then is the sum rounded, if at all."""
    model = adapted(hf_checkpoint("llama-gqa"), Lora(rank=RANK), param_dtype="bfloat16")
    frozen, adapters = load_params(hf_checkpoint("llama-gqa"), model.base), randomized(model)
    merged = model.merged(frozen, adapters)
    save_checkpoint(
        tmp_path / "out", merged, model.base, source=hf_checkpoint("llama-gqa"), card=CARD
    )
    kernel = np.asarray(frozen["layers"]["0"]["mlp"]["up"]["kernel"], np.float32)[1]
    low = adapters["layers"]["0"]["mlp"]["up"]
    a, b = (np.asarray(low[k], np.float64)[1] for k in ("lora_a", "lora_b"))
    found = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_allclose(found.T, kernel + 32 / RANK * a @ b, rtol=1e-5, atol=1e-6)


@pytest.fixture
def damaged(made, tmp_path):
    """`damaged(edit)`: a copy of an adapter whose configuration and tensors `edit` has changed."""

    def make(edit, name="llama-gqa"):
        base, folder, _ = made(name)
        copy = shutil.copytree(folder, tmp_path / "adapter")
        config = json.loads((copy / "adapter_config.json").read_text())
        tensors = load_file(copy / "adapter_model.safetensors")
        edit(config, tensors)
        (copy / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, copy / "adapter_model.safetensors")
        return copy, small_model(base)

    return make


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda c, t: c.update(use_dora=True), "use_dora = True is not implemented"),
        (lambda c, t: c.update(bias="all"), "bias = 'all' is not implemented"),
        (lambda c, t: c.update(peft_type="IA3"), "peft_type = 'IA3' is not implemented"),
        (lambda c, t: c.update(init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
        (lambda c, t: c.update(rank_pattern={"q_proj": 2}), "rank_pattern"),
        (lambda c, t: c.update(modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda c, t: c.update(layers_to_transform=[0]), "layers_to_transform"),
        (lambda c, t: c.update(trainable_token_indices=[3]), "trainable_token_indices"),
        (lambda c, t: c.update(a_key_of_later_versions=1), "a_key_of_later_versions = 1"),
        (lambda c, t: c.update(r=0), "r: got 0, wanted a positive number"),
        (lambda c, t: c.update(r=8), r"'.*q_proj.lora_A.weight': got shape \(4, 32\)"),
        (lambda c, t: t.pop(A), f"tensor '{A}' is missing"),
        (lambda c, t: t.update({A.replace("q_proj", "x"): t[A]}), "is no adapter of a linear"),
        (lambda c, t: t.update({A.replace(".0.", ".9."): t[A]}), "with 2 layers"),
    ],
)
def test_an_unsupported_adapter_is_refused_by_name(damaged, edit, message):
    folder, model = damaged(edit)
    with pytest.raises(UserError, match=message):
        load_adapter(folder, model)


def test_a_missing_base_is_named(damaged):
    folder, _ = damaged(lambda c, t: c.update(base_model_name_or_path="/no/such/base"))
    with pytest.raises(UserError, match=r"base_model_name_or_path: .*no folder /no/such/base"):
        base_folder(folder)
    folder = folder.rename(folder.with_name("other"))
    folder, _ = damaged(lambda c, t: c.update(base_model_name_or_path=None))
    with pytest.raises(UserError, match="base_model_name_or_path: got None"):
        base_folder(folder)


def test_a_pickled_adapter_is_refused(damaged):
    folder, model = damaged(lambda c, t: None)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model.safetensors: missing; save the adapter as"):
        load_adapter(folder, model)
