"""Reward models: from the file to the loss, and from the command line to transformers."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from lib import runs as h
from lib.packing import make_example
from lib.steps import B, T, assert_same, batch_of, gradient, some_examples

from jaxalign.core import layouts, stats
from jaxalign.core.objective import objective
from jaxalign.core.stats import reduce_tokens
from jaxalign.core.types import Pairs
from jaxalign.data.loader import Loader
from jaxalign.data.store import Examples
from jaxalign.errors import UserError
from jaxalign.hf.tokenizer import load_tokenizer
from jaxalign.objectives import OBJECTIVES
from jaxalign.recipe.read import parse

# Where scores are read


def test_scores_are_read_at_the_last_token_of_every_response():
    items = [make_example([7, 8], [11, 12, 19], [29]), make_example([], [31, 39], [41, 49])]
    batch = batch_of(items, scores=3)
    ends = batch.ids[0, 0].reshape(-1)[batch.source[0, 0, 0]]
    slot, target = batch.slot[0, 0, 0], batch.target[0, 0, 0]
    filled = slot < 12
    found = {int(s): (int(e), int(t)) for s, e, t in zip(slot[filled], ends, target, strict=False)}
    wanted = [(end, k) for end in (19, 29, 39, 49) for k in range(3)]
    assert found == dict(enumerate(wanted))
    assert batch.mask.shape == (1, 1, 2, 2, 3)
    assert batch.mask.all()


def test_padding_has_no_scores():
    items = [*some_examples(layouts.PAIRS, 1), None]
    mask = batch_of(items, scores=2).mask
    assert mask[0, 0].any((-2, -1)).tolist() == [True, False]


def test_a_response_that_begins_with_context_is_scored_at_its_end_too():
    item = make_example([7], [11, 12], [29], context=(2, 0))
    batch = batch_of([item], scores=1)
    assert batch.ids[0, 0].reshape(-1)[batch.source[0, 0, 0, :2]].tolist() == [12, 29]


def test_a_loader_hands_out_batches_of_scores():
    examples = Examples.of(some_examples(layouts.PAIRS, 6))
    loader = Loader(
        examples, batch_size=4, microbatches=2, shards=1, row_length=64, shapes=2, seed=0, scores=2
    )
    assert loader.batch(0).mask.shape == (2, 1, 2, 2, 2)


@pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4))])
def test_microbatches_and_chunks_do_not_change_the_gradient(n):
    assert_same(gradient("bradley_terry", n=n, chunks=2), gradient("bradley_terry"))


def test_a_longer_answer_is_not_a_longer_row_of_scores():
    assert batch_of(some_examples(layouts.PAIRS, B), scores=1).mask.shape[-1] == 1 < T


# Statistics and declarations


def test_the_logit_is_that_of_the_target():
    z = jnp.array([[1.0, -2.0, 3.0], [0.5, 0.0, -0.5]])
    np.testing.assert_array_equal(stats.logit(z, jnp.array([2, 1])), [3.0, 0.0])


def test_a_reward_head_of_one_number_has_a_finite_gradient():
    with jax.debug_nans(True):
        slope = jax.grad(lambda z: stats.logit(z, jnp.array([0])).sum())(jnp.array([[2.0]]))
    np.testing.assert_array_equal(slope, [[1.0]])


def test_sums_of_log_probabilities_are_zero_where_there_are_none():
    y = reduce_tokens({"logit": jnp.ones((2, 3))}, jnp.ones((2, 3), bool))
    np.testing.assert_array_equal(y.logp, [0.0, 0.0])


def declared(fn, **more):
    return objective(Pairs, source="a test", **more)(fn)


def scorer(policy, *, width: int = 3):
    """Documented."""


def test_the_numbers_of_a_head_follow_from_hyper_parameters_and_defaults():
    o = declared(scorer, needs=(stats.logit,), scores=lambda hyper: 2 * hyper["width"])
    assert (o.head({}), o.head({"width": 5})) == (6, 10)
    assert (OBJECTIVES["dpo"].head({}), OBJECTIVES["gpm"].head({"dimensions": 8})) == (0, 8)


def compared(policy, ref):
    """Documented."""


@pytest.mark.parametrize(
    ("fn", "needs"), [(scorer, (stats.logp,)), (compared, (stats.logit,)), (scorer, ())]
)
def test_a_reward_head_reads_its_logits_and_no_reference(fn, needs):
    with pytest.raises(TypeError, match=r"gives stats\.logit alone, and has no reference"):
        declared(fn, needs=needs, scores=lambda hyper: 1)


# Worked values


def worked(name, chosen, rejected, columns=None, **hyper):
    """Loss, metrics, and slopes in the numbers of the head for one pair."""

    def fn(numbers):
        rows = (reduce_tokens({"logit": x[None]}, jnp.ones((1, len(x)), bool)) for x in numbers)
        batch = {k: jnp.array([v]) for k, v in (columns or {}).items()}
        loss, metrics = OBJECTIVES[name].bind(**hyper)(policy=Pairs(*rows), batch=batch)
        return loss.terms[0].total[0], metrics

    given = tuple(jnp.array(x, jnp.float32) for x in (chosen, rejected))
    (value, metrics), slopes = jax.value_and_grad(fn, has_aux=True)(given)
    return float(value), {k: float(v[0]) for k, v in metrics.items()}, slopes


def test_worked_value_of_bradley_terry():
    value, metrics, slopes = worked("bradley_terry", [1.5], [0.5], center=0.01)
    np.testing.assert_allclose(value, math.log1p(math.exp(-1)) + 0.04, rtol=1e-6)
    np.testing.assert_allclose(slopes[0], [-0.2689414213699951 + 0.04], rtol=1e-6)
    np.testing.assert_allclose(slopes[1], [0.2689414213699951 + 0.04], rtol=1e-6)
    wanted = {"chosen": 1.5, "rejected": 0.5, "margins": 1.0, "accuracies": 1.0}
    assert metrics == {f"rewards/{k}": v for k, v in wanted.items()}


def test_worked_value_of_adaptive_margin():
    value, metrics, slopes = worked("adaptive_margin", [1.5], [0.5], {"margin": 3.0})
    np.testing.assert_allclose(value, math.log1p(math.exp(2)), rtol=1e-6)
    np.testing.assert_allclose(slopes[0], [-1 / (1 + math.exp(-2))], rtol=1e-6)
    assert metrics["rewards/margins"] == 1.0


def test_no_margin_is_bradley_terry():
    found = worked("adaptive_margin", [1.5], [0.5], {"margin": 0.0})
    assert found[0] == worked("bradley_terry", [1.5], [0.5])[0]


def test_worked_value_of_gpm():
    chosen, rejected = [3.0, 4.0, 0.0, 0.0], [0.0, 5.0, 12.0, 0.0]
    # v_w = (.6, .8, 0, 0), v_l = (0, 5/13, 12/13, 0): score .6 * 5/13.
    score = 3 / 13
    value, metrics, _ = worked("gpm", chosen, rejected)
    np.testing.assert_allclose(value, math.log1p(math.exp(-10 * score)), rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/margins"], score, rtol=1e-6)
    value, _, _ = worked("gpm", chosen, rejected, loss="regression")
    np.testing.assert_allclose(value, (10 * score - 10) ** 2 / 2, rtol=1e-5)
    value, _, _ = worked("gpm", chosen, rejected, normalize=False, tau=5.0)
    np.testing.assert_allclose(value, math.log1p(math.exp(-3.0)), rtol=1e-5)


def test_gpm_holds_a_cycle_of_preferences():
    third = 2 * math.pi / 3
    a, b, c = ([math.cos(k * third), math.sin(k * third)] for k in range(3))
    beats = [worked("gpm", x, y, dimensions=2)[1] for x, y in ((a, b), (b, c), (c, a))]
    assert [m["rewards/accuracies"] for m in beats] == [1.0, 1.0, 1.0]
    back = worked("gpm", b, a, dimensions=2)[1]
    np.testing.assert_allclose(back["rewards/margins"], -beats[0]["rewards/margins"], rtol=1e-6)


def test_gpm_of_a_vector_of_zeros_is_finite():
    value, _, slopes = worked("gpm", [0.0] * 4, [0.0] * 4)
    assert value == pytest.approx(math.log(2))
    assert all(np.isfinite(s).all() for s in slopes)


# Runs

SCORES = {"bradley_terry": 1, "gpm": 4}


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """`finished(name)` is the folder of a run with held-out data, and its recipe's file."""
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            held_out = {f"stages__{name}__data__eval_path": f"{inputs}/held_out.jsonl"}
            steps = {f"stages__{name}__steps": 12}
            values = h.values(inputs, folder / "run", name, **held_out, **steps)
            h.run(parse(values), h.one_device())
            known[name] = folder / "run", h.write_recipe(folder / "recipe.yaml", values)
        return known[name]

    return get


@pytest.mark.parametrize("name", SCORES)
def test_a_recipe_trains_a_reward_model(finished, name):
    folder, _ = finished(name)
    lines = h.metrics(folder / name)
    trained = [line for line in lines if "loss" in line]
    accuracies = [line["rewards/accuracies"] for line in trained]
    assert np.mean(accuracies[-3:]) > max(np.mean(accuracies[:3]), 0.9)
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert lines[-1]["eval/rewards/accuracies"] > 0.9


def in_transformers(folder, pairs):
    """[pairs, 2, scores] of an export, as a reader would get them; a batch at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = [
        p["prompt"] + p[k] + tokenizer.eos_token for p in pairs for k in ("chosen", "rejected")
    ]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    inputs = {k: encoded[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model(**inputs).logits.numpy().reshape(len(pairs), 2, -1)


def test_transformers_gives_the_rewards_of_the_evaluation(finished):
    folder, _ = finished("bradley_terry")
    pairs = [h.pair(i) for i in range(h.TRAIN, h.TRAIN + h.HELD_OUT)]
    rewards = in_transformers(folder / "bradley_terry/model", pairs)[..., 0].astype(np.float64)
    last = h.metrics(folder / "bradley_terry")[-1]
    means = rewards.mean(0)
    np.testing.assert_allclose(means[0], last["eval/rewards/chosen"], rtol=1e-5)
    np.testing.assert_allclose(means[1], last["eval/rewards/rejected"], rtol=1e-5)
    accuracy = (rewards[:, 0] > rewards[:, 1]).mean()
    np.testing.assert_allclose(accuracy, last["eval/rewards/accuracies"])


def test_transformers_gives_the_vectors_of_gpm(finished):
    folder, _ = finished("gpm")
    pairs = [h.pair(i) for i in range(h.TRAIN, h.TRAIN + h.HELD_OUT)]
    vectors = in_transformers(folder / "gpm/model", pairs)
    assert vectors.shape == (h.HELD_OUT, 2, 4)
    win, lose = np.moveaxis(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), 1, 0)
    score = (win[:, 0::2] * lose[:, 1::2] - win[:, 1::2] * lose[:, 0::2]).sum(-1)
    last = h.metrics(folder / "gpm")[-1]
    np.testing.assert_allclose(score.mean(), last["eval/rewards/margins"], rtol=1e-4)


def test_evaluation_gives_the_accuracy_of_rewards(finished, jaxalign_command):
    folder, recipe = finished("bradley_terry")
    code, out, err = jaxalign_command("evaluate", recipe)
    assert code == 0, err
    last = h.metrics(folder / "bradley_terry")[-1]
    (line,) = (x for x in out.splitlines() if x.startswith("rewards/accuracies"))
    np.testing.assert_allclose(float(line.split()[1]), last["eval/rewards/accuracies"], rtol=1e-5)
    assert "logps" not in out


def test_a_reward_model_trains_on(finished, inputs, tmp_path):
    folder, _ = finished("bradley_terry")
    changes = {
        "model__path": str(folder / "bradley_terry/model"),
        "stages__bradley_terry__steps": 1,
    }
    h.run(h.recipe(inputs, tmp_path / "run", "bradley_terry", **changes), h.one_device())
    before = h.metrics(folder / "bradley_terry")
    assert h.metrics(tmp_path / "run/bradley_terry")[0]["loss"] < before[0]["loss"]


@pytest.mark.slow
def test_the_seed_of_the_run_draws_the_head(inputs, tmp_path):
    losses = []
    for i, seed in enumerate((0, 0, 1)):
        changes = {"run__seed": seed, "stages__bradley_terry__steps": 1}
        changes["stages__bradley_terry__batch_size"] = h.TRAIN
        folder = tmp_path / str(i)
        h.run(h.recipe(inputs, folder, "bradley_terry", **changes), h.one_device())
        losses.append(h.metrics(folder / "bradley_terry")[0]["loss"])
    assert losses[0] == losses[1] != losses[2]


def test_a_tokenizer_that_pads_with_eos_is_given_another_pad_token(inputs, tmp_path):
    model = h.copy_folder(inputs / "model", tmp_path / "model")
    file = model / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"pad_token": config["eos_token"]}))
    changes = {"model__path": str(model), "stages__bradley_terry__steps": 1}
    h.run(h.recipe(inputs, tmp_path / "run", "bradley_terry", **changes), h.one_device())
    out = tmp_path / "run/bradley_terry/model"
    tokenizer = load_tokenizer(out)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == tokenizer.pad_token_id


# What does not go together

APART = {
    "adapters": ({"lora": {}}, r"lora: bradley_terry trains a reward head, which adapters"),
    "quantized": ({"lora": {"quantize": "int8"}}, r"lora: bradley_terry trains a reward head"),
    "reference": (
        {"reference": {"mode": "live"}},
        r"reference: bradley_terry gives scores",
    ),
    "diagnostics": (
        {"diagnostics": ["ranking"], "data__eval_path": "x.jsonl"},
        r"'ranking' reads log-probabilities, and 'bradley_terry' gives scores; leave it out",
    ),
}


@pytest.mark.parametrize("changes, message", APART.values(), ids=APART)
def test_what_a_reward_head_cannot_have_is_refused(inputs, tmp_path, changes, message):
    changes = {f"stages__bradley_terry__{k}": v for k, v in changes.items()}
    with pytest.raises(UserError, match=message):
        h.recipe(inputs, tmp_path / "run", "bradley_terry", **changes)


@pytest.mark.parametrize(
    ("stages", "message"),
    [(("bradley_terry", "dpo"), r"stages\.dpo\.objective: dpo reads a causal language model, and"),
     (("bradley_terry", "gpm"), "gpm reads 4 scores, and the previous stage .* with 1 scores;"),
     (("sft", "gpm", "sft2"), r"stages\.sft2\.objective: sft reads a causal")],
)  # fmt: skip
def test_stages_that_read_another_head_are_refused(inputs, tmp_path, stages, message):
    renamed = {"stages__sft2__objective": {"name": "sft"}} if "sft2" in stages else {}
    with pytest.raises(UserError, match=message):
        h.recipe(inputs, tmp_path / "run", *stages, **renamed)


def test_a_reward_model_may_follow_a_language_model(inputs, tmp_path):
    assert h.recipe(inputs, tmp_path / "run", "sft", "gpm").stages


def test_an_odd_number_of_dimensions_is_refused(inputs, tmp_path):
    with pytest.raises(UserError, match=r"dimensions: .*multiple of 2"):
        h.recipe(inputs, tmp_path / "run", "gpm", stages__gpm__objective__dimensions=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [("dpo", r"a reward model, whose head gives scores \(1\) and no next tokens"),
     ("gpm", "gives 1 scores, and the objective reads 4")],
)  # fmt: skip
def test_a_stage_that_starts_from_the_wrong_head_is_refused(
    finished, inputs, refused, tmp_path, name, message
):
    path = str(finished("bradley_terry")[0] / "bradley_terry/model")
    values = h.values(inputs, tmp_path / "run", name, model__path=path)
    error = refused("train", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert re.search(message, error)


def test_a_reference_that_is_a_reward_model_is_refused(finished, inputs, refused, tmp_path):
    path = str(finished("bradley_terry")[0] / "bradley_terry/model")
    values = h.values(inputs, tmp_path / "run", "dpo", stages__dpo__reference={"path": path})
    error = refused("train", h.write_recipe(tmp_path / "recipe.yaml", values))
    assert "a reward model, whose head gives scores (1)" in error


def test_a_reward_model_answers_nothing(finished, refused):
    path = finished("bradley_terry")[0] / "bradley_terry/model"
    error = refused("generate", path, "--prompt", "1+1=")
    assert "generate: a reward model gives scores and no next tokens" in error


def test_scores_have_no_reference_to_be_evaluated_against(finished, inputs, refused):
    _, recipe = finished("bradley_terry")
    error = refused("evaluate", recipe, "--against", inputs / "model")
    assert "against: 'bradley_terry' trains a reward head and has no reference" in error


def test_a_reward_model_has_no_reference_pass(finished, refused):
    assert "reads no cached reference" in refused("reference", finished("bradley_terry")[1])
