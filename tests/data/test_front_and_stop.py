"""Tokens in front of a text and at its end, for tokenizers of other kinds."""

import json

import pytest
from lib.chats import PAIR, load, one, scored, user, wholes
from lib.rows import pair
from lib.tokenizers import BOS, CHATML, END, EOS, START, make_tokenizer
from tokenizers import AddedToken, Tokenizer, normalizers, processors
from transformers import PreTrainedTokenizerFast

from jaxalign.core import layouts
from jaxalign.errors import UserError


def remade(change, **options):
    """The tokenizer of the tests after a change to it."""
    inner = Tokenizer.from_str(make_tokenizer().backend_tokenizer.to_str())
    inner = change(inner) or inner
    return PreTrainedTokenizerFast(tokenizer_object=inner, **({"eos_token": EOS} | options))


def in_front(*tokens):
    def change(inner):
        inner.post_processor = processors.TemplateProcessing(
            single=[*tokens, "$A", EOS],
            special_tokens=[(token, inner.token_to_id(token)) for token in (*tokens, EOS)],
        )

    return change


def unmarked(inner):
    about = json.loads(inner.to_str())
    for token in about["added_tokens"]:
        token["special"] = token["content"] not in (START, END)
    return Tokenizer.from_str(json.dumps(about))


def lowercase(inner):
    inner.normalizer = normalizers.Lowercase()
    inner.add_special_tokens([AddedToken(EOS, special=True, normalized=True)])


@pytest.mark.parametrize("front", [(), (BOS,), (START,), (START, BOS)])
def test_a_text_begins_with_what_its_tokenizer_puts_in_front(front):
    tokenizer = remade(in_front(*front))
    found = one(pair("Hi"), tokenizer=tokenizer)
    assert wholes(found, tokenizer) == [f"{''.join(front)}Hi{a}{EOS}" for a in (" yes", " no")]
    typed = one(pair("".join(front) + "Hi"), tokenizer=tokenizer)
    assert wholes(typed, tokenizer) == wholes(found, tokenizer)


@pytest.mark.parametrize(("most", "kept"), [(4, " there you"), (3, " you"), (2, ""), (1, None)])
def test_a_cut_keeps_what_is_in_front_of_a_prompt(most, kept):
    tokenizer = remade(in_front(START, BOS))
    found = one(pair(" Hi there you"), tokenizer=tokenizer, max_prompt=most, max_length=9)
    wanted = START if kept is None else f"{START}{BOS}{kept}"
    assert tokenizer.decode(found.prompt) == wanted


@pytest.mark.parametrize("rest", ["s>", "s> yes"])
def test_a_stop_token_across_the_end_of_the_prompt_is_refused(rest):
    with pytest.raises(UserError, match="row 1: the answer goes on after the token '</s>'"):
        load(pair("Hi</", rest), tokenizer=make_tokenizer())


def test_a_stop_token_that_normalizing_makes_is_refused():
    end = AddedToken(EOS, special=True, normalized=True)
    with pytest.raises(UserError, match="row 1: the answer goes on after the token '</s>'"):
        load(pair("Hi", " yes", " no</S> no"), tokenizer=remade(lowercase, eos_token=end))


def test_a_template_may_end_answers_with_an_added_token_that_is_not_marked_special():
    tokenizer = remade(unmarked, chat_template=CHATML)
    assert scored(one(PAIR, tokenizer=tokenizer), tokenizer) == [f"yes{END}", f"no{END}"]


def test_a_stop_token_of_the_checkpoint_that_is_not_marked_special_ends_a_text():
    tokenizer = remade(unmarked)
    stops = (tokenizer.convert_tokens_to_ids(END),)
    found = one(pair("Hi", f" yes{END}\n"), tokenizer=tokenizer, stops=stops)
    assert scored(found, tokenizer) == [f" yes{END}", f" no{EOS}"]
    with pytest.raises(UserError, match="row 1: 'chosen' goes on after the stop token"):
        load(pair("Hi", f" yes{END} no"), tokenizer=tokenizer, stops=stops)


def test_a_text_alone_that_goes_on_after_a_stop_token_is_noted_once():
    row = {"text": f"Hi{EOS} yes{EOS} no"}
    counts = load(row, tokenizer=make_tokenizer(), layout=layouts.DEMOS).counts
    assert counts.noted["text goes on after a stop token"] == 1


def test_a_stop_token_in_a_prompt_is_no_error():
    asked = [user(f"Hi{END}")]
    assert load(PAIR | {"prompt": asked}).counts.noted["control tokens in the text"] == 1
