"""Density ratios of prompts, for `bco_udm`: which prompts resemble prompts of desirable responses.

Jung et al. 2024, arXiv:2404.04656v1, "underlying distribution matching": a logistic regression
predicts from a prompt's embedding under the reference whether its response is desirable. Its odds
are the density ratio.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh

from .. import settings
from ..core.layouts import LABELED
from ..core.types import Array
from ..data.encode import Encoder
from ..data.read import read_records
from ..data.records import Record, template_columns
from ..data.spans import Chat
from ..data.tally import Tally
from ..errors import UserError
from ..files import check_out, write_text
from ..hf.open import open_model
from ..models.decoder import Model, Params
from ..settings import Data

ROUND = 64  # row lengths are multiples of this, tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Density:
    """Prompts, and the model that embeds them."""

    model: Annotated[str, tyro.conf.Positional]
    """Hugging Face folder or hub repository of the reference."""
    data: str
    """Labeled responses or pairs: .jsonl, .jsonl.gz or .parquet file, or a data set of the hub."""
    out: str
    """File to write: JSON lines of prompt, completion, label and density_ratio, and of tools,
    chat_template_kwargs and weight where the data have them."""
    split: str = "train"
    """Split to read, if `data` is on the hub."""
    max_prompt: int = 512
    """Maximum prompt length, tokens; longer prompts lose their beginning."""
    batch_size: int = 64
    """Prompts embedded at a time."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of parameters and matrix products."""
    mesh: settings.Mesh = dataclasses.field(default_factory=settings.Mesh)
    """Devices to spread the model and the prompts over."""


def write_ratios(folder: Path, settings: Density, mesh: Mesh) -> int:
    """Write a copy of the data with the density ratio of every prompt.

    Args:
      folder: folder of the reference model or of an adapter.
      settings: the data and the output; this function ignores `model` and `mesh`.
      mesh: the device mesh.

    Returns:
      The number of rows written.

    Raises:
      UserError: the checkpoint and the data do not fit, all labels are the same, or the output
        cannot be a file.
    """
    check_out(settings.out)
    data = Data(path=settings.data)
    rows = list(read_records(data, settings.data, settings.split, LABELED, Tally()))
    labels = np.array([row.label for row in rows])
    if len(set(labels)) < 2:
        raise UserError(
            f"{settings.data}: all labels are the same; add responses with the other label"
        )
    opened = open_model(folder, mesh, dtype=settings.dtype)
    encoder = Encoder(opened.tokenizer, stops=opened.stop)
    prompts = encoder.prompts([(row.where, _prompt(row)) for row in rows])
    longest = min(settings.max_prompt, opened.model.spec.max_positions)
    cut = [_checked(ids[-longest:], row) for ids, row in zip(prompts, rows, strict=True)]
    embedded = embeddings(opened.model, opened.params, cut, settings.batch_size)
    ratios = density_ratios(embedded, labels)
    lines = [
        {"prompt": row.prompt, "completion": row.responses[0], "label": bool(row.label)}
        | template_columns(row.tools, row.variables)
        | ({} if row.weight == 1 else {"weight": row.weight})
        | {"density_ratio": round(float(ratio), 6)}
        for row, ratio in zip(rows, ratios, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(Path(settings.out), text)
    return len(lines)


def _prompt(row: Record) -> str | Chat:
    return row.prompt if isinstance(row.prompt, str) else Chat(row.prompt, row.tools, row.variables)


def _checked(ids: np.ndarray, row: Record) -> np.ndarray:
    if not len(ids):
        raise UserError(f"{row.where}: 'prompt' is empty; it has no density ratio; drop the row")
    return ids


def embeddings(
    model: Model, params: Params, prompts: Sequence[np.ndarray], batch_size: int
) -> np.ndarray:
    """The final hidden state at the last token of each prompt, [N, D] float32."""

    @functools.partial(jax.jit, static_argnames="length")
    def embed(params: Params, ids: Array, ends: Array, length: int) -> Array:
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

    Its classes are balanced, so the ratios do not depend on the number of examples of a label.

    Args:
      embedded: embeddings [N, D].
      labels: [N], 1 desirable, 0 undesirable; both occur.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Without scaling, a few large dimensions of the hidden state get all of the penalty.
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    return np.exp(classifier.fit(embedded, labels).decision_function(embedded))
