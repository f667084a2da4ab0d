"""A comparison in the terminal, as files, and from the command line."""

import csv
import io
import json
import math

import pytest
from lib import runs as h
from lib.folders import HOSTILE
from rich.console import Console

from jaxalign.comparison.measures import Controlled, Measured, Rate
from jaxalign.comparison.page import terminal, write_files
from jaxalign.comparison.result import MEASURES, Compared, ModelResult, PairResult, Shown

NAN = math.nan


def found(name="dpo", *, kl=True, rate=0.7):
    measures = {k: Measured(0.25, 0.125, 4) for k in MEASURES if kl or k != "kl"}
    models = [ModelResult(x, f"runs/{x}", measures) for x in ("sft", name)]
    controlled = Controlled(Rate(rate, 0.5, 0.75), -0.5)
    pair = PairResult(name, Rate(0.625, 0.5, 0.75), controlled, Measured(1.5, NAN, 1))
    answers = (("four", 1.0), ("5", 0.0))
    settings = {"n": 2, "temperature": 1.0, "reference": None}
    return Compared(tuple(models), (pair,), 4, 2, settings, (Shown("2+2=", answers),))


def printed(result):
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal(result))
    return console.file.getvalue()


def page(result, folder):
    return write_files(result, folder).read_text()


def test_the_terminal_has_a_table_of_models_and_one_of_win_rates():
    text = printed(found())
    assert "4 prompts, 2 answers to each; ± is one standard error" in text
    assert "0.25 ± 0.12" in text
    assert "against sft; 95 % intervals" in text
    assert "0.625 [0.500, 0.750]" in text
    assert "0.700 [0.500, 0.750]" in text
    for words in MEASURES.values():
        assert words in text


def test_an_unknown_value_is_none_in_tables_null_in_json_and_empty_in_csv(tmp_path):
    result = found(rate=NAN)
    assert "none" in printed(result)
    assert ">none<" in page(result, tmp_path)
    (pair,) = json.loads((tmp_path / "comparison.json").read_text())["pairs"]
    assert pair["length_controlled"]["value"] is None
    assert pair["difference"] == {"mean": 1.5, "error": None, "number": 1}
    _, _, row = csv.reader((tmp_path / "comparison.csv").open())
    assert row[-1] == ""


def test_the_table_has_a_row_for_each_model_and_no_rates_of_the_baseline(tmp_path):
    page(found(), tmp_path)
    baseline, other = csv.DictReader((tmp_path / "comparison.csv").open())
    assert (baseline["model"], other["model"]) == ("sft", "dpo")
    assert float(baseline["kl"]) == 0.25
    assert float(baseline["kl_error"]) == 0.125
    rates = ("win_rate", "win_rate_low", "win_rate_high", "length_controlled", "length_effect")
    assert [baseline[name] for name in rates] == [""] * 5
    assert [float(other[name]) for name in rates] == [0.625, 0.5, 0.75, 0.7, -0.5]
    assert float(other["difference"]) == 1.5


def test_the_page_has_the_tables_the_figures_and_the_answers(tmp_path):
    text = page(found(), tmp_path)
    for part in ("0.625 [0.500, 0.750]", "2+2=", "four", "dpo, score 0", "runs/dpo"):
        assert part in text
    assert text.count("data:image/png;base64,") == 2
    assert page(found(kl=False), tmp_path).count("data:image/png;base64,") == 1


def test_hostile_names_and_answers_are_text(tmp_path):
    result = found(HOSTILE)
    text = page(result, tmp_path)
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "\x1b[31m" not in printed(result)


def test_the_page_loads_nothing(tmp_path):
    text = page(found(), tmp_path)
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")


# The command


@pytest.fixture(scope="module")
def argv(inputs, tmp_path_factory):
    """A comparison of a model with its copy."""
    folder = tmp_path_factory.mktemp("command")
    h.copy_folder(inputs / "model", folder / "copy")
    how = ("--prompts", inputs / "pairs.jsonl", "--by", "length", "--out", folder / "out")
    how += ("--n", 2, "--max-new", 4, "--limit", 3, "--dtype", "float32")
    return ("compare", inputs / "model", folder / "copy", *how)


def test_the_command_prints_two_tables_and_says_where_the_page_is(argv, jaxalign_command):
    code, out, err = jaxalign_command(*argv)
    assert code == 0, err
    assert "3 prompts, 2 answers to each" in out
    assert "0.500 [" in out
    assert "comparison.html" in err
    assert "copy: 3 of 3 prompts, " in err


def test_the_command_prints_one_json_object(argv, jaxalign_command):
    code, out, err = jaxalign_command(*argv, "--json")
    assert code == 0, err
    value = json.loads(out)
    assert value == json.loads((argv[argv.index("--out") + 1] / "comparison.json").read_text())
    assert value["pairs"][0]["win_rate"]["value"] == 0.5
    assert value["settings"]["n"] == 2


def test_scorers_may_be_a_file_that_is_missing(argv, refused):
    assert "no.yaml: cannot be read as text" in refused(*argv, "--by", "no.yaml")


@pytest.mark.parametrize("flag", ["--model", "--endpoint.model", "--combine=votes"])
def test_options_that_are_no_options_of_a_comparison_are_refused(flag, argv, jaxalign_command):
    assert jaxalign_command(*argv, flag, "x")[0] == 2


def test_an_interrupt_says_that_parts_are_kept(argv, jaxalign_command, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxalign.making.compare_models", stop)
    code, _, err = jaxalign_command(*argv)
    assert (code, err) == (130, "jaxalign: interrupted; the finished parts are kept\n")
