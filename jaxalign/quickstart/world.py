"""The quickstart's small world: questions whose answers have a known reward.

A question asks for one of a few dozen facts, in one of many wordings. An answer is put together
from three choices: right or wrong, polite or rude, short or rambling. So the true reward of any
text can be computed, and a model of half a million parameters learns the world in a minute.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..errors import UserError

FACTS = {  # relation: subject and answer, subject and answer, ...
    "capital": "France Paris, Italy Rome, Spain Madrid, Japan Tokyo, Egypt Cairo, Norway Oslo, "
    "Peru Lima, Cuba Havana",
    "opposite": "hot cold, cold hot, up down, down up, big small, small big, old new, new old",
    "colour": "grass green, snow white, coal black, blood red, gold yellow, milk white, sea blue, "
    "ruby red",
}
OPENINGS = ("", "Hello! ", "Hi. ", "So: ", "Please: ", "Quick: ", "Tell me: ", "Well: ")
WORDINGS = ("what is the {relation} of {subject}?", "the {relation} of {subject}?")

POLITE, RUDE, RAMBLING = "Gladly! ", "Duh. ", " Or so they say, I guess."
CHANCES = {"correct": 0.7, "polite": 0.5, "short": 0.5}  # of each quality in a demonstration
WEIGHTS = {"correct": 0.5, "polite": 0.25, "short": 0.25}
SHORT, LONG = 16, 28  # bytes: up to `SHORT` an answer is short, from `LONG` on not at all
PAD, END = "<|pad|>", "<|eos|>"


class Question(NamedTuple):
    """A prompt, its right answer, and every answer to questions of its kind."""

    prompt: str
    right: str
    answers: tuple[str, ...]


@functools.cache
def questions() -> dict[str, Question]:
    """Every question of the world, by prompt."""
    found = {}
    for relation, text in FACTS.items():
        facts = dict(fact.split() for fact in text.split(", "))
        answers = tuple(sorted(set(facts.values())))
        for (subject, right), opening, wording in itertools.product(
            facts.items(), OPENINGS, WORDINGS
        ):
            prompt = opening + wording.format(relation=relation, subject=subject)
            found[prompt] = Question(prompt, right, answers)
    return found


def parts(prompt: str, answer: str) -> dict[str, float]:
    """How good an answer is, part by part, each in [0, 1].

    correct: 1 if, of all answers to questions of this kind, it holds the right one alone.
    polite: 1 if it holds the polite phrase and not the rude one.
    short: 1 up to 16 bytes, falling evenly to 0 at 28.
    All are 0 for a blank answer.

    Raises:
      UserError: the prompt is no question of this world.
    """
    if prompt not in questions():
        raise UserError(
            f"reward: {prompt!r} is no question of the quickstart's world; "
            "ask one of its held_out.jsonl"
        )
    if not answer.strip():
        return dict.fromkeys(WEIGHTS, 0.0)
    question = questions()[prompt]
    named = set(re.findall(r"\w+", answer)) & set(question.answers)
    polite = POLITE.strip() in answer and RUDE.strip() not in answer
    length = len(answer.encode("utf-8", errors="replace"))
    return {
        "correct": float(named == {question.right}),
        "polite": float(polite),
        "short": min(max((LONG - length) / (LONG - SHORT), 0.0), 1.0),
    }


def reward(prompt: str, answer: str) -> float:
    """True reward in [0, 1]: 0.5 correct + 0.25 polite + 0.25 short; see `parts`."""
    return sum(WEIGHTS[name] * value for name, value in parts(prompt, answer).items())


def make_data(folder: Path, *, seed: int, train: int, held_out: int) -> dict[str, Path]:
    """Write the world's three data sets as JSON lines; the same seed writes the same bytes.

    Args:
      folder: made if missing.
      seed: seed of every random choice.
      train: rows of `sft.jsonl` {prompt, completion} and of `pairs.jsonl` {prompt, chosen,
        rejected}. Demonstrations are of mixed quality; the responses of a pair are two such, the
        one of higher reward chosen.
      held_out: rows of `held_out.jsonl` {prompt, chosen, rejected}, each of another question; no
        question in it is in the other two, though the facts it asks for are.

    Returns:
      The paths, by the names "sft", "pairs" and "held_out".

    Raises:
      UserError: `held_out` leaves less than half of the questions for training.
    """
    rng = np.random.default_rng(seed)
    every = list(questions().values())
    if 2 * held_out > len(every):
        raise UserError(
            f"held_out: got {held_out}, wanted at most {len(every) // 2}, half of the questions "
            "of the quickstart's world; ask for fewer"
        )
    order = rng.permutation(len(every))
    kept, known = order[:held_out], order[held_out:]
    asked = [every[i] for i in rng.choice(known, size=2 * train)]
    rows = {
        "sft": [{"prompt": q.prompt, "completion": _answer(rng, q)} for q in asked[:train]],
        "pairs": [_pair(rng, q) for q in asked[train:]],
        "held_out": [_pair(rng, every[i]) for i in kept],
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(r) + "\n" for r in rows[name]), encoding="utf-8")
    return paths


def make_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single bytes to a Hugging Face folder.

    The ids 0 to 255 are the bytes (in the order of their printable stand-ins), 256 pads, 257 ends.
    It adds no token of its own; decoding what it encoded gives the text back.
    """
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (PAD, END)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def model_config() -> dict[str, Any]:
    """The `config.json` of the tiny model: Llama, 2 layers, width 128, 0.46 million parameters."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 258,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": 257,
        "pad_token_id": 256,
        "dtype": "float32",
    }


def _answer(rng: np.random.Generator, question: Question) -> str:
    correct, polite, short = (rng.random() < chance for chance in CHANCES.values())
    wrong = [a for a in question.answers if a != question.right]
    word = question.right if correct else rng.choice(wrong)
    return (POLITE if polite else RUDE) + f"{word}." + ("" if short else RAMBLING)


def _pair(rng: np.random.Generator, question: Question) -> dict[str, str]:
    while True:
        answers = [_answer(rng, question) for _ in range(2)]
        worse, better = sorted(answers, key=lambda answer: reward(question.prompt, answer))
        if reward(question.prompt, better) > reward(question.prompt, worse):
            return {"prompt": question.prompt, "chosen": better, "rejected": worse}
