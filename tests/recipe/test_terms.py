"""Recipes with a stage of several objectives."""

import dataclasses

import pytest
from lib.recipes import minimal

from jaxalign.core.objective import objective
from jaxalign.core.types import Demos, per_example
from jaxalign.errors import UserError
from jaxalign.recipe.overrides import given_recipe
from jaxalign.recipe.read import dump, parse, read, recorded, resolved
from jaxalign.settings import Combined

OWN = '''
from jaxalign import objective
from jaxalign.core.types import Demos, per_example


@objective(Demos, source="mine")
def mine(policy: Demos, *, scale: float = 2.0):
    """Scaled likelihood."""
    return per_example(-scale * policy.response.logp), {}
'''


@objective(Demos, source="here")
def here(policy: Demos, *, scale: float = 2.0):
    """Scaled likelihood."""
    return per_example(-scale * policy.response.logp), {}


def term(name, path="a.jsonl", **more):
    return {"objective": {"name": name}, "data": {"path": path}} | more


def with_terms(terms=None, **stage):
    terms = {"dpo": term("dpo"), "retain": term("sft", weight=0.5)} if terms is None else terms
    return minimal(stages={"mix": {"terms": terms} | stage})


CASES = [
    (
        with_terms(objective={"name": "dpo"}),
        r"^at: stages.mix.objective: a stage with `terms` has none; give objective in each term$",
    ),
    (
        with_terms(batch_size=8),
        r"^at: stages.mix.batch_size: a stage with `terms` has none; give batch_size in each term$",
    ),
    (
        minimal(stages={"mix": {"steps": 3, "data": {"path": "a.jsonl"}}}),
        r"^at: stages.mix.objective: missing; give objective and data, or `terms`, or make it a "
        r"stage of sample, score, pair or of rounds",
    ),
    (with_terms({}), r"^at: stages.mix.terms: give at least one, such as dpo: "),
    (with_terms([term("dpo")]), r"at: stages.mix.terms: give at least one, such as dpo: "),
    (
        with_terms({"eval": term("dpo")}),
        r"^at: stages.mix.terms.eval: the metrics of a stage have something of this name; ",
    ),
    (
        with_terms({"a/b": term("dpo")}),
        r"^at: stages.mix.terms.a/b: the name is a folder and a flag; use a-z, 0-9, - and _$",
    ),
    (
        with_terms({"a-b": term("dpo"), "a_b": term("dpo")}),
        r"^at: stages.mix.terms.a_b: flags do not distinguish - and _; choose another name$",
    ),
    (
        with_terms({"dpo": term("dpoo")}),
        r"^at: stages.mix.terms.dpo.objective.name: no objective 'dpoo'; did you mean 'dpo'",
    ),
    (
        with_terms({"dpo": term("dpo", weight=float("inf"))}),
        r"^at: stages.mix.terms.dpo.weight: Input should be a finite number \(got inf\)$",
    ),
    (
        with_terms({"dpo": term("dpo", wieght=1)}),
        r"^at: stages.mix.terms.dpo.wieght: unknown; did you mean 'weight'",
    ),
    (
        with_terms({"dpo": term("dpo", router_balance=1.0)}),
        r"^at: stages.mix.terms.dpo.router_balance: unknown; ",
    ),
    (
        with_terms({"dpo": term("dpo"), "kl": term("tdpo1")}),
        r"^at: stages.mix.terms.kl.reference.mode: tdpo1 reads the reference's logits",
    ),
    (
        with_terms({"dpo": term("dpo"), "kl": {"objective": {"name": "sft"}, "data": {}}}),
        r"^at: stages.mix.terms.kl.data.path: missing; give a path, or data.mixture$",
    ),
    (
        with_terms(microbatches=5),
        r"at: stages.mix.terms.retain.batch_size: wanted a multiple of microbatches, 5 \(got 64\)$",
    ),
    (
        with_terms({"dpo": term("dpo", diagnostics=["ranking"])}),
        r"^at: stages.mix.terms.dpo.diagnostics: diagnostics need held-out data",
    ),
    (
        with_terms(steps=2, optimizer={"warmup": 3}),
        r"^at: stages.mix.optimizer.warmup: longer than the stage of 2 steps",
    ),
    (
        with_terms(
            {"dpo": term("dpo"), "retain": term("sft")}
            | {"retain": {"objective": {"name": "sft"}, "data": {"path": "a", "streaming": True}}}
        ),
        r"^at: stages.mix.steps: missing; data.streaming has no count of examples",
    ),
    (
        with_terms({"dpo": term("dpo"), "score": term("bradley_terry")}),
        r"^at: stages.mix.terms.score.objective: bradley_terry reads 1 scores, and the first term "
        r"has another head; train it in a separate recipe$",
    ),
    (
        minimal(
            stages={
                "rm": term("bradley_terry"),
                "mix": {"terms": {"dpo": term("dpo"), "retain": term("sft")}},
            }
        ),
        r"at: stages.mix.terms.dpo.objective: dpo reads a causal language model, and the previous",
    ),
    (
        with_terms(
            {
                "dpo": term("dpo"),
                "retain": {
                    "objective": {"name": "sft"},
                    "data": {"path": "a.jsonl", "chat_template": "b.jinja"},
                },
            }
        ),
        r"^at: stages.mix.terms.retain.data.chat_template: the terms of a stage have one chat "
        r"template, which is exported with the model; wanted None \(got 'b.jinja'\)$",
    ),
]


@pytest.mark.parametrize(("values", "message"), CASES)
def test_a_wrong_term_is_named_with_its_place(values, message):
    with pytest.raises(UserError, match=message):
        parse(values, "at")


def test_a_term_has_the_settings_of_its_stage_and_its_own():
    recipe = parse(with_terms(steps=7, lora={"rank": 2}))
    stage = recipe.stages["mix"]
    assert isinstance(stage, Combined)
    assert {name: one.weight for name, one in stage.terms.items()} == {"dpo": 1.0, "retain": 0.5}
    goals = stage.goals()
    assert [goal.steps for goal in goals.values()] == [7, 7]
    assert [goal.objective.name for goal in goals.values()] == ["dpo", "sft"]
    assert goals["retain"].lora == stage.lora


def test_recipes_with_the_same_terms_are_equal():
    assert parse(with_terms()) == parse(with_terms())
    assert parse(with_terms()) != parse(with_terms(steps=2))


def test_a_written_recipe_reads_back(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(parse(with_terms())))
    assert read(str(path), []) == parse(with_terms())
    assert recorded(str(path))["stages"]["mix"]["terms"]["retain"]["weight"] == 0.5


def test_a_flag_changes_a_term(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(parse(with_terms())))
    flags = [
        "--stages.mix.terms.dpo.objective.beta",
        "0.3",
        "--stages.mix.terms.retain.weight",
        "2",
    ]
    stage = read(str(path), flags).stages["mix"]
    assert isinstance(stage, Combined)
    assert stage.terms["dpo"].objective.beta == 0.3
    assert stage.terms["retain"].weight == 2.0


def test_a_list_of_data_sets_is_the_mixture_of_a_term():
    sources = [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    recipe = parse(with_terms({"dpo": {"objective": {"name": "dpo"}, "data": sources}}))
    (goal,) = recipe.stages["mix"].goals().values()
    assert [source.path for source in goal.data.sources] == ["a.jsonl", "b.jsonl"]


def test_a_term_has_an_objective_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    mine = term("sft") | {"objective": {"file": "mine.py", "name": "mine", "scale": 3.0}}
    recipe = parse(with_terms({"dpo": term("dpo"), "own": mine}), folder=tmp_path)
    own = recipe.stages["mix"].goals()["own"].objective
    assert (own.name, own.scale) == ("mine", 3.0)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe))
    assert recorded(str(path))["stages"]["mix"]["terms"]["own"]["objective"]["scale"] == 3.0
    (tmp_path / "mine.py").write_text(OWN + "\n")
    with pytest.raises(UserError, match=r"stages.mix.terms.own.objective: .* has changed"):
        read(str(path), [])


def test_a_term_has_an_objective_of_python_through_overrides():
    given = with_terms({"dpo": term("dpo"), "own": term(here)})
    recipe = given_recipe(given, {"stages.mix.terms.own.weight": 0.25})
    stage = recipe.stages["mix"]
    assert isinstance(stage, Combined)
    assert stage.terms["own"].weight == 0.25
    assert type(stage.terms["own"].objective).OBJECTIVE is here


def test_a_stage_with_one_objective_has_no_setting_of_terms():
    plain = parse(minimal()).stages["dpo"]
    assert "terms" not in {field.name for field in dataclasses.fields(plain)}
    assert plain.goals() == {"": plain}


# In rounds


def in_rounds(terms, **stage):
    """A recipe that trains `sft`, and then twice: sampled answers, and terms that read them."""
    inside = {
        "answers": {"sample": {"prompts": "prompts.jsonl"}},
        "mix": {"terms": terms} | stage,
    }
    return minimal(stages={"sft": term("sft"), "round": {"repeat": 2, "stages": inside}})


def test_the_paths_of_a_term_in_rounds_name_the_stages_of_its_round():
    data = {"path": "x.jsonl", "eval_path": "{answers}"}
    kl = {"objective": {"name": "dpo"}, "data": data, "reference": {"path": "{sft}"}}
    mixture = [{"path": "{answers}"}, {"path": "y.jsonl"}]
    recipe = parse(in_rounds({"kl": kl, "retain": term("sft") | {"data": mixture}}))
    assert list(recipe.training) == ["sft", "round-1/mix", "round-2/mix"]
    for i in (1, 2):
        goals = recipe.stages[f"round-{i}/mix"].goals()
        assert goals["kl"].data.eval_path == f"{{round-{i}/answers}}"
        assert goals["kl"].reference.path == "{sft}"
        paths = [source.path for source in goals["retain"].data.sources]
        assert paths == [f"{{round-{i}/answers}}", "y.jsonl"]
    assert recipe.before("round-2/answers") == "round-1/mix"
    assert recipe.product("round-2/mix") == "r/round-2/mix/model"


def test_the_reference_of_a_term_is_the_model_of_the_round_before():
    given = in_rounds({"kl": term("dpo", reference={"path": "{mix}"})})
    given["stages"] = {"mix": given["stages"]["sft"], "round": given["stages"]["round"]}
    recipe = parse(given)
    paths = [recipe.stages[f"round-{i}/mix"].goals()["kl"].reference.path for i in (1, 2)]
    assert paths == ["{mix}", "{round-1/mix}"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"path": "{answer}"}},
            r"data.path: no earlier stage 'answer'; did you mean 'answers'\?",
        ),
        ({"data": {"path": "{sft}"}}, "data.path: 'sft' trains a model; name a stage that samples"),
        (
            {"reference": {"path": "{answers}"}},
            "reference.path: 'answers' makes data; name a stage that trains a model",
        ),
        ({"objective": {"name": "dpoo"}}, "objective.name: no objective 'dpoo'; did you mean"),
        ({"batch_size": 0}, "batch_size: Input should be greater than 0"),
    ],
)
def test_a_wrong_term_in_rounds_is_named_as_it_is_written(changes, message):
    with pytest.raises(UserError, match=f"^at: stages.round.stages.mix.terms.kl.{message}"):
        parse(in_rounds({"kl": term("dpo") | changes}), "at")


def test_a_later_stage_reads_no_data_of_a_stage_of_terms():
    given = in_rounds({"kl": term("dpo")})
    given["stages"]["last"] = term("sft", "{mix}")
    with pytest.raises(UserError, match=r"^at: stages.last.data.path: 'mix' trains a model; "):
        parse(given, "at")


def test_a_term_in_rounds_has_an_objective_of_python_through_overrides():
    given = in_rounds({"dpo": term("dpo"), "own": term(here)})
    recipe = given_recipe(given, {"stages.round.stages.mix.terms.own.objective.scale": 0.5})
    for i in (1, 2):
        own = recipe.stages[f"round-{i}/mix"].goals()["own"].objective
        assert (type(own).OBJECTIVE, own.scale) == (here, 0.5)


def test_rounds_of_terms_with_an_objective_of_a_file_read_back(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    mine = term("sft") | {"objective": {"file": "mine.py", "name": "mine"}}
    recipe = parse(in_rounds({"dpo": term("dpo"), "own": mine}), folder=tmp_path)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert read(str(tmp_path / "recipe.yaml"), []) == recipe
    assert recorded(str(tmp_path / "recipe.yaml")) == resolved(recipe)


def test_a_stage_that_makes_data_has_no_terms():
    given = minimal(stages={"mix": {"sample": {"prompts": "p"}, "terms": {"dpo": term("dpo")}}})
    with pytest.raises(UserError, match=r"^at: stages.mix.terms: unknown; known: sample"):
        parse(given, "at")
