"""Mistakes in the terms of a stage that only their data show."""

import jax
import pytest
from lib import runs as h
from lib.terms import values, write_samples

from jaxalign.core.sharding import make_mesh
from jaxalign.errors import UserError
from jaxalign.run import ledger
from jaxalign.run.preflight import check_stage
from jaxalign.settings import Mesh

MESH = h.one_device()


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A file of sampled answers with their baselines."""
    return write_samples(tmp_path_factory.mktemp("samples"))


def test_a_mistake_in_the_data_of_a_term_names_the_term(inputs, tmp_path):
    rows = tmp_path / "rows.jsonl"
    h.write_rows(rows, [{"prompt": "1+1=", "completion": "2"}])  # without `baseline`
    given = h.parse(values(inputs, tmp_path / "run", rows))
    with pytest.raises(UserError, match=r"^stage hypo, term kl: .*baseline"):
        h.prepared(given, "hypo", MESH)


def test_a_batch_that_is_not_cut_evenly_names_its_term(inputs, samples, tmp_path):
    given = h.parse(values(inputs, tmp_path / "run", samples, kl={"batch_size": 6}))
    stage = h.prepared(given, "hypo", make_mesh(Mesh(data=4), jax.devices()[:4]))
    with pytest.raises(UserError, match=r"^stages.hypo.terms.kl.batch_size 6 cannot be divided"):
        check_stage(stage)


def test_a_live_reference_of_another_architecture_names_its_term(
    inputs, samples, tmp_path, hf_checkpoint
):
    other = {"reference": {"mode": "live", "path": str(hf_checkpoint("llama-gqa"))}}
    given = h.parse(values(inputs, tmp_path / "run", samples, kl=other))
    stage = h.prepared(given, "hypo", MESH)
    with pytest.raises(
        UserError, match=r"^stages.hypo.terms.kl.reference: .* another architecture"
    ):
        check_stage(stage)


def test_a_changed_input_of_a_term_is_refused(inputs, samples, tmp_path):
    rows = tmp_path / "samples.jsonl"
    rows.write_text(samples.read_text())
    recipe = h.parse(values(inputs, tmp_path / "run", rows))
    ledger.settle(h.prepared(recipe, "hypo", MESH), h.QUIET, accept_changes=False)
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    changed = h.prepared(recipe, "hypo", MESH)
    with pytest.raises(UserError, match=r"\n  kl: tokens of the training data +SHA-256"):
        ledger.settle(changed, h.QUIET, accept_changes=False)
