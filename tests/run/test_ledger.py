"""The ledger of a stage: a change of any input is refused, or accepted and written down."""

import json
import re

import pytest
from lib import runs as h
from lib.checkpoints import edit_json

from jaxalign.errors import UserError
from jaxalign.run import open_stage
from jaxalign.run.export import newest_state
from jaxalign.run.ledger import accepted_changes, settle
from jaxalign.run.tracking import Tracker
from jaxalign.run.train import train

MESH = h.one_device()


class Crash(Exception):  # noqa: N818
    pass


def swap_responses(inputs):
    file = inputs / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    h.write_rows(file, [r | {"chosen": r["rejected"], "rejected": r["chosen"]} for r in rows])


def drop_rows(inputs):
    file = inputs / "pairs.jsonl"
    h.write_rows(file, [json.loads(line) for line in file.read_text().splitlines()[:16]])


def change_held_out(inputs):
    h.write_rows(inputs / "held_out.jsonl", [h.pair(i) for i in range(3, 16)])


def swap_token_ids(inputs):
    file = inputs / "model" / "tokenizer.json"
    about = json.loads(file.read_text())
    vocab = about["model"]["vocab"]
    one, two = "y", "z"
    vocab[one], vocab[two] = vocab[two], vocab[one]
    file.write_text(json.dumps(about))


def change_epsilon(inputs):
    edit_json(inputs / "model" / "config.json", rms_norm_eps=0.1)


def change_start(inputs):
    h.edit_tensors(inputs / "model", lambda t: t["model.norm.weight"].__iadd__(1))


def change_reference(inputs):
    h.edit_tensors(inputs / "reference", lambda t: t["model.norm.weight"].__iadd__(1))


def change_template(inputs):
    (inputs / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")


LIVE = {"stages__dpo__reference": {"mode": "live"}}
WITH_PATH = {"stages__dpo__reference": {"mode": "live", "path": "reference"}}
LORA = LIVE | {"stages__dpo__lora": {"rank": 2}}
CASES = [
    (swap_responses, "sft", {}, "tokens of the training data"),
    (drop_rows, "sft", {}, "tokens of the training data"),
    (change_held_out, "sft", {}, "tokens of the held-out data"),
    (swap_token_ids, "sft", {}, "tokenizer"),
    (change_epsilon, "sft", {}, "config.json of the start"),
    (change_template, "sft", {}, "chat template"),
    (change_start, "sft", {}, "weights of the start"),
    (swap_responses, "dpo", LIVE, "tokens of the training data"),
    (change_start, "dpo", LIVE, "weights of the start"),
    (change_reference, "dpo", WITH_PATH, "weights of the reference"),
    (swap_responses, "dpo", LORA, "tokens of the training data"),
    (change_start, "dpo", LORA, "weights of the start"),
]


def begun(folder, name, changes):
    """Inputs of a stage and its recipe, after a crash at its third update of four."""
    inputs = h.write_inputs(folder / "inputs")
    h.copy_folder(inputs / "model", inputs / "reference")
    text = json.dumps(changes).replace('"reference"}', f'"{inputs / "reference"}"}}')
    held_out = {f"stages__{name}__data__eval_path": f"{inputs}/held_out.jsonl"}
    steps = {f"stages__{name}__steps": 4}
    given = json.loads(text) | held_out | steps
    return inputs, h.recipe(inputs, folder / "run", name, **given)


@pytest.fixture
def crashed(tmp_path, monkeypatch):
    def start(name, changes):
        inputs, recipe = begun(tmp_path, name, changes)
        log = Tracker.log

        def crash(self, at, metrics, *, evaluation=False):
            log(self, at, metrics, evaluation=evaluation)
            if at == 3:
                raise Crash

        with monkeypatch.context() as patched:
            patched.setattr(Tracker, "log", crash)
            with pytest.raises(Crash):
                h.run(recipe, MESH)
        return inputs, recipe

    return start


@pytest.mark.parametrize(("change", "name", "changes", "what"), CASES)
def test_a_changed_input_is_refused(tmp_path, change, name, changes, what):
    inputs, recipe = begun(tmp_path, name, changes)
    settle(h.prepared(recipe, name, MESH), h.QUIET, accept_changes=False)
    settle(h.prepared(recipe, name, MESH), h.QUIET, accept_changes=False)
    change(inputs)
    changed = h.prepared(recipe, name, MESH)
    with pytest.raises(UserError, match=rf"stage {name}: its inputs(.|\n)*{re.escape(what)} +SHA"):
        settle(changed, h.QUIET, accept_changes=False)
    settle(changed, h.QUIET, accept_changes=True)
    settle(changed, h.QUIET, accept_changes=False)
    (entry,) = accepted_changes(changed.folder)
    assert what in [c.name for c in entry.changes]


def test_a_run_resumes_with_changed_inputs_only_if_they_are_accepted(crashed):
    inputs, recipe = crashed("sft", {})
    before = (inputs / "pairs.jsonl").read_text()
    swap_responses(inputs)
    with pytest.raises(UserError, match="its inputs are not those that it began with"):
        h.run(recipe, MESH)
    for act in (open_stage.export_stage, open_stage.compute_reference):
        given = (inputs / "out",) if act is open_stage.export_stage else ()
        more = {"adapter": False} if given else {}
        with pytest.raises(UserError, match="its inputs are not those that it began with"):
            act(recipe, "sft", MESH, h.QUIET, *given, **more)
    (inputs / "pairs.jsonl").write_text(before)
    assert newest_state(h.prepared(recipe, "sft", MESH))[0] == 2
    swap_responses(inputs)
    model = train(recipe, MESH, h.QUIET, accept_changes=True)
    assert "with changed inputs: tokens of the training data." in (model / "README.md").read_text()


def test_a_finished_stage_is_not_evaluated_on_other_data(crashed):
    inputs, recipe = crashed("sft", {})
    h.run(recipe, MESH)
    change_held_out(inputs)
    with pytest.raises(UserError, match="tokens of the held-out data"):
        open_stage.evaluate_stage(recipe, "sft", MESH, h.QUIET)
    open_stage.evaluate_stage(recipe, "sft", MESH, h.QUIET, accept_changes=True)


def test_a_stage_of_a_version_without_a_ledger_gets_one(crashed, capsys):
    _, recipe = crashed("sft", {})
    folder = h.prepared(recipe, "sft", MESH).folder
    (folder / "inputs.json").unlink()
    text = h.run(recipe, MESH)
    assert "an older version began this stage, so its inputs were not compared" in text
    assert (folder / "inputs.json").exists()
