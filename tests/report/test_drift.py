"""Warnings about own answers that leave the held-out data behind."""

from __future__ import annotations

import io
import json
import math

import pytest
import yaml
from lib import folders
from rich.console import Console

from jaxalign.report import terminal, write_report
from jaxalign.report.drift import drift


def lines(*evaluations):
    """Lines of a metrics.jsonl with evaluations every 20 updates."""
    return [
        {"step": 20 * i} | {f"eval/{name.replace('__', '/')}": v for name, v in own.items()}
        for i, own in enumerate(evaluations, 1)
    ]


def pairs(kl, chosen=-50.0, rejected=-60.0):
    return {"samples__kl": kl, "logps__chosen": chosen, "logps__rejected": rejected}


SLPO = lines(pairs(0.5), pairs(3.0, -50.1, -60.9), pairs(5.8, -50.2, -61.6))
"""Own answers move by 5.3 nats, and the held-out responses by 1.6 at most."""


def test_a_divergence_that_the_pairs_do_not_show_is_a_warning():
    (text,) = drift(SLPO, 64).values()
    assert text.startswith(
        "samples/kl rose from 0.5 at update 20 to 5.8 nats at update 60, and no held-out "
        "log-probability shifted by more than 1.6 (logps/rejected): "
    )
    assert "lower the learning rate, train for fewer updates" in text


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(lines(pairs(0.5), pairs(5.8, rejected=-62.0)), id="the pairs moved as far"),
        pytest.param(lines(pairs(0.5), pairs(2.5)), id="two nats"),
        pytest.param(lines(pairs(5.8)), id="the first evaluation"),
        pytest.param(lines(pairs(5.8), pairs(5.8)), id="no rise"),
        pytest.param(lines({"samples__kl": 0.5}, {"samples__kl": 9.0}), id="no held-out data"),
        pytest.param(lines(pairs(0.5), pairs(math.nan)), id="not finite"),
    ],
)
def test_a_divergence_that_the_pairs_show_is_none(found):
    assert drift(found, 64) == {}


def test_shifts_of_terms_count_too():
    moved = [pairs(0.5) | {"dpo__logps__chosen": x} for x in (-50.0, -59.0)]
    moved[1]["samples__kl"] = 5.8
    assert drift(lines(*moved), 64) == {}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("unfinished", "fewer answers end"), ("repetition", "answers repeat themselves")],
)
@pytest.mark.parametrize(
    ("first", "last", "answers", "warns"),
    [
        (0.0, 0.3, 64, True),
        (0.0, 0.09, 1_000_000, False),  # at most 0.1
        (0.5, 0.7, 64, False),  # within three standard errors
        (0.5, 0.7, 640, True),
        (0.0, 1.0, 1, False),  # one answer has no standard error
        (0.7, 0.3, 640, False),
    ],
)
def test_a_share_that_rises_is_a_warning(name, meaning, first, last, answers, warns):
    found = drift(lines({f"samples__{name}": first}, {f"samples__{name}": last}), answers)
    assert list(found) == [f"samples/{name}"] * warns
    assert not warns or f"at update 40: {meaning}; read some answers" in found[f"samples/{name}"]


@pytest.fixture
def run(tmp_path):
    """A run whose own answers have left the held-out data behind."""
    folder = folders.write_run(tmp_path / "run", "dpo")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["stages"]["dpo"]["eval_samples"] = {"count": 64}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = "".join(json.dumps(line) + "\n" for line in SLPO)
    (folder / "dpo/metrics.jsonl").write_text(text)
    return folder


def printed(folder):
    console = Console(file=io.StringIO(), width=300)
    console.print(terminal(folder))
    return console.file.getvalue()


def test_the_report_has_the_warning_and_the_curves(run):
    assert "dpo: samples/kl rose from 0.5 at update 20" in printed(run)
    assert "samples/kl rose from 0.5 at update 20" in write_report(run).read_text()
    assert list((run / "report").glob("*_kl.png"))


def test_an_earlier_update_that_is_exported_gives_no_cause(run):
    record = {"update": 20, "made": 60, "planned": 60, "value": 0.5}
    record |= {"metric": "loss", "want": "lowest"}
    (run / "dpo/best.json").write_text(json.dumps(record))
    assert "rose from" not in printed(run)
    assert "dpo: update 20 is exported, with the lowest held-out loss, 0.5" in printed(run)
