"""Rationales, revisions and samples: from the file to the loss."""

import numpy as np
import pytest
from lib import runs as h
from lib.objectives import assert_matches, draw, oracle_value_and_grad, value_and_grad
from lib.rows import CHAT_Q, DEMO, LABELED, PAIR, PLAIN, load, one, read, texts, words, write
from lib.worked import single_tokens
from oracles import HYPER, ORACLES

from jaxalign.core import layouts
from jaxalign.core.types import Dispreferred, Pairs, Rationales, Revised
from jaxalign.data.examples import preview
from jaxalign.errors import UserError
from jaxalign.objectives import OBJECTIVES

WHY = PAIR | {"rationale": " It is true."}
BAD = PAIR | {"samples": [" a", " b", " c"]}
NEW = {layouts.RATIONALES: WHY, layouts.REVISED: PAIR, layouts.DISPREFERRED: BAD}


# Reading


def test_a_rationale_follows_the_pair_in_a_prompt_of_its_own(tmp_path):
    row = one(tmp_path, WHY, layouts.RATIONALES)
    assert row.responses == (" yes", " no", " It is true.")
    assert row.names == ("chosen", "rejected", "rationale")
    assert row.prompts[:2] == ("Q", "Q")
    assert row.prompts[2] == (
        "Q yes\n\nAnother answer is:\nno\n\nWhy is the first answer better?\n\n"
    )


def test_each_response_revises_each(tmp_path):
    row = one(tmp_path, PAIR, layouts.REVISED)
    assert row.responses == (" yes", " no", " yes", " no", " no", " yes")
    after = {y: f"Q{y}\n\nGive a better answer.\n\n" for y in (" yes", " no")}
    assert row.prompts == ("Q", "Q", *(after[y] for y in (" no", " yes", " no", " yes")))


def test_a_transcript_goes_on_with_a_turn_of_the_human(tmp_path):
    record = {
        "chosen": "\n\nHuman: Q\n\nAssistant: yes",
        "rejected": "\n\nHuman: Q\n\nAssistant: no",
    }
    row = one(tmp_path, record, layouts.REVISED)
    assert row.prompts[3].endswith("Assistant: yes\n\nHuman: Give a better answer.\n\nAssistant:")


def test_messages_go_on_with_a_message_of_the_user(tmp_path):
    chat = {
        k: [{"role": "assistant", "content": v}] for k, v in (("chosen", "y"), ("rejected", "n"))
    }
    row = one(tmp_path, chat | {"prompt": CHAT_Q, "rationale": "true"}, layouts.RATIONALES)
    assert row.prompts[2] == [
        *CHAT_Q,
        *chat["chosen"],
        {
            "role": "user",
            "content": "Another answer is:\nn\n\nWhy is the first answer better?",
        },
    ]
    assert row.responses[2] == [{"role": "assistant", "content": "true"}]


@pytest.mark.parametrize(
    ("record", "bad"),
    [
        (BAD, "rejected"),
        (DEMO | {"samples": BAD["samples"]}, "completion"),
        (LABELED | {"label": 0, "samples": BAD["samples"]}, "completion"),
    ],
)
def test_samples_follow_the_response_that_is_bad(tmp_path, record, bad):
    row = one(tmp_path, record, layouts.DISPREFERRED)
    assert row.responses == (" no" if bad == "rejected" else " yes", " a", " b", " c")
    assert row.names == (bad, "samples[0]", "samples[1]", "samples[2]")
    assert row.label is None


def test_samples_of_several_sizes_are_refused(tmp_path):
    with pytest.raises(UserError, match="line 2: has 2 samples; the rows before have 3"):
        read(write(tmp_path, BAD, BAD | {"samples": [" a", " b"]}), layouts.DISPREFERRED)


@pytest.mark.parametrize("samples", [[], " a", 3])
def test_samples_that_are_no_list_are_refused(tmp_path, samples):
    with pytest.raises(UserError, match=r"line 1: 'samples' is .*; wanted a list of one or more"):
        one(tmp_path, PAIR | {"samples": samples}, layouts.DISPREFERRED)


def test_a_sample_that_is_no_text_is_named(tmp_path):
    with pytest.raises(UserError, match=r"line 1: 'samples\[1\]' is neither text nor messages"):
        one(tmp_path, PAIR | {"samples": [" a", 2]}, layouts.DISPREFERRED)


@pytest.mark.parametrize(
    ("layout", "near", "name"),
    [(layouts.RATIONALES, "rational", "rationale"), (layouts.DISPREFERRED, "sample", "samples")],
)
def test_a_column_that_lacks_names_the_near_one(tmp_path, layout, near, name):
    with pytest.raises(UserError, match=f"line 1: no '{name}'; .*did you mean '{near}'"):
        one(tmp_path, PAIR | {near: " a"}, layout)


@pytest.mark.parametrize(
    ("layout", "changes", "name"),
    [
        (layouts.RATIONALES, {"rationale": " "}, "rationale"),
        (layouts.DISPREFERRED, {"samples": [" a", ""]}, r"samples\[1\]"),
    ],
)
def test_an_empty_text_beside_the_responses_is_named(tmp_path, layout, changes, name):
    with pytest.raises(UserError, match=f"line 1: '{name}' is empty"):
        one(tmp_path, PAIR | changes, layout)


@pytest.mark.parametrize("layout", [layouts.RATIONALES, layouts.REVISED])
def test_what_is_compared_must_be_a_pair(tmp_path, layout):
    record = DEMO | {"rationale": " a"}
    with pytest.raises(UserError, match="the objective needs 'chosen' and 'rejected'; got 'compl"):
        one(tmp_path, record, layout)


# Tokens


@pytest.mark.parametrize("layout", NEW)
def test_what_is_scored_is_the_responses_and_their_end(tmp_path, layout):
    (item,) = load(tmp_path, NEW[layout] | {"prompt": "Hi"}, layout=layout)
    scored = "".join(text for text, is_scored in preview(item, PLAIN) if is_scored)
    row = one(tmp_path, NEW[layout], layout)
    assert scored == "".join(f"{response}</s>" for response in row.responses)
    whole = [PLAIN.decode([*item.prompt, *ids]) for ids in (b.ids for b in item.branches)]
    prompts = row.prompts or ("Q",) * len(row.responses)
    assert whole == [f"Hi{p[1:]}{y}</s>" for p, y in zip(prompts, row.responses, strict=True)]


def test_a_prompt_of_its_own_shares_what_it_begins_with(tmp_path):
    (item,) = load(tmp_path, WHY | {"prompt": words(5)}, layout=layouts.RATIONALES)
    assert PLAIN.decode(item.prompt) == words(5)
    context = [int(branch.scored.argmax()) for branch in item.branches]
    assert context[:2] == [0, 0]
    assert context[2] > 0


def test_a_pair_is_cut_as_without_its_rationale(tmp_path):
    record = WHY | {"prompt": "Could you say ", "chosen": "Hi", "rejected": "no"}
    (item,) = load(tmp_path, record, layout=layouts.RATIONALES)
    (alone,) = load(tmp_path, record)
    assert texts(item)[:3] == texts(alone)


def test_truncation_keeps_what_is_scored(tmp_path):
    limits = {"max_prompt": 8, "max_length": 16}
    data = load(tmp_path, WHY | {"prompt": words(5)}, layout=layouts.RATIONALES, **limits)
    (item,) = data
    assert len(item.prompt) + item.branches[2].scored.argmax() == 8
    assert len(item.prompt) + max(len(b.ids) for b in item.branches) <= 16
    assert all(len(item.scored(r)) > 0 for r in range(3))
    assert PLAIN.decode(item.branches[0].ids).endswith(" yes</s>")
    assert data.counts.prompt_cut == 1
    whole = [*item.prompt, *item.branches[2].ids][:8]
    assert "answer better?\n\n".endswith(PLAIN.decode(whole)[-6:])


def test_a_long_prompt_of_its_own_is_named(tmp_path):
    limits = {"max_prompt": 8, "max_length": 16, "too_long": "error"}
    with pytest.raises(UserError, match=r"prompt has \d+ tokens; data.max_prompt is 8"):
        load(tmp_path, WHY, layout=layouts.RATIONALES, **limits)


@pytest.mark.parametrize("layout", [layouts.RATIONALES, layouts.REVISED])
def test_a_pair_of_identical_responses_is_dropped(tmp_path, layout):
    same = NEW[layout] | {"rejected": PAIR["chosen"]}
    data = load(tmp_path, NEW[layout], same, layout=layout)
    assert (len(data), data.counts.dropped) == (1, {"identical responses": 1})


def test_cuts_of_samples_are_counted_together(tmp_path):
    record = {"prompt": "Hi", "completion": " no", "samples": [words(9), words(8), " yes"]}
    counts = load(tmp_path, record, layout=layouts.DISPREFERRED, max_prompt=2, max_length=5).counts
    assert counts.response_cut == {"rejected": 0, "samples": 2}


# Anchors


def value(name, policy, ref, **hyper):
    return float(OBJECTIVES[name].bind(**hyper)(policy=policy, ref=ref)[0].terms[0].total[0])


W, L, REF_W, REF_L, R = -12.3, -14.1, -13.0, -13.7, -20.0


def rationales(w, l, r):  # noqa: E741
    return Rationales(single_tokens(w), single_tokens(l), single_tokens(r))


@pytest.mark.parametrize(
    ("form", "more"),
    [("nll_sum", 0.5 * 20), ("nll_mean", 0.5 * 20), ("logsigmoid", np.logaddexp(0, 0.5 * 20))],
)
def test_rdpo_is_dpo_and_a_term_of_the_rationale(form, more):
    policy, ref = rationales(W, L, R), rationales(REF_W, REF_L, -1.0)
    dpo = value(
        "dpo",
        Pairs(single_tokens(W), single_tokens(L)),
        Pairs(single_tokens(REF_W), single_tokens(REF_L)),
    )
    np.testing.assert_allclose(dpo, np.logaddexp(0, -0.11), rtol=1e-6)
    got = value("rdpo", policy, ref, gamma=0.5, form=form)
    np.testing.assert_allclose(got, dpo + more, rtol=1e-6)


def test_d2o_of_one_sample_is_dpo_with_it_as_the_chosen_response():
    bad = [Dispreferred(single_tokens(x), single_tokens([y])) for x, y in ((L, W), (REF_L, REF_W))]
    pairs = [Pairs(single_tokens(w), single_tokens(x)) for w, x in ((W, L), (REF_W, REF_L))]
    np.testing.assert_allclose(value("d2o", *bad), value("dpo", *pairs), rtol=1e-6)


def test_d2o_at_the_reference_is_log_two():
    same = Dispreferred(single_tokens(L), single_tokens([W, R]))
    np.testing.assert_allclose(value("d2o", same, same), np.log(2), rtol=1e-6)


def test_d2o_averages_its_samples():
    policy, ref = (
        Dispreferred(single_tokens(-1.0), single_tokens(x)) for x in ([-5.0, -9.0], [-6.0, -6.0])
    )
    want = np.logaddexp(0, -0.3 * ((1.0 - 3.0) / 2))
    np.testing.assert_allclose(value("d2o", policy, ref, beta=0.3), want, rtol=1e-6)


def tabular(beta, better):
    """Log-probabilities of policy and reviser, by what they are solved for, over all responses.

    Args:
      beta: weight of the KL penalties.
      better: [n, n] P(response i beats response j).

    Returns:
      The reference [n] and [n, n] (of i revising j), then the solution.
    """
    rng, n = np.random.default_rng(0), len(better)
    ref, revised = rng.normal(size=n), rng.normal(size=(n, n))
    ref, revised = ref - np.logaddexp.reduce(ref), revised - np.logaddexp.reduce(revised, 0)
    tilted = revised + better / beta
    worth = np.logaddexp.reduce(tilted, 0)  # of revising j, / beta
    answer = ref - worth
    return ref, revised, answer - np.logaddexp.reduce(answer), tilted - worth


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_solution_of_srpo_has_no_loss(alpha):
    better = np.array([[0.5, 1.0, 0.7], [0.0, 0.5, 0.2], [0.3, 0.8, 0.5]])
    ref, revised, answer, reviser = tabular(0.3, better)

    def rows(y, a):
        logps = (y[0], y[1], a[0, 1], a[1, 0], a[1, 1], a[0, 0])
        return Revised(*map(single_tokens, logps))

    policy, reference = rows(answer, reviser), rows(ref, revised)
    assert value("srpo", policy, reference, beta=0.3, alpha=alpha) < 1e-11
    assert value("srpo", reference, reference, beta=0.3, alpha=alpha) == (1 + alpha) / 4


@pytest.mark.parametrize(
    ("name", "hyper"),
    [(name, hyper) for name in ("rdpo", "d2o", "srpo", "inpo") for hyper in HYPER[name]],
)
def test_every_form_equals_the_oracle(name, hyper):
    o = OBJECTIVES[name]
    case = draw(o, 5)
    want = oracle_value_and_grad(ORACLES[name], case, **hyper)
    assert_matches(value_and_grad(o, case, **hyper), want)


# Runs


def rows_of_kind(layout):
    pairs = map(h.pair, range(h.TRAIN))
    more = {
        layouts.RATIONALES: {"rationale": "sum"},
        layouts.DISPREFERRED: {"samples": ["1", "22"]},
    }
    return [p | more.get(layout, {}) for p in pairs]


@pytest.mark.parametrize(
    "name", ["d2o", *(pytest.param(k, marks=pytest.mark.slow) for k in ("rdpo", "srpo"))]
)
def test_a_recipe_trains(inputs, tmp_path, name):
    path = tmp_path / "rows.jsonl"
    h.write_rows(path, rows_of_kind(OBJECTIVES[name].layout))
    changes = {"path": str(path), "max_length": 64, "max_prompt": 48}
    changes = {f"stages__{name}__data__{key}": v for key, v in changes.items()}
    changes[f"stages__{name}__steps"] = 3
    h.run(h.recipe(inputs, tmp_path / "run", name, **changes), h.one_device())
    losses = [line["loss"] for line in h.metrics(tmp_path / "run" / name) if "loss" in line]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    if name != "rdpo":
        np.testing.assert_allclose(losses[0], {"srpo": 0.375, "d2o": np.log(2)}[name], rtol=1e-5)
