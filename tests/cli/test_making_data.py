"""The commands that make data: sample, score and pair."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from lib import runs as h
from lib.endpoints import endpoint

import jaxalign
from jaxalign.collect import verbs

N, MAX_NEW = 4, 4
COLUMNS = {"responses", "finishes", "tokens", "logps", "sampler_logps", "seeds"}


def read(path):
    """The rows of a file of JSON lines, each of which is valid by itself."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(printed):
    """The numbers that a command prints, by name."""
    rows = [line.split() for line in printed.splitlines()]
    return {name: float(value.replace(",", "")) for name, value in rows}


@pytest.fixture(scope="module")
def made(inputs, compile_cache, tmp_path_factory):
    """The files of the three commands and the processes that wrote them, by the command."""
    folder = tmp_path_factory.mktemp("made")
    files = {name: folder / f"{name}.jsonl" for name in ("sample", "score", "pair")}
    how = ("--n", N, "--max-new", MAX_NEW, "--dtype", "float32", "--part", 64)
    prompts = ("--prompts", inputs / "pairs.jsonl")
    argv = {
        "sample": ("sample", inputs / "model", *prompts, "--out", files["sample"], *how),
        "score": ("score", files["sample"], "--by", "length", "--out", files["score"]),
        "pair": (
            *("pair", files["score"], "--how", "best_worst", "--unfinished", "keep"),
            *("--out", files["pair"]),
        ),
    }
    done = {name: h.cli(*map(str, args), cache=compile_cache) for name, args in argv.items()}
    return {name: (files[name], done[name]) for name in files}


@pytest.fixture
def answers(tmp_path):
    """A file of two prompts with two answers each."""
    rows = [{"prompt": f"{i}+1=", "answer": i + 1, "responses": [f"{i + 1}", "no"]} for i in (0, 1)]
    h.write_rows(tmp_path / "answers.jsonl", rows)
    return tmp_path / "answers.jsonl"


@pytest.fixture
def scored(answers):
    """The same file with scores."""
    rows = [row | {"scores": [1.0, 0.0]} for row in read(answers)]
    h.write_rows(answers.with_name("scored.jsonl"), rows)
    return answers.with_name("scored.jsonl")


@pytest.mark.parametrize("command", ["sample", "score", "pair"])
def test_a_command_ends_with_0_and_leaves_one_file(made, command):
    file, done = made[command]
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in file.parent.glob(f"{command}*")) == [f"{command}.jsonl"]


def test_sample_gives_every_prompt_n_answers_and_keeps_its_columns(made, inputs):
    asked, rows = read(inputs / "pairs.jsonl"), read(made["sample"][0])
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in asked]
    assert [row["given_chosen"] for row in rows] == [row["chosen"] for row in asked]
    assert {len(row[name]) for row in rows for name in COLUMNS} == {N}


def test_sample_prints_the_numbers_of_its_file(made):
    file, done = made["sample"]
    rows, found = read(file), numbers(done.stdout)
    finishes = [end for row in rows for end in row["finishes"]]
    assert found["prompts"] == len(rows)
    assert found["answers"] == N * len(rows)
    assert found["tokens"] == found["drawn"] == sum(sum(row["tokens"]) for row in rows)
    assert found["without_end"] == pytest.approx(np.mean([e == "length" for e in finishes]), 1e-5)


def test_sample_says_on_standard_error_how_far_and_how_fast_it_is(made):
    said = made["sample"][1].stderr.splitlines()
    assert [line.split(",")[0] for line in said] == ["16 of 24 prompts", "24 of 24 prompts"]
    assert all(line.endswith(" tokens/s") for line in said)


def test_score_gives_every_answer_a_number_and_prints_their_mean(made):
    file, done = made["score"]
    rows = read(file)
    assert all(row["scores"] == [len(text) for text in row["responses"]] for row in rows)
    mean = np.mean([row["scores"] for row in rows])
    assert numbers(done.stdout)["mean"] == pytest.approx(mean, 1e-5)


def test_pair_prints_the_counts_of_its_file(made):
    file, done = made["pair"]
    rows = read(file)
    assert f"24 prompts: {len(rows)} used, {len(rows)} rows written\n" in done.stdout
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in rows)


def test_the_pairs_train_a_model(made, inputs, tmp_path):
    where = {"stages__dpo__data__path": str(made["pair"][0]), "stages__dpo__steps": 2}
    h.run(h.recipe(inputs, tmp_path / "run", "dpo", **where), h.one_device())
    assert len(h.metrics(tmp_path / "run" / "dpo")) == 2


# Sampling again


def ask(inputs, out, **how):
    given = {"n": 2, "max_new": MAX_NEW, "dtype": "float32", "part": 16} | how
    return jaxalign.sample(inputs / "model", prompts=inputs / "pairs.jsonl", out=out, **given)


@pytest.fixture(scope="module")
def sampled(inputs, tmp_path_factory):
    """A file of the function `sample`."""
    out = tmp_path_factory.mktemp("sampled") / "answers.jsonl"
    ask(inputs, out)
    return out


def test_the_same_seed_gives_the_same_file_and_another_one_another(sampled, inputs, tmp_path):
    for seed in (0, 1000):
        ask(inputs, tmp_path / f"{seed}.jsonl", seed=seed)
    assert (tmp_path / "0.jsonl").read_bytes() == sampled.read_bytes()
    found, other = ([row["responses"] for row in read(tmp_path / f"{s}.jsonl")] for s in (0, 1000))
    assert found != other


def test_a_limit_chooses_prompts_in_their_order(sampled, inputs, tmp_path):
    ask(inputs, tmp_path / "some.jsonl", limit=5)
    every = [row["prompt"] for row in read(sampled)]
    places = [every.index(row["prompt"]) for row in read(tmp_path / "some.jsonl")]
    assert len(places) == 5
    assert places == sorted(places)


@pytest.fixture
def interrupted(inputs, tmp_path, monkeypatch):
    """The file that a call leaves unfinished, with one part made."""

    def stop(prompts, sampler, first):
        if first:
            raise KeyboardInterrupt
        return whole(prompts, sampler, first)

    whole, out = verbs.sampled_rows, tmp_path / "answers.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(verbs, "sampled_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            ask(inputs, out)
    assert not out.exists()
    return out


def test_an_interrupted_call_resumes_to_the_same_file(interrupted, sampled, inputs):
    found = ask(inputs, interrupted)
    assert interrupted.read_bytes() == sampled.read_bytes()
    assert 0 < found["drawn"] < found["tokens"]


def test_an_interrupt_exits_with_130_and_says_that_parts_are_kept(
    answers, jaxalign_command, tmp_path, monkeypatch
):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "score_rows", stop)
    flags = ("--by", "length", "--out", tmp_path / "out.jsonl")
    code, _, err = jaxalign_command("score", answers, *flags)
    assert (code, err) == (130, "jaxalign: interrupted; the finished parts are kept\n")


def test_parts_from_other_inputs_are_one_error_until_the_change_is_accepted(
    interrupted, inputs, jaxalign_command
):
    how = ("--n", 2, "--max-new", MAX_NEW, "--dtype", "float32", "--part", 16, "--seed", 7)
    files = ("--prompts", inputs / "pairs.jsonl", "--out", interrupted)
    code, _, err = jaxalign_command("sample", inputs / "model", *files, *how)
    assert code == 2
    assert f"{interrupted}.parts: its parts were made from other inputs\n  settings: " in err
    assert err.endswith("or add --accept-changes to make the parts again\n")
    code, out, err = jaxalign_command("sample", inputs / "model", *files, *how, "--accept-changes")
    assert code == 0, err
    assert read(interrupted)[0]["seeds"] == [7, 8]
    assert numbers(out)["drawn"] == numbers(out)["tokens"]


# An endpoint


def test_an_endpoint_answers_instead_of_a_model(inputs, tmp_path, jaxalign_command):
    files = ("--prompts", inputs / "pairs.jsonl", "--out", tmp_path / "answers.jsonl")
    with endpoint(lambda body, number: ["yes"] * body["n"]) as served:
        given = {"endpoint": served.url, "model": "m", "key-env": None}
        given |= {"cache": tmp_path / "cache.jsonl", "price-in": 2}
        flags = [x for k, v in given.items() for x in (f"--endpoint.{k}", v)]
        code, out, err = jaxalign_command("sample", *files, "--n", 2, "--limit", 3, *flags)
    assert code == 0, err
    found = numbers(out)
    assert (found["prompts"], found["answers"], found["requests"]) == (3, 6, 3)
    assert found["price"] == pytest.approx(3 * 100 * 2 / 1e6)
    assert [row["responses"] for row in read(tmp_path / "answers.jsonl")] == [["yes", "yes"]] * 3


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "sample: give either a model or an endpoint"),
        (
            ["MODEL", "--endpoint.endpoint", "http://localhost", "--endpoint.model", "m"],
            "sample: give either a model or an endpoint",
        ),
        (["--endpoint.endpoint", "http://localhost"], "sample: endpoint.model: missing"),
        (["--endpoint.model", "m"], "sample: endpoint.endpoint: missing"),
    ],
)
def test_what_answers_is_either_a_model_or_an_endpoint(refused, tmp_path, flags, message):
    assert message in refused("sample", *flags, "--prompts", "a", "--out", tmp_path / "b")


def test_an_option_of_an_endpoint_that_is_none_is_one_error(tmp_path):
    given = {"endpoint": "http://localhost", "model": "m", "pirce_in": 1}
    with pytest.raises(jaxalign.UserError, match=r"endpoint\.pirce_in: .* did you mean 'price_in'"):
        jaxalign.sample(prompts="a", out=tmp_path / "b", endpoint=given)


# Scorers


def test_scorers_may_be_a_file(answers, jaxalign_command, tmp_path):
    by = tmp_path / "by.yaml"
    by.write_text("- numeric: {answer: answer, weight: 2}\n- length\n")
    out = tmp_path / "out.jsonl"
    code, _, err = jaxalign_command("score", answers, "--by", by, "--out", out)
    assert code == 0, err
    assert [row["scores"] for row in read(out)] == [[3.0, 2.0]] * 2
    assert [row["scores_numeric"] for row in read(out)] == [[1.0, 0.0]] * 2


def test_the_combination_is_an_option(answers, jaxalign_command, tmp_path):
    by, out = "[{numeric: {answer: answer}}, length]", tmp_path / "out.jsonl"
    flags = ("--by", by, "--combine", "min", "--out", out)
    assert jaxalign_command("score", answers, *flags)[0] == 0
    assert [row["scores"] for row in read(out)] == [[1.0, 0.0]] * 2


def test_the_reports_of_several_scorers_are_apart(answers, tmp_path):
    file = tmp_path / "one.py"
    file.write_text("while True:\n    input()\n    print(1, flush=True)\n")
    program = {"command": [sys.executable, str(file)]}
    by = [{"program": program | {"name": name}} for name in ("a", "b")]
    both = jaxalign.score(answers, by, tmp_path / "both.jsonl")
    one = jaxalign.score(answers, {"program": program}, tmp_path / "one.jsonl")
    assert {k: v for k, v in both.items() if "started" in k} == {"a/started": 1, "b/started": 1}
    assert one["started"] == 1


# Wrong input


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
    rows = [row | {"scores": [1.0, 1.0]} for row in read(scored)]
    h.write_rows(scored, rows)
    argv = ("--how", "best_worst", "--out", tmp_path / "out.jsonl")
    error = refused("pair", scored, *argv)
    assert f"{scored}: no row is left for `how: best_worst`\n" in error
    assert "  2 prompts: 0 used, 0 rows written\n" in error
    assert "  pairs dropped, tie: 2\n" in error
    assert error.endswith("loosen the options, or sample more answers\n")
    assert not (tmp_path / "out.jsonl").exists()


# From Python


def test_pair_gives_the_counts(scored, tmp_path):
    found = jaxalign.pair(scored, "labels", tmp_path / "out.jsonl", threshold=0.5)
    assert (found.prompts, found.used, found.rows) == (2, 2, 4)
    assert [row["label"] for row in read(tmp_path / "out.jsonl")] == [True, False] * 2


def test_an_option_of_a_function_that_is_none_is_one_error(scored, tmp_path):
    with pytest.raises(jaxalign.UserError, match=r"pair: treshold: .* did you mean 'threshold'"):
        jaxalign.pair(scored, "labels", tmp_path / "out.jsonl", treshold=0.5)
