"""Density ratios of prompts, for `bco_udm`: which prompts look like those of desirable responses.

Jung et al. 2024, arXiv:2404.04656v1, "underlying distribution matching": a logistic regression
tells, from a prompt's embedding under the reference, whether its response is desirable. Its odds
are the density ratio.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from .. import settings
from ..data.schema import Row, read_rows
from ..data.tokenize import encode_prompts
from ..errors import UserError
from ..hf import load
from ..hf.peft import base_folder, load_merged
from ..models.decoder import Model, Params, build
from ..models.families import read_config
from ..settings import Data

ROUND = 64  # rows are as long as a multiple of it, tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Density:
    """Which prompts, and the model that embeds them."""

    model: Annotated[str, tyro.conf.Positional]
    """Hugging Face folder or hub repository of the reference."""
    data: str
    """Labelled responses or pairs: .jsonl, .jsonl.gz or .parquet file, or a data set of the hub."""
    out: str
    """File to write: JSON lines of prompt, completion, label and density_ratio."""
    split: str = "train"
    """Split to read, where `data` is on the hub."""
    max_prompt: int = 512
    """Longest prompt, tokens; it is cut on the left."""
    batch_size: int = 64
    """Prompts embedded at a time."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of parameters and matrix products."""
    mesh: settings.Mesh = dataclasses.field(default_factory=settings.Mesh)
    """Devices to spread the model and the prompts over."""


def write_ratios(folder: Path, settings: Density, mesh: Mesh) -> int:
    """Write the data again, with the density ratio of every prompt; returns the rows written.

    Args:
      folder: of the reference.
      settings: `model` and `mesh` are not read here.
      mesh: of the devices.

    Raises:
      UserError: the checkpoint and the data do not fit, or all labels are alike.
    """
    data = Data(path=settings.data)
    rows = list(read_rows(data, settings.data, settings.split, "Labeled", Counter()))
    labels = np.array([row.label for row in rows])
    if len(set(labels)) < 2:
        raise UserError(
            f"{settings.data}: the labels are all alike; there is nothing to tell apart"
        )
    base = base_folder(folder)
    config = read_config(load.load_config(base))
    model = build(config, mesh, dtype=settings.dtype, param_dtype=settings.dtype)
    prompts = encode_prompts(load.load_tokenizer(base), [row.prompt for row in rows], settings.data)
    longest = min(settings.max_prompt, config.max_positions)
    cut = [_checked(ids[-longest:], row) for ids, row in zip(prompts, rows, strict=True)]
    embedded = embeddings(model, load_merged(folder, model), cut, settings.batch_size)
    ratios = density_ratios(embedded, labels)
    lines = [
        {"prompt": row.prompt, "completion": row.responses[0], "label": bool(row.label)}
        | {"density_ratio": round(float(ratio), 6)}
        for row, ratio in zip(rows, ratios, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path(settings.out).write_text(text, encoding="utf-8")
    return len(lines)


def _checked(ids: np.ndarray, row: Row) -> np.ndarray:
    if not len(ids):
        raise UserError(f"{row.where}: 'prompt' is empty; it has no density ratio; drop the row")
    return ids


def embeddings(
    model: Model, params: Params, prompts: Sequence[np.ndarray], batch_size: int
) -> np.ndarray:
    """The final hidden state at the last token of each prompt, [N, D] float32."""

    @functools.partial(jax.jit, static_argnames="length")
    def embed(params: Params, ids: Any, ends: Any, length: int) -> Any:
        inside = jnp.arange(length) < ends[:, None]
        positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
        segment = inside.astype(jnp.int32)
        encoded = model.forward(params, ids, positions, segment, jnp.zeros_like(ids))
        last = jnp.take_along_axis(encoded.hidden, ends[:, None, None] - 1, 1)[:, 0]
        return last.astype(jnp.float32)

    found = []
    with jax.set_mesh(model.mesh):
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            ends = np.array([len(ids) for ids in part] + [1] * (batch_size - len(part)), np.int32)
            length = -(-int(ends.max()) // ROUND) * ROUND
            rows = np.zeros((batch_size, length), np.int32)
            for row, ids in zip(rows, part, strict=False):
                row[: len(ids)] = ids
            found.append(np.asarray(embed(params, rows, ends, length))[: len(part)])
    return np.concatenate(found)


def density_ratios(embedded: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """p(desirable | prompt) / p(undesirable | prompt) of a logistic regression, [N].

    Its classes are balanced, so that how many examples each label has makes no difference.

    Args:
      embedded: [N, D].
      labels: [N], 1 desirable, 0 undesirable; both occur.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Scaled, or a few large dimensions of the hidden state take all of the penalty.
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    return np.exp(classifier.fit(embedded, labels).decision_function(embedded))
