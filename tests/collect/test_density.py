import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import runs as h

from jaxalign.collect import density
from jaxalign.collect.density import Density, density_ratios, embeddings, write_ratios
from jaxalign.errors import UserError
from jaxalign.hf.load import load_params
from jaxalign.run.stage import describe_model
from jaxalign.settings import Model

MESH = h.one_device()


@pytest.fixture
def blobs():
    """Embeddings of two kinds of prompt, and labels that mostly follow the kind."""
    rng = np.random.default_rng(0)
    kind = np.arange(80) % 2
    embedded = rng.normal(0, 1, (80, 6)) + kind[:, None]
    return embedded, np.where(rng.random(80) < 0.8, kind, 1 - kind).astype(float)


def test_an_embedding_is_the_hidden_state_at_the_end_of_the_prompt(inputs):
    model = describe_model(inputs / "model", Model(path="", dtype="float32"), MESH)
    params = load_params(inputs / "model", model)
    prompts = [np.arange(3, 9, dtype=np.int32), np.array([5, 4], np.int32)]
    found = embeddings(model, params, prompts, batch_size=3)
    for ids, ours in zip(prompts, found, strict=True):
        row = jnp.asarray(ids)[None]
        places = jnp.arange(len(ids))[None]
        with jax.set_mesh(MESH):
            hidden = model.forward(
                params, row, places, jnp.ones_like(row), jnp.zeros_like(row)
            ).hidden
        np.testing.assert_allclose(ours, hidden[0, -1], rtol=1e-5, atol=1e-5)


def test_a_prompt_of_the_desirable_kind_has_the_higher_ratio(blobs):
    ratios = density_ratios(*blobs)
    assert np.median(ratios[1::2]) > 1.5
    assert np.median(ratios[::2]) < 1 / 1.5


def test_how_many_examples_a_label_has_makes_no_difference(blobs):
    embedded, labels = blobs
    # The scaler sees another mean and variance, so the two are equal only nearly.
    more = np.concatenate([np.arange(80), *[np.flatnonzero(labels == 1)] * 3])
    again = density_ratios(embedded[more], labels[more])[:80]
    np.testing.assert_allclose(np.log(again), np.log(density_ratios(*blobs)), atol=0.25)


def test_labels_that_do_not_depend_on_the_prompt_have_ratio_1():
    embedded = np.repeat(np.random.default_rng(0).normal(size=(20, 4)), 2, axis=0)
    np.testing.assert_allclose(density_ratios(embedded, np.arange(40) % 2), 1.0, rtol=1e-4)


def test_pairs_become_labeled_rows_that_bco_udm_trains_on(inputs, tmp_path, jaxalign_command):
    out = tmp_path / "ratios.jsonl"
    command = (inputs / "model", "--data", f"{inputs}/pairs.jsonl", "--out", out)
    code, said, _ = jaxalign_command("density", *command, "--dtype", "float32")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert (code, f"{2 * h.TRAIN} rows are in {out}" in said) == (0, True)
    assert [row["label"] for row in rows] == [True, False] * h.TRAIN
    # Every prompt has one response of each label.
    np.testing.assert_allclose([row["density_ratio"] for row in rows], 1.0, rtol=1e-3)
    where = {"stages__bco_udm__data__path": str(out)}
    h.run(h.recipe(inputs, tmp_path / "run", "bco_udm", **where), MESH)
    assert len(h.metrics(tmp_path / "run" / "bco_udm")) == 4


def test_labels_that_are_all_the_same_are_refused(inputs, tmp_path):
    rows = [{"prompt": "1+1=", "completion": "2", "label": True}] * 2
    h.write_rows(tmp_path / "same.jsonl", rows)
    settings = Density(model="", data=str(tmp_path / "same.jsonl"), out="unused")
    with pytest.raises(UserError, match=r"same.jsonl: all labels are the same"):
        write_ratios(inputs / "model", settings, MESH)


def test_an_empty_prompt_is_refused(inputs, tmp_path):
    rows = [{"prompt": p, "completion": "2", "label": p == ""} for p in ("", "1+1=")]
    h.write_rows(tmp_path / "empty.jsonl", rows)
    settings = Density(model="", data=str(tmp_path / "empty.jsonl"), out="unused")
    with pytest.raises(UserError, match=r"empty.jsonl line 1: 'prompt' is empty"):
        write_ratios(inputs / "model", settings, MESH)


def test_what_a_row_says_besides_is_kept(inputs, tmp_path, monkeypatch):
    more = {"weight": 2.0, "tools": [{"name": "add"}], "chat_template_kwargs": {"x": 1}}
    rows = [{"prompt": "1+1=", "completion": "2", "label": label} for label in (True, False)]
    rows[0] |= more
    h.write_rows(tmp_path / "rows.jsonl", rows)
    monkeypatch.setattr(density, "embeddings", lambda *_: np.ones((2, 3)))
    out = tmp_path / "out.jsonl"
    settings = Density(model="", data=str(tmp_path / "rows.jsonl"), out=str(out))
    write_ratios(inputs / "model", settings, MESH)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "density_ratio"} for row in found] == rows


def test_an_output_in_no_folder_is_refused_before_the_work(inputs):
    settings = Density(model="", data="nowhere.jsonl", out="no/where.jsonl")
    with pytest.raises(UserError, match="--out: no folder no; make it"):
        write_ratios(inputs / "model", settings, MESH)
