from __future__ import annotations

import pytest

from jaxalign.errors import UserError
from jaxalign.report.metrics import read_metrics


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [r["step"] for r in read_metrics(path)] == [1]


def test_a_broken_line_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nwhat\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2: got 'what', wanted a JSON object"):
        read_metrics(path)


def test_a_step_too_large_for_an_integer_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1e999}\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 1"):
        read_metrics(path)
