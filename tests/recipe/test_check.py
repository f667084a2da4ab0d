from __future__ import annotations

import pytest
from lib.recipes import minimal, with_stage

from jaxalign.errors import UserError
from jaxalign.recipe.read import parse


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (minimal(run={"dir": ""}), r"^at: run.dir: String should have at least 1 character"),
        (minimal(run={}), r"^at: run.dir: missing; it has no default$"),
        (minimal(modle=1), r"^at: modle: unknown; did you mean 'model'\? known: .* \(got 1\)$"),
        (minimal(mesh=[1]), r"^at: mesh: Input should be a mapping \(got \[1\]\)$"),
        (minimal(stages={}), r"^at: stages: give at least one, such as sft: "),
        (minimal(stages=None), r"^at: stages: give at least one, such as sft: "),
        (minimal(stages=["dpo"]), r"^at: stages: Input should be a mapping \(got \['dpo'\]\)$"),
        (minimal(stages={"dpo": 3}), r"^at: stages.dpo: Input should be a mapping \(got 3\)$"),
        (
            minimal(stages={"My Stage": minimal()["stages"]["dpo"]}),
            r"^at: stages.My Stage: the name is a folder and a flag; use a-z, 0-9, - and _$",
        ),
        (
            minimal(stages={"lock": minimal()["stages"]["dpo"]}),
            r"^at: stages.lock: the folder of a run has something of this name; choose another$",
        ),
        (
            minimal(stages=dict.fromkeys(("a-b", "a_b"), minimal()["stages"]["dpo"])),
            r"^at: stages.a_b: flags do not distinguish - and _; choose another name$",
        ),
        (
            with_stage(objective={"name": "dpoo"}),
            r"name: no objective 'dpoo'; did you mean 'dpo'\? known: .*aot, .*wpo; for",
        ),
        (
            with_stage(objective={"beta": 1}),
            r"^at: stages.dpo.objective.name: missing; known: .*dpo.*sft",
        ),
        (
            with_stage(objective="dpo"),
            r"^at: stages.dpo.objective: give a mapping with a name \(got 'dpo'\)$",
        ),
        (
            with_stage(objective={"name": "dpo", "betta": 0.1}),
            r"^at: stages.dpo.objective.betta: unknown; did you mean 'beta'\? known: .*got 0.1\)$",
        ),
        (
            with_stage(objective={"name": "dpo", "beta": 0}),
            r"^at: stages.dpo.objective.beta: Input should be greater than 0 \(got 0\)$",
        ),
        (
            with_stage(optimizer={"learning_rate": "fast"}),
            r"stages.dpo.optimizer.learning_rate: Input should be a valid number.*\(got 'fast'\)$",
        ),
        (with_stage(steps=True), r"^at: stages.dpo.steps: Input should be a number \(got True\)$"),
        (
            with_stage(optimizer={"learning_rate": False}),
            r"^at: stages.dpo.optimizer.learning_rate: Input should be a number \(got False\)$",
        ),
        (
            with_stage(data=[{"path": "p", "share": True}]),
            r"^at: stages.dpo.data.mixture.0.share: Input should be a number \(got True\)$",
        ),
        (with_stage(epochs=float("nan")), r"stages.dpo.epochs: Input should be a finite number"),
        (
            with_stage(data={"path": "{world}/pairs.jsonl"}),
            r"^at: stages.dpo.data.path: only a recipe with a `world` has that folder \(got '{w",
        ),
        (
            with_stage(data={"path": "p", "max_length": 256, "max_prompt": 512}),
            r"^at: stages.dpo.data.max_prompt: leaves no room .* max_length 256; .*\(got 512\)$",
        ),
        (
            with_stage(batch_size=12, microbatches=8),
            r"^at: stages.dpo.batch_size: wanted a multiple of microbatches, 8 \(got 12\)$",
        ),
        (
            with_stage(steps=5, optimizer={"warmup": 6}),
            r"^at: stages.dpo.optimizer.warmup: longer than the stage of 5 steps; .*\(got 6\)$",
        ),
        (
            with_stage(lora={}, reference={"mode": "live", "path": "m"}),
            r"^at: stages.dpo.reference.path: the live reference of adapters is .* \(got 'm'\)$",
        ),
        (
            with_stage(objective={"name": "slpo", "form": "joint"}),
            r"^at: stages.dpo.objective.temperature: form 'joint' has no .* \(got 'length'\)$",
        ),
        (
            with_stage(objective={"name": "slpo", "mass_shift": "paper", "alpha": 0.5}),
            r"^at: stages.dpo.objective.alpha: with mass_shift 'paper' .* over 0.5, .*\(got 0.5\)$",
        ),
        (
            with_stage(keep_best={}),
            r"^at: stages.dpo.keep_best.metric: missing; it has no default$",
        ),
        (
            with_stage(keep_best={"metric": "loss"}, data={"path": "p", "eval_path": "e"}),
            r"^at: stages.dpo.eval_every: keep_best compares evaluations; .*\(got 0\)$",
        ),
        (
            with_stage(keep_best={"metric": "loss"}, eval_every=1),
            r"^at: stages.dpo.keep_best: needs held-out metrics; give data.eval_path$",
        ),
        (
            with_stage(eval_samples={}),
            r"^at: stages.dpo.eval_samples: needs prompts; give eval_samples.prompts or held-out",
        ),
        (
            with_stage(eval_samples={"prompts": "{asked}/x.jsonl"}),
            r"^at: stages.dpo.eval_samples.prompts: no earlier stage 'asked'; ",
        ),
        (
            with_stage(objective={"name": "bradley_terry"}, eval_samples={"prompts": "p"}),
            r"^at: stages.dpo.eval_samples: bradley_terry trains a reward head, .*; leave it out$",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(values, message):
    with pytest.raises(UserError, match=message):
        parse(values, "at")


def test_every_complaint_comes_at_once():
    values = with_stage(objective={"name": "dpoo"}, batch_size=0, keeep=1) | {"run": {"dir": 1}}
    with pytest.raises(UserError) as caught:
        parse(values, "at")
    places = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert sorted(places) == [
        "run.dir",
        "stages.dpo.batch_size",
        "stages.dpo.keeep",
        "stages.dpo.objective.name",
    ]


def test_the_branches_of_a_union_make_one_complaint():
    values = with_stage(objective={"name": "slpo", "temperature": -1})
    message = r"^at: \S*temperature: Input should be 'length' or greater than 0 \(got -1\)$"
    with pytest.raises(UserError, match=message):
        parse(values, "at")
