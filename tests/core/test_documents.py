"""JSON and YAML from outside: strict, and bounded in depth, size and time."""

import json
import time

import pytest

from jaxalign.documents import DEPTH, YAML_BYTES, from_json, from_yaml, refuse_pointer
from jaxalign.errors import UserError


def nested(depth, opening, closing, end=""):
    return opening * depth + end + closing * depth


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
"""Nine levels of nine: 3 GB as plain values."""
MERGED = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n" for i in range(1, 10)
)


YAML = {
    "aliases": (BOMB, "line 6: it has more than 100,000 values, aliases included"),
    "merged aliases": (MERGED, "more than 100,000 values, aliases included"),
    "an alias to itself": ("a: &a [*a]", "line 1: an alias refers to what contains it"),
    "lists": ("[" * 3000, "nests more than 100"),
    "mappings": ("{a: " * 3000, "nests more than 100"),
    "lists on one line": ("- " * 3000, "nests more than 100"),
    "nested by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 120)),
        "nests more than 100 lists and mappings, aliases included",
    ),
    "a long text": ("a: " + "x" * 10_000_000, "it has 10,000,003 bytes; the most is 262,144"),
    "a long integer": ("a: " + "9" * 5000, "line 1: '999.*999' is no int"),
    "a long hexadecimal": ("a: 0x" + "f" * 5000, "line 1: '0xfff.* is no int .too many digits"),
    "a date that is none": ("a: 2001-99-99", "line 1: '2001-99-99' is no timestamp"),
    "a tag that does not fit": ("a: !!bool x", "line 1: 'x' is no bool"),
    "a tag that runs code": ("!!python/object/apply:os.system [x]", "constructor for the tag"),
    "a key twice": ("a: 1\na: 2", "line 2: the key 'a' is given twice"),
    "a key that is a list": ("? [a]\n: b", "is not read as text; quote it"),
    "a control character": ("\x00", "unacceptable character"),
    "bytes that are no text": (b"\xff\xfea", "truncated data"),
}


@pytest.mark.parametrize("text, message", YAML.values(), ids=YAML)
def test_yaml_out_of_bounds_is_refused_within_a_second(text, message):
    began = time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        from_yaml(text)
    assert time.process_time() - began < 3
    assert len(str(error.value)) < 400


def test_anchors_and_merged_keys_of_a_usual_size_are_read():
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: *a\n"
    a = {"x": 1, "y": [1, 2]}
    assert from_yaml(text) == {"a": a, "b": a | {"x": 2}, "c": a}
    assert from_yaml(nested(DEPTH - 1, "[", "]"))
    assert len(text) < YAML_BYTES


JSON = [
    (nested(3000, "[", "]"), "nests more than 100"),
    (nested(3000, '{"a":', "}", "1"), "nests more than 100"),
    (nested(500, "[", "]"), "nests more than 100"),
    ("[" * 300_000, "nests more than 100"),
    ("9" * 5000, "an integer of 5,000 digits"),
    ("9" * 301, "an integer of 301 digits"),  # too large for a float
    ('{"a": 1, "a": 2}', "it has the key 'a' twice"),
    ('{"a": {"b": [1, Infinity]}}', r"'a\.b\[1\]' is Infinity, which is no number of JSON"),
    ('{"a": -Infinity}', "'a' is -Infinity"),
    ('{"a": NaN}', "'a' is NaN"),
    ('{"a": 1e400}', "'a' is Infinity"),
    ('{"%s": NaN}' % ("k" * 10_000), "kkk….* is NaN"),
    ("", "Expecting value"),
    (b"\xff", "codec can't decode"),
]


@pytest.mark.parametrize("text, message", JSON, ids=[message for _, message in JSON])
def test_json_out_of_bounds_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as error:
        from_json(text)
    assert len(str(error.value)) < 300


def test_json_in_bounds_is_read_as_it_is():
    value = {"a": [1, -2.5, 1e300, None, True, "x" * 1000], "b": {"[[": "{" * 200}}
    assert from_json(json.dumps(value)) == value
    assert from_json(b"\xef\xbb\xbf[1]") == [1]
    assert from_json(nested(DEPTH, "[", "]"))


def test_records_of_the_program_may_have_numbers_that_are_not_finite():
    assert str(from_json('{"a": NaN, "b": -Infinity}', finite=False)) == "{'a': nan, 'b': -inf}"


def test_a_pointer_of_git_lfs_is_named_with_the_command_that_helps(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(UserError, match=r"a pointer of Git LFS.*`git lfs pull`"):
        refuse_pointer(file)
