"""Mistakes in the input of the commands that make data: one error each, and no file."""

from __future__ import annotations

import re

import pytest
from lib.making import write_answers


@pytest.fixture
def scored(tmp_path):
    """A file of two prompts with two answers each, and their scores."""
    return write_answers(tmp_path / "scored.jsonl", scores=[1.0, 0.0])


FILES = {
    "sample": ("sample", "MODEL", "--prompts", "IN", "--out", "OUT"),
    "score": ("score", "IN", "--by", "length", "--out", "OUT"),
    "pair": ("pair", "IN", "--how", "best", "--out", "OUT"),
}


def call(command, inputs, data, out):
    places = {"MODEL": inputs / "model", "IN": data, "OUT": out}
    return [places.get(arg, arg) for arg in FILES[command]]


@pytest.mark.parametrize("command", FILES)
def test_a_file_that_exists_is_one_error_and_stays(command, inputs, scored, refused, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    error = refused(*call(command, inputs, scored, out))
    assert f"--out: {out} exists; give another file, or delete it" in error
    assert out.read_text() == "mine"


@pytest.mark.parametrize("command", FILES)
def test_a_file_in_no_folder_is_one_error(command, inputs, scored, refused, tmp_path):
    out = tmp_path / "nowhere" / "out.jsonl"
    error = refused(*call(command, inputs, scored, out))
    assert f"--out: no folder {out.parent}" in error


@pytest.mark.parametrize("command", FILES)
def test_missing_data_are_one_error_with_the_near_name(command, inputs, scored, refused, tmp_path):
    error = refused(*call(command, inputs, tmp_path / "scores.jsonl", tmp_path / "out.jsonl"))
    assert "scores.jsonl: no such file" in error
    assert "did you mean 'scored.jsonl'?" in error


@pytest.mark.parametrize("command", FILES)
def test_data_without_rows_are_one_error(command, inputs, refused, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    error = refused(*call(command, inputs, tmp_path / "empty.jsonl", tmp_path / "out.jsonl"))
    assert "empty.jsonl: " in error
    assert not list(tmp_path.glob("out*"))


WRONG = {
    "no answer": (
        ("sample", "--n", 0),
        r"sample: n: Input should be greater than 0 \(got 0\)",
    ),
    "negative temperature": (("sample", "--temperature", -1), r"sample: temperature: .*\(got -1"),
    "a negative seed": (("sample", "--seed", -1), r"sample: seed: .*\(got -1\)"),
    "a mesh": (("sample", "--mesh.data", 3), r"mesh: .*'data': 3.* does not fit 8 devices"),
    "too many prompts": (
        ("sample", "--limit", 50),
        r"has 2 prompts, fewer than limit 50; lower it",
    ),
    "another kind": (("score", "--by", "numerik"), r"no scorer .*did you mean 'numeric'\?"),
    "another option": (
        ("score", "--by", "numeric: {anwser: a}"),
        r"by\.numeric\.anwser: unknown; did you mean 'answer'\?",
    ),
    "no YAML": (("score", "--by", "numeric: {"), r"--by: no YAML: line \d.*give a scorer such as"),
    "a missing file": (("score", "--by", "no.yaml"), r"no\.yaml: cannot be read as text"),
    "an option of another method": (
        ("pair", "--margin", 1),
        r"pair\.margin: `how: best` does not read it; leave it out, or choose best_worst",
    ),
    "a share": (("pair", "--agree", 2), r"pair: agree: .* less than or equal to 1 \(got 2"),
}


@pytest.mark.parametrize("flags, message", WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_one_error(flags, message, inputs, scored, refused, tmp_path):
    command, *more = flags
    argv = call(command, inputs, scored, tmp_path / "out.jsonl")
    if "--by" in more:
        argv = ["score", scored, "--out", tmp_path / "out.jsonl"]
    error = refused(*argv, *more)
    assert re.search(message, error), error
    assert not list(tmp_path.glob("out*"))


def test_a_broken_file_of_scorers_is_named(scored, refused, tmp_path):
    by = tmp_path / "by.yaml"
    by.write_text("numeric: 1\nnumeric: 2\n")
    error = refused("score", scored, "--by", by, "--out", tmp_path / "out.jsonl")
    assert f"--by: {by}: line 2: the key 'numeric' is given twice" in error


UNREAD = {
    "an unknown flag": ("sample", "--temperatur", "1"),
    "another method": ("pair", "--how", "best_wrost"),
    "no number": ("sample", "--n", "many"),
    "no JSON": ("sample", "--chat-template-kwargs", "{"),
}
NEAR = {"an unknown flag": "--temperature", "another method": "best_worst", "no JSON": "JSON"}


@pytest.mark.parametrize("kind", UNREAD)
def test_a_flag_that_cannot_be_read_exits_with_2(kind, inputs, scored, jaxalign_command, tmp_path):
    command, *more = UNREAD[kind]
    argv = call(command, inputs, scored, tmp_path / "out.jsonl")
    code, _, err = jaxalign_command(*argv, *more)
    assert code == 2
    assert NEAR.get(kind, "--n") in err


def test_a_model_that_no_reader_can_find_is_one_error(scored, refused, tmp_path):
    files = ("--prompts", scored, "--out", tmp_path / "out.jsonl")
    assert "model: no folder ./nowhere" in refused("sample", "./nowhere", *files)


def test_a_file_without_rows_left_is_one_error_with_the_counts(scored, refused, tmp_path):
    write_answers(scored, scores=[1.0, 1.0])
    argv = ("--how", "best_worst", "--out", tmp_path / "out.jsonl")
    error = refused("pair", scored, *argv)
    assert f"{scored}: no row is left for `how: best_worst`\n" in error
    assert "  2 prompts: 0 used, 0 rows written\n" in error
    assert "  pairs dropped, tie: 2\n" in error
    assert error.endswith("loosen the options, or sample more answers\n")
    assert not (tmp_path / "out.jsonl").exists()
