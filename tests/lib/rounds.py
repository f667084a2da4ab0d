"""A recipe with rounds that sample, score, pair and train in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lib import runs as h

SCORER = """
def score(prompt, response, row):
    return float(sum(response.encode()) % 17) + len(row["given_chosen"])
"""
"""A function that reads the text and the row; its scores differ between most answers."""
PROMPTS, N, MAX_NEW, PART = 12, 4, 4, 16


def values(inputs: Path, folder: Path, *, repeat: int = 2, **changes: Any) -> dict[str, Any]:
    """The plain values of a recipe: rounds of answers, scores, pairs and dpo.

    Args:
      inputs: folder of `lib.runs.write_inputs`.
      folder: gets the file of the scorer; the run is in `run` in it.
      repeat: number of rounds.
      changes: settings of stages of a round, `answers__n=3` for its only section.
    """
    (folder / "scorer.py").write_text(SCORER)
    sections: dict[str, dict[str, Any]] = {
        "answers": {
            "prompts": f"{inputs}/pairs.jsonl",
            "limit": PROMPTS,
            "n": N,
            "max_new": MAX_NEW,
            "part": PART,
            "batch_size": 16,
        },
        "scores": {
            "data": "{answers}",
            "by": {"function": {"file": str(folder / "scorer.py"), "name": "score"}},
        },
        "pairs": {"data": "{scores}", "how": "best_worst", "unfinished": "keep"},
    }
    for path, value in changes.items():
        stage, option = path.split("__")
        sections[stage][option] = value
    kinds = {"answers": "sample", "scores": "score", "pairs": "pair"}
    stages: dict[str, Any] = {name: {kinds[name]: section} for name, section in sections.items()}
    recipe = h.values(inputs, folder / "run", "dpo", stages__dpo__data__path="{pairs}")
    dpo = recipe["stages"]["dpo"] | {"steps": 2, "save_every": 1}
    dpo["data"]["eval_path"] = f"{inputs}/held_out.jsonl"
    stages["dpo"] = dpo
    return recipe | {"stages": {"round": {"repeat": repeat, "stages": stages}}}
