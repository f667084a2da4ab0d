"""The index of model families, and the tables of the tests that follow it."""

from pathlib import Path

import pytest
from lib.checkpoints import EVERY_CONFIG
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

import jaxalign
from jaxalign.models.families import FAMILIES

PACKAGE = Path(jaxalign.__file__).parent
GENERAL = [
    path
    for folder in ("models", "hf", "collect", "update", "run")
    for path in sorted((PACKAGE / folder).rglob("*.py"))
    if "families" not in path.parts
]


def test_the_parity_tables_have_every_family():
    """Logits, bits of load and save, adapters, reward heads and sampling run over this list."""
    assert {raw["model_type"] for raw in EVERY_CONFIG.values()} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_classifier_of_a_family_is_that_of_transformers(family):
    """Older releases lack some."""
    theirs = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(family.model_type)
    assert theirs in (None, family.classifier)


@pytest.mark.parametrize("path", GENERAL, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_general_code_names_no_family(path):
    text = path.read_text()
    assert [name for name in FAMILIES if f'"{name}"' in text] == []
