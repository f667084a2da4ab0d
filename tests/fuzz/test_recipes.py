"""Damaged recipes: read, or refused in words."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lib import runs
from lib.damage import YAML_WORDS, odd_bytes, odd_text, odd_value
from lib.fuzz import fuzz, limited

from jaxalign.recipe.read import dump, parse, read

pytestmark = pytest.mark.slow

STAGES = {
    "sft": {"data": [{"path": "a.jsonl", "share": 0.5}, {"path": "b.jsonl", "share": 0.5}]},
    "slpo": {"objective": {"name": "slpo", "alpha": 0.8}, "reference": {"mode": "live"}},
    "dpo": {"lora": {"rank": 4, "targets": ["q", "v"]}, "steps": None, "epochs": 0.5},
    "bco": {"data": {"path": "c.csv", "columns": {"prompt": "question"}, "roles": {"bot": "user"}}},
}


def made(inputs, *names):
    values = runs.values(inputs, inputs / "run", *names)
    for name in names:
        values["stages"][name] |= STAGES[name]
    return values


@st.composite
def recipes(draw, inputs):
    names = draw(st.lists(st.sampled_from(list(STAGES)), min_size=1, max_size=2, unique=True))
    values = made(inputs, *names)
    kind = draw(st.sampled_from(("value", "value", "text", "bytes")))
    if kind == "value":
        text = yaml.safe_dump(draw(odd_value(values)), sort_keys=False, allow_unicode=True)
        return text.encode("utf-8", "surrogatepass")
    text = yaml.safe_dump(values, sort_keys=False)
    if kind == "text":
        return draw(odd_text(text, YAML_WORDS)).encode()
    return draw(odd_bytes(text.encode()))


def test_a_damaged_recipe_is_read_or_refused(inputs, tmp_path_factory):
    file = tmp_path_factory.mktemp("recipes") / "recipe.yaml"

    @fuzz(0.25)
    @given(recipes(inputs))
    def check(data):
        file.write_bytes(data)
        with limited() as refused:
            recipe = read(str(file), [])
        if not refused:
            # What was read is what would be read again: nothing was misunderstood on the way.
            again = parse(yaml.safe_load(dump(recipe)))
            assert again == recipe
            for stage in recipe.stages.values():
                assert stage.batch_size > 0
                assert 0 <= stage.optimizer.learning_rate < float("inf")

    check()
