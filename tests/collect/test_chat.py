"""The loop of a chat, with a model that is a function, and with a small one."""

import io
from itertools import repeat

import pytest
from lib import runs as h
from rich.console import Console

from jaxalign.collect import chat as chat_loop
from jaxalign.collect import slots
from jaxalign.collect.chat import Chatting, Reply, converse, lines_of, replier
from jaxalign.errors import UserError

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
)


def talk(*lines, answers=("one", "two", "three"), system=None, patient=False, whole=True):
    """(what the model was given, what was shown, what else was printed) of a chat."""
    given, shown, notes = [], [], io.StringIO()

    def reply(turns, number, say):
        given.append([(turn["role"], turn["content"]) for turn in turns])
        for piece in answers[number].partition("|"):
            say(piece)
        return Reply(answers[number], whole)

    console = Console(file=notes, width=200)
    converse(reply, lines, shown.append, console, system, patient=patient)
    return given, "".join(shown).splitlines(), notes.getvalue()


def test_every_answer_is_given_all_turns_before_it():
    given, shown, _ = talk("a\n", "\n", "b\n")
    assert given == [[("user", "a")], [("user", "a"), ("assistant", "one"), ("user", "b")]]
    assert shown == ["one", "two"]


def test_a_reset_begins_a_chat_with_the_same_system_message():
    given, *_ = talk("a", "/reset", "b", system="s")
    assert given == [[("system", "s"), ("user", "a")], [("system", "s"), ("user", "b")]]


@pytest.mark.parametrize(("line", "first"), [("/system be kind", "be kind"), ("/system", None)])
def test_a_new_system_message_begins_a_chat(line, first):
    given, *_ = talk("a", line, "b", "/reset", "c", system="s")
    begun = [("system", first)] if first else []
    assert given[1:] == [[*begun, ("user", "b")], [*begun, ("user", "c")]]


def test_an_exit_ends_the_chat():
    assert talk("a", "/exit", "b")[1] == ["one"]


def test_a_message_after_a_space_may_begin_with_a_slash():
    assert talk(" /exit")[0] == [[("user", "/exit")]]


def test_an_unknown_command_is_refused_with_the_near_one():
    with pytest.raises(UserError, match=r"no command '/rest'; did you mean '/reset'\?"):
        talk("/rest")


def test_a_patient_chat_goes_on_after_a_mistake():
    given, _, notes = talk("a", "/rest", "b", patient=True)
    assert [turns[-1] for turns in given] == [("user", "a"), ("user", "b")]
    assert "no command '/rest'" in notes


def test_control_characters_of_an_answer_are_escaped():
    assert talk("a", answers=["\x1b[2J\tx\ny"])[1] == ["\\x1b[2J\tx", "y"]


def pieces(*texts):
    """What is said of a text that grows; the last is the whole."""
    said = []
    growing = chat_loop.Growing(said.append)
    for text in texts[:-1]:
        growing.add(text)
    growing.end(texts[-1])
    return said


def test_each_piece_of_an_answer_is_shown_once():
    assert pieces("a", "a b", "a b c") == ["a", " b", " c"]


def test_half_a_character_is_not_shown():
    assert pieces("a\ufffd", "aé", "aéb") == ["a", "é", "b"]


def test_a_space_that_the_decoder_takes_back_is_not_shown():
    assert pieces("a ", "a.") == ["a", "."]


def test_a_text_whose_beginning_has_changed_is_shown_again():
    assert pieces("ab", "cd") == ["ab", "\ncd"]


def test_an_answer_without_a_stop_token_is_said_to_be_cut():
    assert "cut at --max-new" in talk("a", whole=False)[2]
    assert talk("a")[2] == ""


def test_a_stream_that_is_not_utf8_is_refused():
    stream = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")
    with pytest.raises(UserError, match="standard input: not UTF-8"):
        list(lines_of(stream))


# With a model


@pytest.fixture(scope="module")
def model(inputs, tmp_path_factory):
    folder = h.copy_folder(inputs / "model", tmp_path_factory.mktemp("chat") / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def small(folder, said=None, **options):
    """`reply(turns, number)` of a small model; what it says while it draws is added to `said`."""
    settings = Chatting(model=str(folder), dtype="float32", **({"max_new": 4} | options))
    reply = replier(folder, settings, h.one_device())
    return lambda turns, number: reply(turns, number, ([] if said is None else said).append)


def chat(*texts):
    roles = ["user", "assistant"] * len(texts)
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


def test_an_answer_depends_on_the_seed_and_its_number(model):
    texts = [small(model, seed=seed)(chat("1+1="), n).text for seed, n in ((0, 1), (1, 0), (0, 0))]
    assert texts[0] == texts[1] != texts[2]


def test_the_pieces_of_an_answer_make_its_text(model):
    said = []
    text = small(model, said, max_new=20)(chat("1+1="), 0).text
    assert len(said) > 1
    assert "".join(said) == text


def test_a_chat_longer_than_the_positions_is_refused_with_the_remedy(model):
    with pytest.raises(UserError, match=r"chat: it has \d+ tokens; .* 64 positions; /reset begins"):
        small(model)(chat("1" * 60), 0)


def test_answers_to_chats_of_about_the_same_length_use_one_program(model):
    reply = small(model, max_new=3)
    reply(chat("1+1="), 0)
    before = slots.advance._cache_size()
    for n, text in zip(range(1, 4), repeat("2+2="), strict=False):
        reply(chat(*[text] * (2 * n - 1)), n)
    assert slots.advance._cache_size() == before


def test_a_model_without_a_chat_template_is_refused(inputs):
    with pytest.raises(UserError, match="has no chat template; give one in --chat-template"):
        small(inputs / "model")
