"""`eval_samples`: answers of the weights in training, measured at each evaluation."""

import json

import numpy as np
import pytest
from lib import runs as h

from jaxalign.collect import statistics
from jaxalign.collect.decode import generate
from jaxalign.collect.scorers.rules import repeated
from jaxalign.collect.statistics import Measure, token_logps
from jaxalign.data.examples import Example
from jaxalign.errors import UserError
from jaxalign.hf.load import load_params
from jaxalign.recipe.read import parse
from jaxalign.run.data_stage import seed_of
from jaxalign.run.phases import Phases
from jaxalign.run.preflight import check_stages
from jaxalign.run.samples import METRICS, sample_prompts
from jaxalign.run.tracking import Tracker

MESH = h.one_device()
COUNT, MAX_NEW = 8, 12


def values(inputs, folder, objective="dpo", **changes):
    """A stage that is evaluated every three updates, with answers."""
    stage = {
        "data__eval_path": f"{inputs}/held_out.jsonl",
        "eval_every": 3,
        "eval_samples": {"count": COUNT, "max_new": MAX_NEW},
        "steps": 6,
        "objective": {"name": objective},
    } | changes
    return h.values(inputs, folder, "dpo", **{f"stages__dpo__{k}": v for k, v in stage.items()})


def own_answers(folder):
    """The metrics of own answers at each evaluation."""
    lines = [m for m in h.metrics(folder / "dpo") if "eval/samples/kl" in m]
    return [{name: m[f"eval/{name}"] for name in METRICS} for m in lines]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A finished run: (recipe, folder)."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = parse(values(inputs, folder))
    h.run(recipe, MESH)
    return recipe, folder


def drawn_again(recipe, folder):
    """Prompts, and the answers of the exported model to them: (model, prompts, answers)."""
    stage = h.prepared(recipe, "dpo", MESH)
    prompts = [prompt.ids for prompt in sample_prompts(stage)]
    params = load_params(folder / "dpo/model", stage.model)
    how = {"max_new": MAX_NEW, "stop": stage.encoder.all_stops(), "seed": seed_of(recipe, "dpo")}
    return stage, prompts, generate(stage.model, params, prompts, **how)


def test_the_divergence_is_the_mean_log_ratio_of_own_answers(finished):
    recipe, folder = finished
    stage, prompts, answers = drawn_again(recipe, folder)
    examples = [Example.of(p, a.drawn) for p, a in zip(prompts, answers, strict=True)]
    start = Measure(stage.model, load_params(stage.source, stage.model), "float32").each(examples)
    ratios = [a.logp - float(stats.logp[0]) for a, stats in zip(answers, start, strict=True)]
    last = own_answers(folder)[-1]
    assert last["samples/kl"] == pytest.approx(np.mean(ratios), rel=1e-5)  # float32 sums
    errors = json.loads((folder / "dpo/held_out.json").read_text())["standard_errors"]
    error = np.std(ratios, ddof=1) / np.sqrt(COUNT)
    assert errors["samples/kl"] == pytest.approx(error, rel=1e-5)
    assert errors.keys() >= set(METRICS)


def test_lengths_ends_and_repetition_are_those_of_the_answers(finished):
    recipe, folder = finished
    stage, _, answers = drawn_again(recipe, folder)
    last = own_answers(folder)[-1]
    texts = [stage.encoder.text(a.tokens) for a in answers]
    assert last["samples/length"] == np.mean([len(a.tokens) + a.stopped for a in answers])
    assert last["samples/unfinished"] == np.mean([not a.stopped for a in answers])
    assert last["samples/repetition"] == np.mean([repeated(text, 3) for text in texts])


def test_weights_that_do_not_move_have_no_divergence_and_the_same_answers(inputs, tmp_path):
    still = {"optimizer__learning_rate": 0.0}
    h.run(parse(values(inputs, tmp_path, "sft", **still)), MESH)
    first, last = own_answers(tmp_path)
    assert first == last
    assert first["samples/kl"] == 0
    assert 0 < first["samples/length"] <= MAX_NEW


def test_own_answers_have_a_phase_of_their_own(finished):
    timings = json.loads((finished[1] / "dpo/timings.json").read_text())
    assert timings["sampling"] > 0


def test_own_answers_are_in_the_model_card(finished):
    folder = finished[1]
    value = own_answers(folder)[-1]["samples/kl"]
    assert f"| samples/kl | {value:.6g} |" in (folder / "dpo/model/README.md").read_text()


def test_the_best_update_may_be_chosen_by_own_answers(inputs, tmp_path):
    best = {"keep_best": {"metric": "samples/kl", "want": "highest"}}
    recipe = parse(values(inputs, tmp_path, **best))
    check_stages(recipe, MESH, h.QUIET, {"dpo": Phases(tmp_path / "dpo", "dpo", h.QUIET)})


def test_a_batch_of_answers_has_one_shape_whatever_their_lengths(inputs, tmp_path):
    stage = h.prepared(parse(values(inputs, tmp_path)), "dpo", MESH)
    params = load_params(stage.source, stage.model)
    rng = np.random.default_rng(0)
    examples = [
        Example.of(rng.integers(5, 99, 4).astype(np.int32), rng.integers(5, 99, n).astype(np.int32))
        for n in (1, 12, 7, 3, 5)
    ]
    statistics._forward.cache_clear()
    how = {"cell": 2, "longest": 16, "scored": 12}
    found = token_logps(stage.model, params, examples, **how)
    token_logps(stage.model, params, examples[:1], **how)
    assert statistics._forward(stage.model, stage.model.branches)._cache_size() == 1
    each = Measure(stage.model, params, "float32").each(examples)
    wanted = [float(stats.logp[0]) for stats in each]
    np.testing.assert_allclose(found.sum(-1), wanted, rtol=1e-5)
    assert found.shape == (5, 16)
    assert not found[0, 1:].any()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 1e-2])
def test_the_reference_of_adapters_is_their_base(inputs, tmp_path, rate):
    lora = {"lora": {"rank": 4, "alpha": 8.0}, "optimizer__learning_rate": rate}
    recipe = parse(values(inputs, tmp_path, **lora))
    h.run(recipe, MESH)
    stage, prompts, answers = drawn_again(recipe, tmp_path)
    examples = [Example.of(p, a.drawn) for p, a in zip(prompts, answers, strict=True)]
    start = Measure(stage.model, load_params(stage.source, stage.model), "float32").each(examples)
    ratios = [a.logp - float(stats.logp[0]) for a, stats in zip(answers, start, strict=True)]
    # Adapters are merged in the export, and not while training.
    assert own_answers(tmp_path)[-1]["samples/kl"] == pytest.approx(
        np.mean(ratios), rel=1e-3, abs=1e-4
    )
    assert (rate == 0) == (abs(np.mean(ratios)) < 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reference", [{"mode": "cached"}, {"mode": "live"}, {"mode": "live", "every": 2}]
)
def test_answers_are_compared_with_the_reference_of_the_recipe(inputs, tmp_path, reference):
    h.run(parse(values(inputs, tmp_path / "first", steps=3)), MESH)
    given = reference | {"path": str(tmp_path / "first/dpo/model")}
    recipe = parse(values(inputs, tmp_path / "run", reference=given))
    h.run(recipe, MESH)
    stage, prompts, answers = drawn_again(recipe, tmp_path / "run")
    examples = [Example.of(p, a.drawn) for p, a in zip(prompts, answers, strict=True)]
    other = load_params(tmp_path / "first/dpo/model", stage.model)
    found = Measure(stage.model, other, "float32").each(examples)
    ratios = [a.logp - float(stats.logp[0]) for a, stats in zip(answers, found, strict=True)]
    last = own_answers(tmp_path / "run")[-1]
    assert last["samples/kl"] == pytest.approx(np.mean(ratios), rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_terms_draw_with_the_prompts_of_the_first_held_out_data(inputs, tmp_path):
    given = values(inputs, tmp_path)
    stage = given["stages"]["dpo"]
    own = {name: stage.pop(name) for name in ("objective", "data", "batch_size")}
    stage["terms"] = {"pairs": own, "sft": own | {"objective": {"name": "sft"}}}
    recipe = parse(given)
    h.run(recipe, MESH)
    assert len(own_answers(tmp_path)) == 2


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.slow
def test_a_killed_run_measures_the_same_answers(inputs, finished, tmp_path, monkeypatch):
    recipe = parse(values(inputs, tmp_path / "run"))
    written = Tracker.log

    def log(self, step, metrics, *, evaluation=False):
        written(self, step, metrics, evaluation=evaluation)
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "log", log)
        with pytest.raises(Killed):
            h.run(recipe, MESH)
    h.run(recipe, MESH)
    ours, theirs = tmp_path / "run/dpo", finished[1] / "dpo"
    assert h.repeated(h.metrics(ours)) == h.repeated(h.metrics(theirs))


# Prompts of a file


@pytest.fixture
def asking(inputs, tmp_path):
    """`asking(prompts)`: the values of a stage without held-out data that answers a file."""

    def make(prompts, **changes):
        h.write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in prompts])
        own = {"count": 2, "max_new": 5, "prompts": str(tmp_path / "prompts.jsonl")}
        return values(inputs, tmp_path / "run", data__eval_path=None, eval_samples=own, **changes)

    return make


def test_prompts_of_a_file_are_answered_without_held_out_data(asking, tmp_path):
    h.run(parse(asking(["1+1=", "2+2=", "3+3="])), MESH)
    assert len(own_answers(tmp_path / "run")) == 2


def test_other_prompts_are_refused_by_a_stage_that_has_begun(asking, tmp_path):
    h.run(parse(asking(["1+1=", "2+2="])), MESH)
    h.rewind(tmp_path / "run/dpo")
    with pytest.raises(UserError, match="prompts of eval_samples  SHA-256"):
        h.run(parse(asking(["1+1=", "2+3="])), MESH)


# Mistakes


def refused(recipe, tmp_path, match):
    with pytest.raises(UserError, match=match):
        check_stages(recipe, MESH, h.QUIET, {"dpo": Phases(tmp_path / "dpo", "dpo", h.QUIET)})


def test_more_answers_than_prompts_are_refused(inputs, tmp_path):
    recipe = parse(values(inputs, tmp_path, eval_samples={"count": 14}))
    match = (
        r"stages\.dpo\.eval_samples\.count: .*held_out\.jsonl has 13 prompts, fewer than 14; set"
    )
    refused(recipe, tmp_path, match)


def test_answers_beyond_the_positions_of_the_model_are_refused(inputs, tmp_path):
    recipe = parse(values(inputs, tmp_path, eval_samples={"count": 1, "max_new": 64}))
    refused(recipe, tmp_path, r"stages\.dpo\.eval_samples: .* more than the model's 64 positions")


def test_a_reference_with_fewer_tokens_is_refused(inputs, tmp_path):
    other = h.copy_folder(inputs / "model", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["vocab_size"] -= 1
    (other / "config.json").write_text(json.dumps(config))
    recipe = parse(values(inputs, tmp_path / "run", reference={"path": str(other)}))
    refused(recipe, tmp_path, r"eval_samples: the reference .*other has \d+ tokens, and the model")
