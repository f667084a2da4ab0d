"""Rows that say more than a chat would show, or show more than the row says."""

import pytest
from lib.chats import HEAD, PAIR, SCORED, bot, load, one, scored, system, user, wholes
from lib.rows import one as one_record
from lib.tokenizers import CHATML, END, make_tokenizer

from jaxalign.core import layouts
from jaxalign.errors import UserError


def template(source):
    return make_tokenizer(chat_template=source, eos_token=END)


def call(**arguments):
    function = {"name": "look", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"function": function}]}


SHOWS = CHATML.replace("m['content'] }}", "m.thinking }}{{ m['content'] }}")
NAMES = CHATML.replace(
    "{{ m['content'] }}",
    "{{ m['content'] }}{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}",
)
ONLY_USERS = CHATML.replace("for m in messages", "for m in messages if m.role in 'user assistant'")
DEMO = {"messages": [user("Hi"), bot("no"), user("you"), bot("yes")]}


@pytest.mark.parametrize("part", [{"text": {"value": "Hi"}}, {"text": None}, {"content": "Hi"}])
def test_a_part_of_a_content_without_a_text_is_refused(part):
    asked = [{"role": "user", "content": [{"type": "text", **part}]}]
    with pytest.raises(UserError, match=r"row 1: 'prompt'\[0\]: the text of a part is"):
        load(PAIR | {"prompt": asked})


def test_reasoning_is_read_from_the_key_that_has_it():
    answer = bot("yes", reasoning_content="", thinking="Hi")
    found = one(PAIR | {"chosen": answer}, tokenizer=template(SHOWS))
    assert scored(found)[0] == "Hiyes<|im_end|>"


def test_two_reasonings_of_one_answer_are_refused():
    with pytest.raises(UserError, match="different reasoning under two keys; keep one"):
        load(PAIR | {"chosen": bot("yes", reasoning="a", thinking="b")})


def test_a_response_that_repeats_a_begun_answer_is_noted():
    counts = load(PAIR | {"prompt": [user("Hi"), bot("ye")], "chosen": bot("yes")}).counts
    assert counts.noted["text of the prompt repeated by the response, and scored"] == 1


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}])
def test_an_answer_marked_as_context_is_not_scored(mark):
    first, _, *others = DEMO["messages"]
    row = {"messages": [first, bot("no", **mark), *others]}
    assert scored(one(row, layout=layouts.DEMOS)) == ["yes<|im_end|>"]


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"train": "no"}])
def test_an_answer_with_another_mark_is_refused(mark):
    row = {"messages": [user("Hi"), bot("no", **mark)]}
    with pytest.raises(UserError, match=r"row 1: 'messages'\[1\]: its '.*' is .*; wanted 1 or"):
        load(row, layout=layouts.DEMOS)


@pytest.mark.parametrize(
    "given", [{"tools": ["\ud800"]}, {"chat_template_kwargs": {"x": "\ud800"}}]
)
def test_half_a_surrogate_pair_that_a_template_shows_is_refused(given):
    tokenizer = template("{{ x }}{{ tools | tojson }}" + CHATML)
    with pytest.raises(UserError, match=r"row 1: chat template: .* surrogate pair, .*ud800"):
        load(PAIR | given, tokenizer=tokenizer)


def test_a_template_that_leaves_out_the_arguments_of_a_call_is_refused():
    with pytest.raises(UserError, match="row 1: chat template: it leaves out 'here' of the answ"):
        load(PAIR | {"chosen": call(where="here")}, tokenizer=template(NAMES))


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_template_that_leaves_out_a_turn_of_the_prompt_is_refused(role):
    asked = [{"role": role, "content": "Be kind"}, user("Hi")]
    with pytest.raises(
        UserError, match=f"leaves out 'Be kind', a turn of the {role}; .*data.roles"
    ):
        load(PAIR | {"prompt": asked}, tokenizer=template(ONLY_USERS))


def test_a_turn_that_a_template_writes_as_json_is_not_left_out():
    tokenizer = template(CHATML.replace("m['content'] }}", "m['content'] | tojson }}"))
    asked = [system('Say "é"'), user("Hi")]
    assert "Say \\" in wholes(one(PAIR | {"prompt": asked}, tokenizer=tokenizer))[0]


def test_an_answer_without_content_is_not_scored_as_none():
    answers = {"chosen": call(), "rejected": bot(None, thinking="Hi")}
    tokenizer = template(NAMES.replace("m['content'] }}", "m['content'] }}{{ m.thinking }}"))
    assert scored(one(PAIR | answers, tokenizer=tokenizer)) == [
        "look<|im_end|>",
        "Hi<|im_end|>",
    ]


def test_a_text_as_prompt_that_whole_chats_do_not_have_is_refused():
    chats = {name: [user("Hi"), *PAIR[name]] for name in ("chosen", "rejected")}
    with pytest.raises(UserError, match="row 1: 'prompt' is no turn of the chats in 'chosen'"):
        load({"prompt": "Be kind", **chats})
    assert scored(one({"prompt": "Hi", **chats})) == SCORED


def test_a_prompt_of_whole_chats_may_be_a_transcript_of_them():
    chats = {name: [user("Hi"), *PAIR[name]] for name in ("chosen", "rejected")}
    found = one({"prompt": "\n\nHuman: Hi\n\nAssistant:", **chats})
    assert wholes(found)[0].endswith(f"Hi<|im_end|>\n{HEAD}yes<|im_end|>")


def test_a_human_who_speaks_in_the_response_of_a_transcript_is_noted():
    asked = "\n\nHuman: Hi\n\nAssistant:"
    row = {"prompt": asked, "chosen": " a\n\nHuman: b\n\nAssistant: c", "rejected": " d"}
    assert load(row).counts.noted["a turn of the human in the response, and scored"] == 1


def test_a_null_under_the_other_name_of_a_column_is_not_replaced(tmp_path):
    row = {"prompt": "P", "question": None, "text": "Hi"}
    record = one_record(tmp_path, row, layouts.DEMOS, columns={"prompt": "question"})
    assert record.prompt == ""


def test_tools_that_a_template_does_not_show_are_noted():
    row = PAIR | {"tools": [{"type": "function", "function": {"name": "look"}}]}
    what = "tools that are not in the text"
    assert load(row).counts.noted[what] == 1
    assert load({"prompt": "Q", "completion": " A"} | row, layout=layouts.PAIRS).counts.noted[what]
    shows = template("{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML)
    assert what not in load(row, tokenizer=shows).counts.noted


@pytest.mark.parametrize("response", [END, f" {END}\n", [bot(END)]])
def test_a_response_that_is_only_a_stop_token_is_empty(response):
    with pytest.raises(UserError, match="row 1: 'chosen' is empty"):
        load(PAIR | {"chosen": response})
    counts = load(PAIR | {"chosen": response}, PAIR, skip_empty=True).counts
    assert counts.dropped == {"empty response": 1}


def test_a_weight_that_is_about_0_in_float32_is_refused():
    with pytest.raises(UserError, match="row 1: 'weight' is 1e-40; wanted 0, or at least 1e-30"):
        load(PAIR | {"weight": 1e-40})


def test_a_pair_that_a_cut_makes_equal_gives_no_labeled_examples():
    cut = {"prompt": "Q", "chosen": " yes" * 9 + " Hi", "rejected": " yes" * 9 + " no"}
    found = load(cut, cut | {"rejected": " no"}, layout=layouts.LABELED, max_length=8)
    assert found.counts.dropped == {"identical responses": 1}
    assert [item.columns["label"] for item in found] == [1, 0]
    assert found.counts.response_cut == {"response": 1}


AGAIN = (
    "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}\n{% else %}"
    "{% if loop.index0 and messages[loop.index0 - 1].role != 'user' %}(again) {% endif %}"
    "A: {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role == 'user' %}A: {% endif %}"
)


def test_a_header_that_no_generation_prompt_writes_is_noted():
    what = "learns text that the template writes before an answer"
    row = {"messages": [user("Hi"), bot("yes"), bot("no")]}
    counts = load(row, layout=layouts.DEMOS, tokenizer=template(AGAIN)).counts
    assert counts.noted[what] == 1
    row["messages"].insert(2, user("you"))
    counts = load(row, layout=layouts.DEMOS, tokenizer=template(AGAIN)).counts
    assert what not in counts.noted


def test_a_template_that_leaves_out_a_call_in_the_prompt_is_refused():
    asked = [user("Hi"), call(where="here"), {"role": "tool", "content": "green"}]
    with pytest.raises(UserError, match="it leaves out 'look', a turn of the assistant"):
        load(PAIR | {"prompt": asked})
    assert scored(one(PAIR | {"prompt": asked}, tokenizer=template(NAMES))) == SCORED


def test_a_template_that_leaves_out_an_earlier_answer_is_refused_but_not_for_its_reasoning():
    asked = [user("Hi"), bot("<think>green</think>grey"), user("you")]
    later = CHATML.replace("m['content']", "m.content.split('</think>')[-1]")
    assert scored(one(PAIR | {"prompt": asked}, tokenizer=template(later))) == SCORED
    only_last = later.replace("m.content", "(m.content if m.role == 'user' or loop.last else '')")
    with pytest.raises(UserError, match="it leaves out 'grey', a turn of the assistant"):
        load(PAIR | {"prompt": asked}, tokenizer=template(only_last))
