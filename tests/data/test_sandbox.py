"""The bounds of what a chat template may compute."""

import json
import time

import pytest

from jaxalign.data import sandbox
from jaxalign.data.template import ChatTemplate, TemplateError

CHAT = [{"role": "user", "content": "Hi"}]


def rendered(source):
    return ChatTemplate(source).render(CHAT).text


@pytest.mark.parametrize(
    "expression",
    [
        "('a\n' * 4000000) | indent(1000)",
        "('a\n' * 4000000) | indent('    ' * 100)",
        "('\t' * 4000000).expandtabs(1000)",
        "('a' * 99999).translate({97: 'b' * 99999})",
        "('ab ' * 3000000) | wordwrap(1)",
        "('http://a.b ' * 300000) | urlize",
        "('a ' * 130000) | wordwrap(1, wrapstring='b' * 8000000)",
        "('http://a.b ' * 20000) | urlize(rel='b' * 900000)",
        "('{0:>9999}' * 99999).format(1)",
        "('{a:>9999}' * 99999).format_map({'a': 1})",
        "'{0:>{1}}'.format(1, 10000000)",
        "('%9999d' * 9999) % 1",
        "'%*d' % (9000000, 1)",
        "1.5 | round(99999999, 'floor')",
        "messages | tojson(indent=1000000000)",
        "messages | tojson(indent=' ' * 9999999)",
        "messages | tojson(separators=('a' * 9999999, ':'))",
        "[[[[[[[[[[1]]]]]]]]]] | tojson(indent=999999)",
        "'a' | center(99999999)",
        "'a'.zfill(99999999)",
    ],
)
def test_a_value_that_would_be_too_large_is_refused_before_it_is_made(expression):
    with pytest.raises(TemplateError, match="makes a value of more than 16,777,216"):
        rendered("{{ " + expression + " }}")


@pytest.mark.parametrize(
    "source",
    [
        "{% set x = range(1000) | map('string') | map('center', 10000000) | list %}",
        "{% set n = namespace(x=[]) %}"
        "{% for i in range(999) %}{% set n.x = n.x + ['a' * 8000000] %}{% endfor %}",
    ],
)
def test_values_that_are_too_large_together_are_refused(source):
    with pytest.raises(TemplateError, match="makes values of more than 134,217,728"):
        rendered(source)


def test_an_indent_of_json_is_as_in_transformers():
    source = "{{ messages | tojson(indent=2) }}{{ messages | tojson(separators=(',', ':')) }}"
    compact = '[{"role":"user","content":"Hi"}]'
    assert rendered(source) == json.dumps(CHAT, indent=2) + compact


def test_large_numbers_are_values_like_any_other():
    given = "1700000000"
    source = (
        "{% macro shown(x) %}{{ x }}{% endmacro %}{{ shown(1700000000) }} "
        "{{ 1700000000 | string }} {{ 1700000000 | tojson }} {{ '%d' % 1700000000 }} "
        "{{ '{}'.format(1700000000) }} {{ [1700000000] | join(',') }}"
    )
    assert rendered(source).split() == [given] * 6


def test_texts_are_laid_out_as_in_jinja():
    source = (
        "{{ 'a\nb' | indent(2) }}|{{ 'a' | center(3) }}|{{ 'abc def' | wordwrap(3) }}|"
        "{{ 'a'.ljust(3) }}|{{ 1.25 | round(1) }}|{{ '{:>3}{{x}}'.format('é') }}|"
        "{{ '%3d%%' % 7 }}"
    )
    assert rendered(source) == "a\n  b| a |abc\ndef|a  |1.2|  é{x}|  7%"


def test_a_template_without_end_is_stopped_once(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    endless = "{% for i in range(9999) %}" * 3 + "{% endfor %}" * 3
    template = ChatTemplate(endless)
    began = time.monotonic()
    for _ in range(9):
        with pytest.raises(TemplateError, match=r"takes more than 0\.5 s"):
            template.render(CHAT)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("text", ["\ufdd0", "\ufdd1", "\ufdd0a\ufdd1", "\ufdd10"])
def test_texts_may_hold_any_character_next_to_marked_answers(text):
    """U+FDD0 and U+FDD1 are noncharacters, which programs use as marks of their own."""
    source = text + "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ x }}"
    found = ChatTemplate(source, {"x": text}).render([{"role": "user", "content": text}])
    assert found.text == text * 3
    assert found.marks == ((len(text), 2 * len(text)),)


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% generation %}{% generation %}{% endgeneration %}{% endgeneration %}", "nested"),
        (
            "{% set a %}{% generation %}b{% endgeneration %}{% endset %}{{ a[:17] }}",
            "block is cut off",
        ),
    ],
)
def test_marks_that_do_not_match_are_refused(source, message):
    with pytest.raises(TemplateError, match=message):
        rendered(source)
