"""Data of every kind that an objective reads, made from pairs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.core.layouts import PAIRS, RANKED
from jaxalign.data.read import read_records
from jaxalign.data.records import Record
from jaxalign.data.tally import Tally
from jaxalign.settings import Data

EDGE = 3.0  # nats that `f_dpg`'s target adds to a chosen response and takes from a rejected one


def read_pairs(data: Data) -> list[Record]:
    """The pairs of a data set, without empty responses if its settings say so."""
    return list(read_records(data, str(data.path), data.split, PAIRS, Tally()))


def write_kinds(folder: Path, data: Data) -> dict[str, Data]:
    """Write the pairs with every column that an objective can read, and as rankings.

    Returns:
      The settings to read them, by layout; "" for every other layout.
    """
    rng = np.random.default_rng(0)
    pairs, rankings = [], []
    for row in read_pairs(data):
        low, gap = rng.normal(), rng.uniform(0.5, 2.0)
        columns: dict[str, Any] = {
            "score_chosen": low + gap,
            "score_rejected": low,
            "preference": rng.uniform(0.8, 1.0),
            "preference_gap": rng.uniform(0.3, 0.9),
            "density_ratio": rng.uniform(0.5, 3.0),
            "baseline": 0.0,
            "margin": rng.uniform(0.5, 2.0),
            "rationale": " It answers the question.",
        }
        chosen, rejected = row.responses
        echo = row.prompt[-64:]
        columns["samples"] = [chosen, echo]
        pairs.append({"prompt": row.prompt, "chosen": chosen, "rejected": rejected} | columns)
        # The third response is the worst: it repeats the question.
        responses = [chosen, rejected, echo]
        rankings.append(
            {"prompt": row.prompt, "responses": responses, "scores": [low + gap, low, low - gap]}
        )
    return {
        "": write(folder / "pairs.jsonl", pairs, data),
        RANKED.name: write(folder / "rankings.jsonl", rankings, data),
    }


def write_samples(folder: Path, data: Data, logps: Mapping[str, np.ndarray]) -> Data:
    """Write responses as if the model had sampled them, with a target that prefers the chosen ones.

    Args:
      folder: the folder to write to; `chosen.jsonl` next to the samples has only the chosen ones.
      data: the pairs.
      logps: by index of the pair, the log-probabilities of its two responses under the model.
    """
    rows: dict[str, list[dict[str, Any]]] = {"samples": [], "chosen": []}
    for row in read_pairs(data):
        if row.where not in logps:
            continue
        for response, logp, edge in zip(
            row.responses, logps[row.where], (EDGE, -EDGE), strict=True
        ):
            columns = {"behavior_logp": float(logp), "target_logp": float(logp) + edge}
            rows["samples"].append({"prompt": row.prompt, "completion": response} | columns)
        rows["chosen"].append(rows["samples"][-2])
    held_out = write(folder / "chosen.jsonl", rows["chosen"], data)
    return dataclasses.replace(
        write(folder / "samples.jsonl", rows["samples"], data), eval_path=held_out.path
    )


def write(path: Path, rows: Sequence[Mapping[str, Any]], like: Data) -> Data:
    """Write rows of JSON; returns the settings to read them, with the limits of `data`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataclasses.replace(like, path=str(path.resolve()), limit=None)
