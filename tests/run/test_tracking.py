from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import types

import pytest
from rich.console import Console

from jaxalign.errors import UserError
from jaxalign.report.metrics import read_metrics
from jaxalign.run import tracking
from jaxalign.run.tracking import Tracker


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80)


def run(folder, steps, *, total=10, console=None, **options):
    with Tracker(folder, stage="sft", total=total, console=console or plain(), **options) as t:
        for step in steps:
            t.log(step, {"loss": 1.0 / step})


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_line_holds_the_step_and_the_metrics(tmp_path):
    run(tmp_path, [2])
    assert [json.loads(line) for line in lines(tmp_path)] == [{"step": 2, "loss": 0.5}]


def test_an_evaluation_is_recorded_under_eval(tmp_path):
    with Tracker(tmp_path, stage="slpo", total=5, console=plain()) as t:
        t.log(5, {"loss": 0.25}, evaluation=True)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 5, "eval/loss": 0.25}]


def test_a_line_is_on_disk_before_the_next_step(tmp_path):
    with Tracker(tmp_path, stage="sft", total=5, console=plain()) as t:
        t.log(1, {"loss": 2.0})
        assert len(lines(tmp_path)) == 1


def test_array_scalars_are_accepted(tmp_path):
    import numpy as np

    with Tracker(tmp_path, stage="sft", total=5, console=plain()) as t:
        t.log(1, {"loss": np.float32(0.5)})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


def test_non_finite_values_are_valid_json(tmp_path):
    with Tracker(tmp_path, stage="sft", total=5, console=plain()) as t:
        t.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    record = json.loads(lines(tmp_path)[0], parse_constant=refuse)
    assert record == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}


def test_non_finite_values_are_read_back_as_numbers(tmp_path):
    with Tracker(tmp_path, stage="sft", total=5, console=plain()) as t:
        t.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(record["a"])
    assert (record["b"], record["c"]) == (math.inf, -math.inf)


def test_resuming_removes_the_lines_after_its_start(tmp_path):
    run(tmp_path, [1, 2, 3, 4])
    run(tmp_path, [3], start=2)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_resuming_keeps_the_other_lines_unchanged(tmp_path):
    with Tracker(tmp_path, stage="sft", total=5, console=plain()) as t:
        t.log(1, {"loss": 1 / 3, "b": math.nan})
        before = lines(tmp_path)
        t.log(2, {"loss": 0.1})
    run(tmp_path, [], start=1)
    assert lines(tmp_path) == before


def test_resuming_after_a_torn_line_appends_a_whole_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    run(tmp_path, [2], start=1)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_starting_over_removes_what_an_earlier_run_left(tmp_path):
    with Tracker(tmp_path, stage="sft", total=5, console=plain()) as t:
        t.log(0, {"loss": 2.0}, evaluation=True)
    run(tmp_path, [1])
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_no_partial_file_is_left(tmp_path):
    run(tmp_path, [1])
    run(tmp_path, [1])
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_disabled_tracker_writes_nothing(tmp_path):
    console = plain()
    with Tracker(tmp_path, stage="sft", total=5, console=console, enabled=False) as t:
        t.log(1, {"loss": 1.0})
        t.message("hello")
    assert list(tmp_path.iterdir()) == []
    assert console.file.getvalue() == ""


def test_plain_output_has_no_escape_codes(tmp_path):
    console = plain()
    with Tracker(tmp_path, stage="sft", total=2, console=console) as t:
        t.message("[bold]starts[/bold]")
        t.log(1, {"loss": 1.0})
        t.log(2, {"loss": 0.5}, evaluation=True)
    text = console.file.getvalue()
    assert "[bold]starts[/bold]" in text
    assert "\x1b" not in text
    assert "\r" not in text


def test_plain_output_is_the_first_and_the_last_line_of_a_fast_run(tmp_path):
    console = plain()
    run(tmp_path, range(1, 11), console=console)
    printed = console.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in printed] == ["sft 1/10", "sft 10/10"]


def test_plain_output_comes_again_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "PLAIN_SECONDS", 0.0)
    console = plain()
    run(tmp_path, range(1, 11), console=console)
    assert len(console.file.getvalue().splitlines()) == 10


def test_every_evaluation_is_printed(tmp_path):
    console = plain()
    with Tracker(tmp_path, stage="slpo", total=9, console=console) as t:
        for step in (1, 2, 3):
            t.log(step, {"loss": 1.0, "rewards/accuracies": 0.5}, evaluation=True)
    printed = console.file.getvalue().splitlines()
    assert printed == [f"slpo held-out {s}/9  loss 1  accuracy 0.5" for s in (1, 2, 3)]


def test_a_plain_line_names_the_rewards_of_chosen_and_rejected(tmp_path):
    console = plain()
    with Tracker(tmp_path, stage="dpo", total=1, console=console) as t:
        t.log(1, {"loss": 0.5, "rewards/chosen": 0.25, "rewards/rejected": -0.5})
    assert "reward_chosen 0.25  reward_rejected -0.5" in console.file.getvalue()


def test_a_plain_line_is_not_wrapped(tmp_path):
    console = plain()
    with Tracker(tmp_path, stage="a-stage-with-a-long-name" * 5, total=1, console=console) as t:
        t.log(1, dict.fromkeys(tracking.HEADLINES, 0.123456))
    assert len(console.file.getvalue().splitlines()) == 1


def test_the_time_left_is_the_pace_times_the_steps_left(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    console = plain()
    with Tracker(tmp_path, stage="sft", total=100, console=console) as t:
        for step in (1, 11):
            now[0] += 10.0
            t.log(step, {"loss": 1.0})
    assert console.file.getvalue().splitlines()[-1].endswith("left 0:01:29")


def test_the_time_left_does_not_count_the_compilation(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    console = plain()
    with Tracker(tmp_path, stage="sft", total=100, console=console) as t:
        t.log(1, {"loss": 1.0})
        with t.phases("compiling"):
            now[0] += 1000.0
        now[0] += 10.0
        t.log(11, {"loss": 1.0})
    assert console.file.getvalue().splitlines()[-1].endswith("left 0:01:29")


def test_the_live_view_shows_the_phase(tmp_path):
    console = terminal()
    with (
        contextlib.ExitStack() as longer,
        Tracker(tmp_path, stage="x", total=4, console=console) as t,
    ):
        longer.enter_context(t.phases("evaluating"))
    assert "evaluating" in console.file.getvalue()


def test_the_live_view_shows_the_metrics_of_training_and_evaluation(tmp_path):
    console = terminal()
    with Tracker(tmp_path, stage="slpo", total=40, console=console) as t:
        t.log(20, {"loss": 0.125, "time/tokens_per_second": 12345.0})
        t.log(20, {"loss": 0.25}, evaluation=True)
        t.message("saved step 20")
    text = console.file.getvalue()
    for part in ("20/40", "0.125", "0.25", "12,345", "held out", "saved step 20"):
        assert part in text


def test_the_terminal_is_given_back_after_an_error(tmp_path):
    console = terminal()

    def fail():
        with Tracker(tmp_path, stage="slpo", total=40, console=console):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    text = console.file.getvalue()
    assert text.rindex(show) > text.rindex(hide)


def test_tensorboard_gets_an_event_file(tmp_path):
    run(tmp_path, [1, 2], tensorboard=True)
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()


def test_a_missing_wandb_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'jaxalign\[wandb\]'"):
        run(tmp_path, [1], wandb="project")


class FakeWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))
        return self

    def define_metric(self, *names, **options):
        self.calls.append(("define_metric", options))

    def log(self, values):
        self.calls.append(("log", values))

    def finish(self, exit_code):
        self.calls.append(("finish", exit_code))

    def named(self, name):
        return [value for kind, value in self.calls if kind == name]


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_metrics_with_their_step(tmp_path, wandb):
    run(tmp_path, [2], wandb="project")
    assert wandb.named("log") == [{"step": 2, "loss": 0.5}]


def test_wandb_gets_the_project_and_the_config(tmp_path, wandb):
    run(tmp_path, [2], wandb="project", config={"seed": 1})
    (options,) = wandb.named("init")
    assert (options["project"], options["name"]) == ("project", "sft")
    assert options["config"] == {"seed": 1}


def test_a_resumed_run_continues_its_wandb_run(tmp_path, wandb):
    run(tmp_path, [1, 2], wandb="project")
    run(tmp_path, [3], wandb="project", start=2)
    run(tmp_path, [1], wandb="project")
    first, resumed, other = (options["id"] for options in wandb.named("init"))
    assert first == resumed != other


def test_wandb_learns_that_a_run_failed(tmp_path, wandb):
    def fail():
        with Tracker(tmp_path, stage="s", total=1, wandb="project", console=plain()):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert wandb.named("finish") == [1]
