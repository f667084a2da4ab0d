"""Published checkpoints: their config.json is read, and has as many parameters as published."""

import math
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml
from lib.steps import one_device

from jaxalign.models.decoder import build
from jaxalign.models.families import FAMILIES, read_config

PUBLISHED: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
)
KNOWN = {
    name: entry for name, entry in PUBLISHED.items() if entry["config"]["model_type"] in FAMILIES
}


def as_published(ours: int, published: int | str) -> int | str:
    """Our number, with the unit and the digits of the published one: 35B, 6.95B, 494032768."""
    if isinstance(published, int):
        return ours
    unit = {"M": 1e6, "B": 1e9}[published[-1]]
    digits = len(published[:-1].partition(".")[2])
    return f"{ours / unit:.{digits}f}{published[-1]}"


def size(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", KNOWN)
def test_a_published_checkpoint_has_the_published_number_of_parameters(name):
    entry = KNOWN[name]
    parameters = build(read_config(entry["config"], name), one_device()).abstract
    besides = sum(entry.get("besides", {}).values())
    ours = {
        "total": size(parameters) + besides,
        "body": size({k: p for k, p in parameters.items() if k not in ("embed", "head")}),
    }
    counts = {key: entry[key] for key in ours if key in entry}
    assert counts
    assert {key: as_published(ours[key], counts[key]) for key in counts} == counts


def test_at_least_forty_published_checkpoints_are_counted():
    assert len(KNOWN) >= 40


def test_every_family_has_a_published_checkpoint():
    assert {entry["config"]["model_type"] for entry in KNOWN.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_names_its_sources(name):
    optional = {"total", "body", "besides", "note"}
    assert PUBLISHED[name].keys() - optional == {"counts", "shape", "config"}
