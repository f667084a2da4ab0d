"""The commands that make data: sample, score and pair."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from lib import runs as h
from lib.endpoints import Fault, endpoint
from lib.making import read, write_answers

import jaxalign
from jaxalign.collect import verbs

N, MAX_NEW = 4, 4
COLUMNS = {"responses", "finishes", "tokens", "logps", "sampler_logps", "seeds"}


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
    return write_answers(tmp_path / "answers.jsonl")


@pytest.fixture
def scored(tmp_path):
    """The same file with scores."""
    return write_answers(tmp_path / "scored.jsonl", scores=[1.0, 0.0])


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


@pytest.mark.parametrize("verb, each", [("sample", 1), ("score", 2)])
def test_more_patience_with_an_endpoint_continues_the_parts(
    answers, tmp_path, monkeypatch, verb, each
):
    """Of two parts with `each` requests, the second fails at first."""
    monkeypatch.setattr(verbs, "SCORED", 1)
    out, alive = tmp_path / "out.jsonl", []

    def make(cache, **patience):
        given = {"endpoint": served.url, "model": "m", "key_env": None, "cache": str(cache)}
        given |= patience
        if verb == "sample":
            jaxalign.sample(prompts=answers, out=out, endpoint=given, n=1, part=1)
        else:
            jaxalign.score(answers, {"judge": given | {"mode": "rating"}}, out)

    with endpoint(lambda _, i: "[[7]]" if i < each or alive else Fault(closes=0)) as served:
        with pytest.raises(jaxalign.RunError, match="no reply after 1 attempts"):
            make(tmp_path / "a.jsonl", attempts=1, concurrency=1)
        alive.append(True)
        asked = len(served.bodies)
        # Without the replies of the first call, so that only its part keeps them.
        make(tmp_path / "b.jsonl", attempts=1, timeout=99.0, price_in=3.0)
    assert len(read(out)) == 2
    assert len(served.bodies) == asked + each


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


# From Python


def test_pair_gives_the_counts(scored, tmp_path):
    found = jaxalign.pair(scored, "labels", tmp_path / "out.jsonl", threshold=0.5)
    assert (found.prompts, found.used, found.rows) == (2, 2, 4)
    assert [row["label"] for row in read(tmp_path / "out.jsonl")] == [True, False] * 2


def test_an_option_of_a_function_that_is_none_is_one_error(scored, tmp_path):
    with pytest.raises(jaxalign.UserError, match=r"pair: treshold: .* did you mean 'threshold'"):
        jaxalign.pair(scored, "labels", tmp_path / "out.jsonl", treshold=0.5)
