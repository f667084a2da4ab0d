import pytest
from lib import runs as h
from lib.endpoints import KEY, Fault, endpoint

from jaxalign.collect.score import open_scorers, score_rows
from jaxalign.errors import RunError, UserError
from jaxalign.recipe.scorers import read_scorers

MESH = h.one_device()
TEMPLATE = "{prompt}|{a}|{b}"
ROWS = [
    {"prompt": "x", "responses": ["a", "bbb", "cc"]},
    {"prompt": "y", "chosen": "ff", "rejected": "e"},
]


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def judge(url, folder, template=TEMPLATE, **options):
    (folder / "template.txt").write_text(template)
    how = {"endpoint": url, "model": "m", "timeout": 5.0, "cache": str(folder / "cache.jsonl")}
    return {"judge": how | {"template": str(folder / "template.txt")} | options}


def scored(by, rows=ROWS):
    records = read_scorers(by)
    (scorer,) = open_scorers(records, MESH, "float32")
    found = score_rows([(f"row {i}", r) for i, r in enumerate(rows)], records, [scorer])
    pair = ("score_chosen", "score_rejected")
    return [r.get("scores") or [r[k] for k in pair] for r in found], scorer.report()


def longer(body, number):
    """The longer answer wins, whatever the order."""
    _, a, b = body["messages"][-1]["content"].split("|")
    return f"Reasons. [[{'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'C'}]]"


def test_an_answer_scores_the_share_of_comparisons_that_it_wins(tmp_path):
    with endpoint(longer) as served:
        found, report = scored(judge(served.url, tmp_path))
    assert found == [[0, 1, 0.5], [1, 0]]
    assert sorted(served.texts) == sorted(
        ["x|a|bbb", "x|bbb|a", "x|a|cc", "x|cc|a", "x|bbb|cc", "x|cc|bbb", "y|ff|e", "y|e|ff"]
    )
    assert (report["flipped"], report["first"], report["undecided"]) == (0, 0.5, 0)


def test_a_preference_for_the_first_answer_cancels_and_is_reported(tmp_path):
    with endpoint(lambda *_: "[[A]]") as served:
        found, report = scored(judge(served.url, tmp_path))
    assert found == [[0.5] * 3, [0.5] * 2]
    assert (report["flipped"], report["first"]) == (1, 1)


def test_ties_are_half_a_win_and_no_flip(tmp_path):
    with endpoint(lambda *_: "either [[A]] or, no, [[C]]") as served:
        found, report = scored(judge(served.url, tmp_path))
    assert found == [[0.5] * 3, [0.5] * 2]
    assert (report["flipped"], report["first"], report["undecided"]) == (0, 0.5, 0)


def test_answers_are_compared_with_a_column(tmp_path):
    rows = [{"prompt": "x", "responses": ["a", "bbb"], "gold": "cc"}]
    with endpoint(longer) as served:
        assert scored(judge(served.url, tmp_path, against="gold"), rows)[0] == [[0, 1]]
        with pytest.raises(UserError, match=r"row 0: no 'silver'"):
            scored(judge(served.url, tmp_path, against="silver"), rows)
    assert len(served.bodies) == 4


def test_an_answer_alone_has_nothing_to_be_compared_with(tmp_path):
    by = judge("http://localhost:1/v1", tmp_path)
    with pytest.raises(UserError, match=r"row 0: has one answer and none to compare it with"):
        scored(by, [{"prompt": "x", "completion": "a"}])


def test_ratings_are_read(tmp_path):
    replies = {"x|a": "[[1]]", "x|bbb": "fine: [[10]]", "x|cc": "[[7.0]]"}
    with endpoint(lambda body, _: replies[body["messages"][-1]["content"]]) as served:
        by = judge(served.url, tmp_path, "{prompt}|{a}", mode="rating")
        found, report = scored(by, ROWS[:1])
    assert found == [[1, 10, 7]]
    assert "flipped" not in report


@pytest.mark.parametrize(
    ("mode", "template", "want"), [("pairs", TEMPLATE, 0.5), ("rating", "{prompt}{a}", 5.5)]
)
def test_nonsense_is_asked_again_and_then_undecided(tmp_path, mode, template, want):
    with endpoint(lambda *_: "I like both. [[D]] [[11]] [[0]]") as served:
        by = judge(served.url, tmp_path, template, attempts=3, mode=mode)
        found, report = scored(by, ROWS[1:])
        assert scored(by, ROWS[1:])[0] == found
    assert found == [[want, want]]
    assert report["undecided"] == 2
    assert len(served.bodies) == 2 * 3


def test_a_verdict_after_nonsense_counts(tmp_path):
    with endpoint(lambda body, n: longer(body, n) if n >= 2 else "Hm.") as served:
        found, report = scored(judge(served.url, tmp_path), ROWS[1:])
    assert found == [[1, 0]]
    assert (report["undecided"], report["requests"]) == (0, 4)


def test_half_a_verdict_is_half_a_win(tmp_path):
    def one_order(body, number):
        return "[[A]]" if "ff|e" in body["messages"][-1]["content"] else "Hm."

    with endpoint(one_order) as served:
        found, report = scored(judge(served.url, tmp_path, attempts=1), ROWS[1:])
    assert found == [[0.75, 0.25]]
    assert (report["undecided"], report["flipped"]) == (1, 0)


def test_scores_after_a_crash_are_those_without_one_and_nothing_is_asked_twice(tmp_path):
    alive = [True]

    def dying(body, number):
        if number >= 4 and alive[0]:
            return Fault(closes=0)
        return longer(body, number)

    with endpoint(dying) as served:
        by = judge(served.url, tmp_path, attempts=1, concurrency=1)
        with pytest.raises(RunError, match=r"every reply so far is in .*cache\.jsonl"):
            scored(by)
        alive[0] = False
        found, report = scored(by)
    assert found == [[0, 1, 0.5], [1, 0]]
    assert report["replies"] == 8
    assert report["requests"] == 4
    assert len(served.bodies) == 8 + 1


def test_a_text_with_a_place_in_it_stays_as_it_is(tmp_path):
    rows = [{"prompt": "{a}", "chosen": "{b}", "rejected": r"\1{prompt}"}]
    with endpoint(lambda *_: "[[C]]") as served:
        scored(judge(served.url, tmp_path), rows)
    assert set(served.texts) == {r"{a}|{b}|\1{prompt}", r"{a}|\1{prompt}|{b}"}


def test_messages_are_shown_with_their_roles(tmp_path):
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    answer = [{"role": "assistant", "content": "a"}]
    with endpoint(lambda *_: "[[3]]") as served:
        by = judge(served.url, tmp_path, "{prompt}|{a}", mode="rating")
        scored(by, [{"prompt": prompt, "responses": [answer]}])
    assert served.texts == ["system: s\n\nuser: u|a"]


@pytest.mark.parametrize("mode", ["pairs", "rating"])
def test_the_templates_of_the_package_have_every_text(tmp_path, mode):
    with endpoint(lambda *_: "[[C]] [[4]]") as served:
        by = judge(served.url, tmp_path, mode=mode)
        del by["judge"]["template"]
        scored(by, ROWS[1:])
    for text in served.texts:
        assert "\ny\n" in text
        assert "\nff\n" in text or "\ne\n" in text
        assert "{" not in text


@pytest.mark.parametrize(
    ("template", "mode", "message"),
    [
        ("{prompt} {a}", "pairs", r"template\.txt: \{b\} is missing; a template for pairs has"),
        ("{prompt} {a} {b}", "rating", r"\{b\} has no text; a template for rating has"),
    ],
)
def test_a_template_with_other_places_is_refused(tmp_path, template, mode, message):
    with pytest.raises(UserError, match=message):
        scored(judge("http://localhost:1/v1", tmp_path, template, mode=mode))


def test_the_fingerprint_changes_with_the_template_and_has_no_key(tmp_path):
    def of(template):
        by = judge("http://localhost:1/v1", tmp_path, template)
        return open_scorers(read_scorers(by), MESH, "float32")[0].fingerprint

    assert of(TEMPLATE) == of(TEMPLATE)
    assert of(TEMPLATE) != of("Which? " + TEMPLATE)
    assert KEY not in str(of(TEMPLATE))
