import dataclasses
import math

import pytest
from lib import runs as h

from jaxalign.collect.score import open_scorers, read_rows, score_rows
from jaxalign.errors import RunError, UserError
from jaxalign.recipe.scorers import read_scorers
from jaxalign.settings import score

MESH = h.one_device()


def scored(rows, by, combine="sum"):
    records = read_scorers(by)
    scorers = open_scorers(records, MESH, "float32")
    return score_rows([(f"row {i}", r) for i, r in enumerate(rows)], records, scorers, combine)


def scores(by, *responses, **columns):
    (row,) = scored([{"prompt": "x", "responses": list(responses), **columns}], by)
    return row["scores"]


# Kinds

ANSWERS = {"answer": "#### 1,234"}
TABLE = [
    ("length", ["", "ab", "ä"], {}, [0, 2, 1]),
    ({"length": {"unit": "words"}}, ["a b", ""], {}, [2, 0]),
    ({"length": {"unit": "tokens"}}, ["a", "b"], {"tokens": [7, 9]}, [7, 9]),
    (
        {"length": {"target": 2, "limit": 4}},
        ["a", "ab", "abc", "abcd", "abcde"],
        {},
        [1, 1, 0.5, 0, 0],
    ),
    ({"length": {"target": 4, "limit": 2}}, ["ab", "abc", "abcde"], {}, [0, 0.5, 1]),
    ({"length": {"target": 2, "limit": 2}}, ["ab", "abc"], {}, [1, 0]),
    ({"length": 4}, ["", "ab"], {}, [1, 0.5]),
    ("repetition", ["a b c d", "a b c a b c", "a b", ""], {}, [0, 0.25, 0, 0]),
    ({"repetition": 1}, ["a a a a"], {}, [0.75]),
    ({"regex": r"\d+"}, ["12", "12 ", "a"], {}, [1, 0, 0]),
    ({"regex": r"(?s)<a>.*</a>"}, ["<a>\n</a>", "<a>"], {}, [1, 0]),
    (
        {"regex": {"pattern": r"(?s).*: (\S+)", "captured": True}},
        ["it: -1,000", "no"],
        {},
        [-1000, 0],
    ),
    ("exact", ["Paris", " Paris\n", "paris"], {"answer": "Paris"}, [1, 1, 0]),
    ("exact", ["a", "b", "c"], {"answer": ["a", "b"]}, [1, 1, 0]),
    ({"exact": {"strip": False, "ignore_case": True}}, ["a", "a "], {"answer": "A"}, [1, 0]),
    ({"exact": "gold"}, ["a"], {"gold": "a"}, [1]),
    ("numeric", ["so 1234.", "$1,234.00", "1235", "none", "1234 of 2"], ANSWERS, [1, 1, 0, 0, 0]),
    ({"numeric": {"after": "####"}}, ["3 #### 1234 of 5", "1234"], ANSWERS, [1, 0]),
    ({"numeric": {"tolerance": 0.1}}, ["9", "11", "11.01"], {"answer": 10}, [1, 1, 0]),
    ("numeric", ["0.1", "1/10", "0.10000000000000001"], {"answer": 0.1}, [1, 1, 0]),
    ("numeric", ["9007199254740993", "9007199254740992"], {"answer": 2**53 + 1}, [1, 0]),
    ("votes", ["it is 2", "2.0", "3", "none"], {}, [0.5, 0.5, 0.25, 0]),
    ({"votes": {"after": "="}}, ["a = 2, not 3", "b = 2", "2"], {}, [2 / 3, 2 / 3, 0]),
    ({"length": {"weight": -2}}, ["ab"], {}, [-4]),
]


@pytest.mark.parametrize(("by", "responses", "columns", "want"), TABLE)
def test_a_rule_gives_its_scores(by, responses, columns, want):
    assert scores(by, *responses, **columns) == pytest.approx(want, abs=1e-12)


WRONG = [
    ({"length": {"unit": "tokens"}}, {}, "row 0: no 'tokens'"),
    ({"length": {"unit": "tokens"}}, {"tokens": [1]}, "'tokens' is .1.; wanted a list of 2"),
    ({"length": {"unit": "tokens"}}, {"tokens": [1, -1]}, r"'tokens\[1\]' is -1; wanted"),
    ("exact", {}, "no 'answer'"),
    ("exact", {"answer": 3}, "'answer' is 3; wanted a text or a list of texts"),
    ("exact", {"answer": []}, r"'answer' is \[\]; wanted a text"),
    ("numeric", {"anwer": 3}, "no 'answer'.* did you mean 'anwer'"),
    ("numeric", {"answer": "1 or 2"}, "'answer' is '1 or 2'; wanted one number"),
    ("numeric", {"answer": True}, "'answer' is True; wanted a finite number"),
    ({"regex": {"pattern": "(.*)", "captured": True}}, {}, "the pattern captured 'a'; wanted one"),
    ({"regex": {"pattern": "a(b)?", "captured": True}}, {}, "the pattern captured None"),
]


@pytest.mark.parametrize(("by", "columns", "message"), WRONG)
def test_a_row_that_does_not_fit_is_refused_by_name(by, columns, message):
    with pytest.raises(UserError, match=message):
        scores(by, "a", "b", **columns)


def test_a_captured_number_that_no_float_holds_is_refused():
    with pytest.raises(UserError, match="a number of over 1e308"):
        scores({"regex": {"pattern": "(.*)", "captured": True}}, "9e999", "1")


# Rows

CHAT = [{"role": "user", "content": "x"}]


def test_messages_are_scored_by_their_contents():
    answers = [[{"role": "assistant", "content": text}] for text in ("ab", "abc")]
    (row,) = scored([{"prompt": CHAT, "responses": answers}], "length")
    assert row == {"prompt": CHAT, "responses": answers, "scores": [2, 3]}


def test_every_kind_of_row_gets_columns_of_its_form():
    rows = [
        {"prompt": "x", "responses": ["a"], "seeds": [3]},
        {"prompt": "x", "chosen": "ab", "rejected": "a", "id": 7},
        {"prompt": "x", "completion": "abc"},
        {"messages": [*CHAT, {"role": "assistant", "content": "abcd"}]},
    ]
    found = scored(rows, "length")
    assert [dict(list(f.items())[len(r) :]) for f, r in zip(found, rows, strict=True)] == [
        {"scores": [1]},
        {"score_chosen": 2, "score_rejected": 1},
        {"score": 3},
        {"score": 4},
    ]
    assert [f | r for f, r in zip(found, rows, strict=True)] == found


def test_several_scorers_and_a_named_one_have_columns_of_their_own():
    pair = {"prompt": "x", "chosen": "ab", "rejected": "a"}
    (row,) = scored([pair], [{"length": {"weight": 2}}, {"repetition": {"n": 1, "name": "again"}}])
    assert row == pair | {
        "score_chosen_length": 2,
        "score_rejected_length": 1,
        "score_chosen_again": 0,
        "score_rejected_again": 0,
        "score_chosen": 4,
        "score_rejected": 2,
    }
    (row,) = scored([{"prompt": "x", "responses": ["a"]}], {"length": {"name": "size"}})
    assert row["scores_size"] == row["scores"] == [1]


def test_a_scored_row_is_scored_again():
    rows = [{"prompt": "x", "responses": ["a", "ab"], "scores": [9, 8]}]
    assert scored(rows, "length")[0]["scores"] == [1, 2]


def test_rows_without_answers_are_refused():
    with pytest.raises(UserError, match="row 0: no known columns"):
        scored([{"prompt": "x"}], "length")
    with pytest.raises(UserError, match=r"row 0: 'responses' is \[\]"):
        scored([{"prompt": "x", "responses": []}], "length")
    apart = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    with pytest.raises(UserError, match="row 0: its responses answer different prompts"):
        scored([apart], "length")


def test_a_file_without_rows_is_refused(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"none\.jsonl: has no rows"):
        read_rows(str(tmp_path / "none.jsonl"))


# Combinations

TWO = [{"length": {"weight": 2}}, {"numeric": {"weight": -1}}]


@pytest.mark.parametrize(
    ("combine", "want"),
    [
        ("sum", [2 * 1 - 1, 2 * 3, 2 * 1]),
        ("mean", [1 / 3, 2, 2 / 3]),
        ("min", [-1, 0, 0]),
        # Mean of the other lengths: 2, 1, 2; of the other numeric scores: 0, 0.5, 0.5.
        ("votes", [-1, 2, 0]),
    ],
)
def test_scores_are_combined(combine, want):
    row = {"prompt": "x", "responses": ["5", "abc", "a"], "answer": 5}
    (found,) = scored([row], TWO, combine)
    assert found["scores"] == pytest.approx(want, abs=1e-12)


def test_equal_scores_get_half_a_vote():
    (found,) = scored([{"prompt": "x", "responses": ["a", "b"]}], "length", "votes")
    assert found["scores"] == [0.5, 0.5]


def test_votes_of_a_single_answer_are_refused():
    with pytest.raises(UserError, match="row 0: has one answer, and combine: votes compares"):
        scored([{"prompt": "x", "completion": "a"}], "length", "votes")


def test_a_mean_without_weights_is_refused():
    with pytest.raises(UserError, match="combine: mean needs a weight other than 0"):
        scored([{"prompt": "x", "completion": "a"}], {"length": {"weight": 0}}, "mean")


def test_a_score_that_is_not_finite_is_an_error():
    class Broken:
        def fingerprint(self):
            return {}

        def score(self, rows):
            found = open_scorers(read_scorers("length"), MESH, "float32")[0].score(rows)
            return found._replace(values=[[math.nan] for _ in rows])

        def report(self):
            return {}

    with pytest.raises(RunError, match="row 0: the scorer length gave nan for answer 0"):
        score_rows(
            [("row 0", {"prompt": "x", "completion": "a"})], read_scorers("length"), [Broken()]
        )


# Settings


def test_short_forms_mean_the_long_ones():
    assert read_scorers({"reward_model": "m"}) == (score.RewardModel(model="m"),)
    assert read_scorers([{"program": ["cat"]}]) == (score.Program(command=("cat",)),)
    assert read_scorers("numeric") == read_scorers({"numeric": None}) == (score.Numeric(),)


def test_options_are_read_with_their_defaults():
    (found,) = read_scorers({"judge": {"endpoint": "http://x", "model": "m", "weight": 2}})
    assert dataclasses.asdict(found)["weight"] == 2
    assert found == score.Judge(endpoint="http://x", model="m", weight=2)


BAD = [
    ([], r"by: give at least one scorer"),
    ({"numeric": {}, "exact": {}}, "by: wanted a mapping with the kind of a scorer"),
    (3, r"by: wanted a mapping .* \(got 3\)"),
    ({"numerc": {}}, "by: no scorer 'numerc'; did you mean 'numeric'?"),
    ({"numeric": {"tolerence": 1}}, "by.numeric.tolerence: unknown; did you mean 'tolerance'"),
    ({"log_ratio": {"model": "a"}}, "by.log_ratio.reference: missing"),
    (
        {"log_ratio": {"model": "a", "reference": "b", "beta": 0}},
        "by.log_ratio.beta: .*greater than 0",
    ),
    ({"length": {"weight": True}}, r"by.length.weight: Input should be a number \(got True\)"),
    ({"length": {"target": 3}}, "by.length.limit: missing"),
    ({"length": {"name": "a b"}}, "by.length.name: wanted letters, digits and underscores"),
    ({"regex": "("}, "by.regex.pattern: no regular expression"),
    ({"regex": {"pattern": "a", "captured": True}}, "by.regex.captured: the pattern has no group"),
    ({"function": "f.py"}, "by.function.name: missing; give the name of the function"),
    (["length", "length"], "by: 2 scorers have the name 'length'; give each its own name"),
    (
        {"judge": {"endpoint": "u", "model": "m", "mode": "rating", "against": "a"}},
        "by.judge.against: a rating compares nothing",
    ),
]


@pytest.mark.parametrize(("by", "message"), BAD)
def test_wrong_settings_are_refused_by_their_path(by, message):
    with pytest.raises(UserError, match=message):
        read_scorers(by)


def test_all_complaints_come_together():
    with pytest.raises(UserError, match=r"(?s)stages.s.by.0: no scorer.*stages.s.by.1.exact.strip"):
        read_scorers(["nothing", {"exact": {"strip": "perhaps"}}], "stages.s.by")


def test_the_fingerprint_has_the_options():
    (scorer,) = open_scorers(read_scorers({"repetition": 5}), MESH, "float32")
    assert scorer.fingerprint == {"name": None, "weight": 1.0, "n": 5}
    assert scorer.report() == {}
