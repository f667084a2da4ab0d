"""Mixtures of data sets in a recipe, on the command line and as overrides."""

from __future__ import annotations

import pytest
import yaml
from lib.recipes import with_stage

import jaxalign
from jaxalign.errors import UserError
from jaxalign.recipe.overrides import given_recipe
from jaxalign.recipe.read import dump, parse, read, resolved
from jaxalign.settings import Data, Source

MIXTURE = [{"path": "a", "share": 0.7}, {"path": "b", "share": 0.3, "columns": {"prompt": "q"}}]


def mixed(*sources, **data):
    return with_stage(data={"mixture": list(sources)} | data)


@pytest.fixture
def recipe_file(tmp_path):
    def write(values):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


def data(recipe):
    return recipe.stages["dpo"].data


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_stage(data={}), r"^at: stages.dpo.data.path: missing; give a path, or data.mixture$"),
        (
            mixed({"path": "a"}, path="p"),
            r"^at: stages.dpo.data.path: give a path or data.mixture, not both \(got 'p'\)$",
        ),
        (mixed(), r"^at: stages.dpo.data.mixture: give at least one source, such.*\(got \[\]\)$"),
        (
            mixed({"path": "a"}, {"path": "b", "share": 0.1, "rows": 3}),
            r"^at: stages.dpo.data.mixture.1.rows: give a share or rows, not both \(got 3\)$",
        ),
        (
            mixed({"path": "a", "share": 0.5}, {"path": "b", "share": 0.4}),
            r"^at: stages.dpo.data.mixture: the shares sum to 0.9; where every source has one, .*",
        ),
        (
            mixed({"path": "a", "share": 0.5}, {"path": "b", "share": 0.5}, {"path": "c"}),
            r"^at: stages.dpo.data.mixture: the shares sum to 1; next to sources without .*",
        ),
        (
            with_stage(data=[{"path": "a"}, {"path": "b", "share": 0}]),
            r"^at: stages.dpo.data.mixture.1.share: Input should be greater than 0 \(got 0\)$",
        ),
        (
            with_stage(data=[{"path": "a", "row": 2}]),
            r"^at: stages.dpo.data.mixture.0.row: unknown; did you mean 'rows'\? known: .*got 2\)$",
        ),
        (with_stage(data=[{"rows": 2}]), r"^at: stages.dpo.data.mixture.0.path: missing; it has"),
        (with_stage(data=["a"]), r"^at: stages.dpo.data.mixture.0: .* be a mapping \(got 'a'\)$"),
        (
            with_stage(data=[{"path": "{world}/a.jsonl"}]),
            r"^at: stages.dpo.data.mixture: only a recipe with a `world` has that folder",
        ),
    ],
)
def test_a_wrong_mixture_is_named_with_its_place(values, message):
    with pytest.raises(UserError, match=message):
        parse(values, "at")


def test_a_list_is_a_mixture():
    short, full = with_stage(data=MIXTURE), mixed(*MIXTURE)
    assert parse(short) == parse(full)


def test_shares_may_sum_to_one_but_for_rounding():
    thirds = parse(mixed(*({"path": p, "share": 0.3333333} for p in "abc")))
    assert len(data(thirds).sources) == 3


def test_a_mixture_reads_back_from_its_dump(recipe_file):
    recipe = parse(with_stage(data=MIXTURE))
    assert read(recipe_file(yaml.safe_load(dump(recipe))), []) == recipe
    assert parse(resolved(recipe)) == recipe


def test_a_source_is_read_with_the_settings_of_the_data_but_its_own():
    settings = Data(
        mixture=(Source(path="a"), Source(path="b", split="test", limit=2, columns={})),
        limit=9,
        columns={"prompt": "q"},
        max_length=8,
    )
    first, second = map(settings.of, settings.sources)
    assert first == Data(path="a", limit=9, columns={"prompt": "q"}, max_length=8)
    assert second == Data(path="b", split="test", limit=2, max_length=8)


def test_a_path_alone_is_one_source():
    settings = Data(path="a", limit=3)
    assert [settings.of(source) for source in settings.sources] == [settings]


def test_flags_change_a_source_of_a_mixture(recipe_file):
    flags = ["--stages.dpo.data.mixture.0.share", "0.5", "--stages.dpo.data.mixture.1.share", "0.5"]
    recipe = read(recipe_file(with_stage(data=MIXTURE)), flags)
    assert [source.share for source in data(recipe).sources] == [0.5, 0.5]


def test_a_wrong_flag_of_a_source_is_named_as_it_was_typed(recipe_file):
    flags = ["--stages.dpo.data.mixture.0.share", "1.5"]
    with pytest.raises(UserError, match=r"^--stages.dpo.data.mixture.0.share: .*\(got 1.5\)$"):
        read(recipe_file(with_stage(data=MIXTURE)), flags)


@pytest.mark.parametrize("given", [MIXTURE, {"path": "p"}], ids=["mixture", "path"])
def test_the_help_of_a_recipe_lists_the_flags_of_its_data(recipe_file, given, capsys):
    with pytest.raises(SystemExit) as stop:
        read(recipe_file(with_stage(data=given)), ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--stages.dpo.data.columns" in shown
    assert ("--stages.dpo.data.mixture.1.rows" in shown) == (given is MIXTURE)


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({}, ["--stages.dpo.data.columns", "prompt", "question"]),
        ({"columns": {"prompt": "q"}}, ["--stages.dpo.data.columns.prompt", "question"]),
    ],
    ids=["new", "changed"],
)
def test_a_flag_names_a_column(recipe_file, given, flags):
    recipe = read(recipe_file(with_stage(data={"path": "p"} | given)), flags)
    assert data(recipe).columns == {"prompt": "question"}


def test_a_flag_names_a_column_of_a_source(recipe_file):
    flags = ["--stages.dpo.data.mixture.0.columns", "prompt", "question"]
    recipe = read(recipe_file(with_stage(data=MIXTURE)), flags)
    assert data(recipe).sources[0].columns == {"prompt": "question"}


def test_a_flag_changes_a_value_of_the_chat_template(recipe_file):
    values = with_stage(data={"path": "p", "chat_template_kwargs": {"enable_thinking": False}})
    flag = "--stages.dpo.data.chat-template-kwargs.enable-thinking"
    recipe = read(recipe_file(values), [flag])
    assert data(recipe).chat_template_kwargs == {"enable_thinking": True}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("0.share", r"^overrides: stages.dpo.data.mixture.0.share: .* equal to 1 \(got 2\)$"),
        ("2.share", r"^overrides: stages.dpo.data.mixture.2.share: no '2'; known: 0, 1$"),
    ],
)
def test_an_override_reaches_a_source_of_a_mixture(path, message):
    with pytest.raises(UserError, match=message):
        jaxalign.train(with_stage(data=MIXTURE), {f"stages.dpo.data.mixture.{path}": 2})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("columns", {"prompt": "question"}),
        ("roles", {"bot": "assistant"}),
        ("chat_template_kwargs", {"enable_thinking": False}),
    ],
)
def test_an_override_gives_a_whole_mapping(path, value):
    recipe = given_recipe(with_stage(data={"path": "p"}), {f"stages.dpo.data.{path}": value})
    assert getattr(data(recipe), path) == value


def test_an_override_may_turn_a_path_into_a_mixture():
    overrides = {"stages.dpo.data": MIXTURE}
    assert given_recipe(with_stage(data={"path": "p"}), overrides) == parse(
        with_stage(data=MIXTURE)
    )
