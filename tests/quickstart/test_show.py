import pytest

import jaxalign


@pytest.mark.slow
def test_a_world_whose_last_stage_trains_on_demonstrations_has_its_report(tmp_path, capsys):
    recipe = {
        "run": {"dir": str(tmp_path / "run")},
        "world": {"train": 16, "held_out": 8},
        "model": {"path": "{world}/model", "dtype": "float32"},
        "stages": {
            "sft": {
                "objective": {"name": "sft"},
                "data": {"path": "{world}/sft.jsonl", "max_length": 128},
                "batch_size": 8,
                "steps": 1,
            }
        },
    }
    jaxalign.train(recipe)
    said = capsys.readouterr().out
    assert "ranking of pairs" in said
    assert "reward accuracy" not in said
