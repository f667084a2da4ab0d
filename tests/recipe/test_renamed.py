from __future__ import annotations

import pytest
from lib.recipes import with_stage

from jaxalign.errors import UserError
from jaxalign.recipe.read import parse
from jaxalign.recipe.renamed import RENAMED, refuse_renamed


@pytest.mark.parametrize("old, new", RENAMED.items())
def test_a_renamed_setting_of_a_file_is_named_with_its_new_name(old, new):
    section, name = old.split(".")
    message = rf"^at: stages\.dpo\.{old}: renamed; write stages\.dpo\.{new} \(got 1\)$"
    with pytest.raises(UserError, match=message):
        parse(with_stage(**{section: {name: 1}}), "at")


@pytest.mark.parametrize("old, new", RENAMED.items())
@pytest.mark.parametrize("value", ["=1", ""])
def test_a_renamed_flag_is_named_with_its_new_name(old, new, value):
    old, new = (f"--stages.sft.{name.replace('_', '-')}" for name in (old, new))
    with pytest.raises(UserError, match=f"^{old}: renamed; write {new}$"):
        refuse_renamed([old + value])


def test_every_new_name_of_a_renamed_setting_is_a_setting():
    for new in RENAMED.values():
        section, name = new.split(".")
        assert hasattr(parse(with_stage(**{section: {}})).stages["dpo"].lora, name)


@pytest.mark.parametrize(
    "objective, old, new",
    [("gpm", "normalise", "normalize"), ("ld_dpo", "desensitise", "desensitize")],
)
def test_an_old_hyper_parameter_is_refused_with_the_new_name(objective, old, new):
    given = {"name": objective, old: True}
    with pytest.raises(UserError, match=rf"objective\.{old}: unknown; did you mean '{new}'"):
        parse(with_stage(objective=given), "at")
