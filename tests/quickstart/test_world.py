from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.errors import UserError
from jaxalign.quickstart import world

PROMPT = "Hi. what is the capital of France?"
LONG = " And so on and so forth, my dear."


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    paths = world.make_data(tmp_path_factory.mktemp("world"), seed=3, train=2000, held_out=100)
    return {name: read(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    world.make_tokenizer(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def test_the_best_answer_has_reward_one():
    assert world.reward(PROMPT, "Gladly! Paris.") == 1.0


@pytest.mark.parametrize("worse", ["Gladly! Rome.", "Duh. Paris.", "Gladly! Paris." + LONG])
def test_a_wrong_rude_or_long_answer_has_less_reward(worse):
    assert world.reward(PROMPT, worse) < world.reward(PROMPT, "Gladly! Paris.")


def test_the_reward_is_the_weighted_sum_of_its_parts():
    assert world.parts(PROMPT, "Duh. Paris." + LONG) == {"correct": 1, "polite": 0, "short": 0}
    assert world.reward(PROMPT, "Duh. Paris." + LONG) == 0.5


def test_naming_every_answer_is_not_correct():
    assert world.parts(PROMPT, "Paris Rome")["correct"] == 0.0


def test_a_word_that_holds_the_answer_is_not_the_answer():
    assert world.parts(PROMPT, "Parisian")["correct"] == 0.0


def test_being_polite_and_rude_is_not_polite():
    assert world.parts(PROMPT, "Gladly! Duh. Paris.")["polite"] == 0.0


def test_shortness_falls_evenly_with_bytes():
    middle = (world.SHORT + world.LONG) // 2
    assert world.parts(PROMPT, "x" * middle)["short"] == 0.5


def test_a_blank_answer_has_no_reward():
    assert world.reward(PROMPT, " \n") == 0.0


@given(st.text(alphabet=st.characters()))
def test_the_reward_of_any_text_is_between_0_and_1(text):
    assert 0.0 <= world.reward(PROMPT, text) <= 1.0


@given(st.binary())
def test_the_reward_of_any_bytes_is_between_0_and_1(raw):
    assert 0.0 <= world.reward(PROMPT, raw.decode("utf-8", errors="surrogateescape")) <= 1.0


def test_an_unknown_prompt_is_refused():
    with pytest.raises(UserError, match=r"reward: 'Who\?' is no question of the quickstart's"):
        world.reward("Who?", "Me.")


def test_every_question_has_an_answer_of_full_reward():
    best = [world.reward(q.prompt, f"Gladly! {q.right}.") for q in world.questions().values()]
    assert best == [1.0] * len(best)


def test_the_data_have_the_rows_asked_for(data):
    assert {name: len(rows) for name, rows in data.items()} == {
        "sft": 2000,
        "pairs": 2000,
        "held_out": 100,
    }


def test_rows_have_the_columns_of_their_kind(data):
    columns = {name: {tuple(row) for row in rows} for name, rows in data.items()}
    pair = {("prompt", "chosen", "rejected")}
    assert columns == {"sft": {("prompt", "completion")}, "pairs": pair, "held_out": pair}


def test_chosen_has_the_higher_reward(data):
    for row in data["pairs"] + data["held_out"]:
        chosen, rejected = (world.reward(row["prompt"], row[k]) for k in ("chosen", "rejected"))
        assert chosen > rejected


def test_held_out_prompts_are_not_trained_on(data):
    trained = {row["prompt"] for name in ("sft", "pairs") for row in data[name]}
    assert not trained & {row["prompt"] for row in data["held_out"]}


def test_held_out_prompts_do_not_repeat(data):
    assert len({row["prompt"] for row in data["held_out"]}) == 100


def test_every_fact_held_out_is_also_trained_on(data):
    subjects = {name: {r["prompt"].split(" of ")[1] for r in rows} for name, rows in data.items()}
    assert subjects["held_out"] <= subjects["sft"]
    assert subjects["held_out"] <= subjects["pairs"]


@pytest.mark.parametrize("part", world.CHANCES)
def test_demonstrations_have_each_quality_as_often_as_declared(data, part):
    found = [world.parts(r["prompt"], r["completion"])[part] for r in data["sft"]]
    chance = world.CHANCES[part]
    error = np.sqrt(chance * (1 - chance) / len(found))
    assert abs(np.mean(found) - chance) < 4 * error


def test_texts_are_short_enough_for_a_quick_run(data):
    rows = [row for rows in data.values() for row in rows]
    prompts = [len(row["prompt"].encode()) for row in rows]
    answers = [len(row[k].encode()) for row in rows for k in row if k != "prompt"]
    assert max(prompts) <= 48
    assert max(answers) <= 64


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    first, again = (
        world.make_data(tmp_path / name, seed=1, train=50, held_out=10) for name in "ab"
    )
    assert [p.read_bytes() for p in first.values()] == [p.read_bytes() for p in again.values()]


def test_another_seed_writes_other_data(tmp_path):
    first, other = (
        world.make_data(tmp_path / str(seed), seed=seed, train=50, held_out=10) for seed in (1, 2)
    )
    assert all(first[name].read_bytes() != other[name].read_bytes() for name in first)


def test_too_many_held_out_questions_are_refused(tmp_path):
    with pytest.raises(UserError, match="held_out: got 1000, wanted at most 192"):
        world.make_data(tmp_path, seed=0, train=10, held_out=1000)


@given(text=st.text())
def test_decoding_gives_the_encoded_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_token_is_a_byte(tokenizer):
    text = "Gladly! é漢 \n<b>"
    assert len(tokenizer(text).input_ids) == len(text.encode())


def test_the_two_special_tokens_come_last(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (256, 257, 258)


def test_the_model_fits_the_tokenizer(tokenizer):
    from transformers import LlamaConfig

    config = LlamaConfig(**world.model_config())
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )


def test_the_config_is_plain_json():
    assert json.loads(json.dumps(world.model_config())) == world.model_config()
