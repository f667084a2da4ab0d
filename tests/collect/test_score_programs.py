import hashlib
import sys
import time

import pytest
from lib import runs as h

from jaxalign.collect.score import open_scorers, score_rows
from jaxalign.errors import RunError, UserError
from jaxalign.recipe.scorers import read_scorers

MESH = h.one_device()
ROWS = [
    {"prompt": "x", "responses": ["a", "bb", "ccc"], "id": 7},
    {"prompt": "y", "chosen": "dddd", "rejected": "e"},
]
LENGTHS = [[1, 2, 3], [4, 1]]


def opened(by):
    return open_scorers(read_scorers(by), MESH, "float32")[0]


def scored(by, rows=ROWS):
    """The scores of every row, and the report."""
    records, scorer = read_scorers(by), opened(by)
    found = score_rows([(f"row {i}", r) for i, r in enumerate(rows)], records, [scorer])
    pair = ("score_chosen", "score_rejected")
    return [r.get("scores") or [r[k] for k in pair] for r in found], scorer.report()


# Functions


def function(folder, body, name="f"):
    file = folder / "mine.py"
    file.write_text(body)
    return {"function": {"file": str(file), "name": name}}


def test_a_function_gets_prompt_response_and_row(tmp_path):
    by = function(tmp_path, "def f(prompt, response, row):\n    return len(response) + row['id']\n")
    assert scored(by, ROWS[:1]) == ([[8, 9, 10]], {})


def test_numbers_of_numpy_and_truths_are_scores(tmp_path):
    by = function(tmp_path, "import numpy as np\nf = lambda *_: np.float32(0.5)\n")
    assert scored(by, ROWS[:1])[0] == [[0.5] * 3]
    by = function(tmp_path, "f = lambda x, y, row: y == 'a'\n")
    assert scored(by, ROWS[:1])[0] == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def f(x, y, row):\n    return 1 / (len(y) - 2)\n",
            r"row 0: answer 1: .* line 2 failed: Zero",
        ),
        (
            "f = lambda x, y, row: row['gold']\n",
            "row 0: answer 0: .*line 1 failed: KeyError: 'gold'",
        ),
        ("f = lambda *_: None\n", "row 0: answer 0: .* gave None; wanted a finite number"),
        ("f = lambda *_: float('nan')\n", "gave nan; wanted a finite number"),
        ("f = lambda *_: '1'\n", "gave '1'; wanted a finite number"),
        ("def ff(): pass\n", "no function 'f'; did you mean 'ff'"),
        ("f = 3\n", "'f' is 3; wanted a function"),
        ("f = \n", "line 1: not valid Python"),
        ("import nothing_here\n", "running the file failed: ModuleNotFoundError"),
    ],
)
def test_a_function_that_fails_names_the_row_or_the_file(tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        scored(function(tmp_path, body))


def test_a_missing_file_of_a_function_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"nowhere\.py: No such file.*give the file of the function f"
    ):
        opened({"function": {"file": str(tmp_path / "nowhere.py"), "name": "f"}})


def test_the_fingerprint_of_a_function_is_of_its_file(tmp_path):
    by = function(tmp_path, "f = lambda *_: 0\n")
    digest = hashlib.sha256(b"f = lambda *_: 0\n").hexdigest()
    assert opened(by).fingerprint == {"file": digest, "name": "f", "weight": 1.0}


# Programs

LOOP = "import json, sys, time, os\nfor line in sys.stdin:\n    row = json.loads(line)\n"
LENGTH = LOOP + "    print(len(row['response']), flush=True)\n"


def program(folder, code, **options):
    file = folder / "program.py"
    file.write_text(code)
    return {"program": {"command": [sys.executable, str(file)], **options}}


def test_a_program_gives_a_number_for_each_answer_in_order(tmp_path):
    assert scored(program(tmp_path, LENGTH)) == (LENGTHS, {"failed": 0, "started": 1})


def test_a_program_gets_the_columns_of_the_row_and_may_give_an_object(tmp_path):
    code = "    print(json.dumps({'score': 1.5 * (sorted(row) == ['id', 'prompt', 'response'])}))\n"
    by = program(tmp_path, LOOP + code + "    sys.stdout.flush()\n")
    assert scored(by, ROWS[:1])[0] == [[1.5] * 3]


def test_texts_larger_than_a_pipe_pass(tmp_path):
    rows = [{"prompt": "x" * 300_000, "responses": ["a" * 200_000, "\u00e4\n\u2028"]}]
    assert scored(program(tmp_path, LENGTH), rows)[0] == [[200_000, 3]]


def test_a_program_that_floods_its_standard_error_goes_on(tmp_path):
    code = LENGTH.replace("    print", "    sys.stderr.write('x' * 300000)\n    print")
    assert scored(program(tmp_path, code))[0] == LENGTHS


FAULTS = {
    "hangs": ("time.sleep(60)", "gave no number within 1 seconds"),
    "ends": ("sys.exit(3)", "ended with exit code 3"),
    "is killed": ("os.kill(os.getpid(), 9)", "ended with exit code -9"),
    "raises": (
        "raise ValueError('\\x1b[2J no')",
        r"standard error ends with: .*ValueError: \\x1b\[2J no",
    ),
    "writes text": ("print('good', flush=True)", "wrote 'good'; wanted a number"),
    "writes nan": ("print('NaN', flush=True)", "wrote 'NaN'; wanted a number"),
    "writes a truth": ("print('true', flush=True)", "wrote 'true'; wanted a number"),
    "writes a huge number": ("print('1' + '0' * 290 + 'e99', flush=True)", "wanted a number"),
    "writes an integer beyond floats": ("print('1' + '0' * 309, flush=True)", "wanted a number"),
    "writes an object without a score": ("print('{}', flush=True)", "wrote '{}'; wanted a number"),
    "writes two lines": ("print('1\\n2', flush=True)", "wrote more than one line for a line"),
    "writes a long line": ("print('1' * 100000, flush=True)", "wrote a line of over 65,536 bytes"),
}


def faulty(folder, what, **options):
    """A program that does what it should but for the answer 'bb'."""
    good = "    else: print(len(row['response']), flush=True)\n"
    code = LOOP + f"    if row['response'] == 'bb': {what}\n{good}"
    return program(folder, code, timeout=1, **options)


@pytest.mark.parametrize(("what", "message"), FAULTS.values(), ids=FAULTS)
def test_a_failed_answer_is_an_error_that_names_the_row(tmp_path, what, message):
    with pytest.raises(RunError, match=f"row 0: answer 1: the program .*{message}"):
        scored(faulty(tmp_path, what))


@pytest.mark.parametrize("what", [what for what, _ in FAULTS.values()], ids=FAULTS)
def test_after_a_failed_answer_the_program_starts_again(tmp_path, what):
    found, report = scored(faulty(tmp_path, what, failed=-1))
    assert found == [[1, -1, 3], [4, 1]]
    assert report == {"failed": 1, "started": 2}


def test_a_program_that_answers_before_it_reads_is_refused(tmp_path):
    rows = [{"prompt": "x" * 300_000, "completion": "a"}]
    by = program(tmp_path, "import time\nprint(1, flush=True)\ntime.sleep(60)\n", timeout=2)
    with pytest.raises(RunError, match="wrote a line before it read its own"):
        scored(by, [*rows, *rows])


def test_a_line_after_the_last_number_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"wrote 'bye.*' after its last number"):
        scored(program(tmp_path, LENGTH + "print('bye')\n"))


def test_a_second_line_that_comes_late_is_an_error(tmp_path):
    late = LENGTH + "    time.sleep(0.2)\n    print(1, flush=True)\n"
    with pytest.raises(RunError, match=r"after its last number|more than one line"):
        scored(program(tmp_path, late))


def test_memory_is_limited(tmp_path):
    code = LOOP + "    print(len(bytearray(2 ** 30)), flush=True)\n"
    by = program(tmp_path, code, memory=512)
    with pytest.raises(RunError, match="MemoryError"):
        scored(by)
    assert scored(program(tmp_path, LENGTH, memory=512))[0] == LENGTHS


def test_children_of_a_program_end_with_it(tmp_path):
    code = LOOP + (
        "    import subprocess\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "    time.sleep(60)\n"
    )
    scored(program(tmp_path, code, timeout=2, failed=0), [{"prompt": "x", "responses": ["a"]}])
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid):
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(UserError, match=r"program.command: no program 'no-such-program'"):
        opened({"program": ["no-such-program"]})


def test_the_fingerprint_of_a_program_changes_with_its_files(tmp_path):
    before = opened(program(tmp_path, LENGTH)).fingerprint
    assert opened(program(tmp_path, LENGTH)).fingerprint == before
    assert opened(program(tmp_path, LENGTH + "\n")).fingerprint != before


@pytest.mark.parametrize("bound", [{"timeout": 99}, {"memory": 2**12}])
def test_the_fingerprint_has_the_bounds_of_a_program_where_failures_get_a_score(tmp_path, bound):
    def of(**options):
        return opened(program(tmp_path, LENGTH, **options)).fingerprint

    assert of(**bound) == of()
    assert of(failed=0, **bound) != of(failed=0)
