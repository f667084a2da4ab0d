"""Token ids word by word are those of the whole text."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lib.tokenizers import SENTENCE, make_tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxalign.data.encode import Encoder
from jaxalign.data.words import LONGEST, Words, check_pieces, cuts_at_edges, plain_ids
from jaxalign.errors import UserError

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    SENTENCE,
    "It's  2024, don't\n\n panic! 12 345 6789 ... <|x|> a  b\tc é à",
    "日本 語 x 1 , . '",
]


def split(expression, behavior="isolated"):
    return pre_tokenizers.Split(Regex(expression), behavior)


def byte_level(**options):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


STEPS = {
    "gpt2": [byte_level()],
    "llama3": [split(LLAMA3), byte_level(use_regex=False)],
    "qwen2": [split(LLAMA3.replace("{1,3}", "")), byte_level(use_regex=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), byte_level()],
}


def make(steps, normalizer=None, added=("<|x|>",)):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


MADE = {name: make(steps) for name, steps in STEPS.items()}
MADE["nfc"] = make(STEPS["qwen2"], normalizers.NFC())
KNOWN = {name: Words(tokenizer) for name, tokenizer in MADE.items()}
PIECES = st.sampled_from(
    [
        *"aé1'.,!-\u0301\u00a0\u3000\u2028\u200b日한\r\n\t",
        " ",
        "  ",
        "'s",
        "'LL",
        "<|x|>",
        "12",
        " 3",
    ]
)


@pytest.mark.parametrize("name", MADE)
@given(st.lists(st.one_of(PIECES, st.characters(exclude_categories=["Cs"])), max_size=24))
@settings(max_examples=300, deadline=None)
def test_words_have_the_ids_of_the_text(name, pieces):
    text = "".join(pieces)
    assert cuts_at_edges(MADE[name])
    assert KNOWN[name].ids([text]) == plain_ids(MADE[name], [text])


def test_a_word_after_an_edge_is_tokenized_once(monkeypatch):
    asked = []
    words = Words(MADE["gpt2"])
    words.ids(["Hi there you", "you are there"])
    monkeypatch.setattr(
        "jaxalign.data.words.plain_ids",
        lambda tokenizer, texts: asked.extend(texts) or plain_ids(tokenizer, texts),
    )
    assert words.ids(["Hi there"]) == plain_ids(MADE["gpt2"], ["Hi there"])
    assert asked == ["Hi"]


def edited(edit):
    about = json.loads(MADE["llama3"].backend_tokenizer.to_str())
    edit(about)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(about)))


@pytest.mark.parametrize(
    "tokenizer",
    [
        make([split(LLAMA3 + r"|\p{L}+ \p{L}+"), byte_level(use_regex=False)]),
        make([split(LLAMA3, "merged_with_next"), byte_level(use_regex=False)]),
        make([byte_level(use_regex=False)]),
        make([pre_tokenizers.ByteLevel(add_prefix_space=True)]),
        make([pre_tokenizers.Metaspace()]),
        make(STEPS["gpt2"], normalizers.NFKC()),
        make(STEPS["gpt2"], added=["a b"]),
        edited(lambda about: about["added_tokens"][0].update(rstrip=True)),
        edited(lambda about: about["model"].update(dropout=0.1)),
    ],
    ids=[
        "regex",
        "behavior",
        "no regex",
        "prefix",
        "metaspace",
        "nfkc",
        "added",
        "strip",
        "dropout",
    ],
)
def test_tokenizers_without_such_edges_are_told_apart(tokenizer):
    assert not cuts_at_edges(tokenizer)


def test_a_prompt_of_ten_megabytes_without_a_space_is_refused_at_once():
    encoder = Encoder(make_tokenizer())
    began = time.process_time()
    with pytest.raises(UserError, match=r"row 3: has a text of 10,000,000 characters .* drop"):
        encoder.prompts([("row 3", "x" * 10_000_000)])
    assert time.process_time() - began < 2


def test_a_long_text_of_words_is_no_piece():
    texts = ["word " * LONGEST]
    check_pieces(texts, "row 3", by_words=True)
    with pytest.raises(UserError, match="row 3"):
        check_pieces(texts, "row 3", by_words=False)
