"""The inputs of every side of the race: pairs of token ids on disk, and the settings of a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxalign.models.families import read_config
from jaxalign.models.spec import Dense, Experts, Softmax, Spec

BETA = 0.1
CLIP = 1.0  # largest global gradient norm
MATMUL_SIDE, MATMUL_TIMES = 2048, 4  # square matrices, and how many a step multiplies
MATMUL_FLOPS = MATMUL_TIMES * 2 * MATMUL_SIDE**3


class Terms(NamedTuple):
    """The settings that differ between the race on the CPU and the race on a GPU."""

    batch: int  # pairs a step
    prompt: int  # longest, tokens
    response: int  # longest, tokens
    rate: float  # constant learning rate of AdamW: betas 0.9 and 0.999, eps 1e-8, no decay

    @property
    def length(self) -> int:
        """Longest sequence, tokens."""
        return self.prompt + self.response


CPU = Terms(8, 160, 96, 1e-4)
GPU = Terms(16, 512, 256, 1e-6)  # small: bfloat16 rounding must not part the sides


class Pair(NamedTuple):
    """Token ids, each [length] int32."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens of the pair's two sequences, with the prompt in both."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def save(folder: Path, pairs: Sequence[Pair], terms: Terms) -> None:
    """Write the pairs and the terms of a race to its folder."""
    ids = [part for pair in pairs for part in pair]
    np.savez(folder / "pairs.npz", ids=np.concatenate(ids), lengths=[len(part) for part in ids])
    (folder / "terms.json").write_text(json.dumps(terms))


def terms(folder: Path) -> Terms:
    """The terms of a race."""
    return Terms(*json.loads((folder / "terms.json").read_text()))


def load(folder: Path) -> list[Pair]:
    """The pairs of a race, in order; every `Terms.batch` of them are a step."""
    with np.load(folder / "pairs.npz") as file:
        parts = np.split(file["ids"], np.cumsum(file["lengths"])[:-1])
    return [Pair(*parts[i : i + 3]) for i in range(0, len(parts), 3)]


def batches(folder: Path) -> list[list[Pair]]:
    """The pairs of a race, split into steps."""
    pairs, size = load(folder), terms(folder).batch
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def decoder(folder: Path) -> Spec:
    """The decoder of a race."""
    return read_config(json.loads((folder / "model" / "config.json").read_text()))


class Flops(NamedTuple):
    """The FLOPs of the forward pass over some pairs."""

    linear: int  # products with the matrices of the layers
    attention: int
    head: int


def useful_flops(spec: Spec, pairs: Sequence[Pair]) -> int:
    """The FLOPs that a step over the pairs needs at least: three times the forward pass."""
    return 3 * sum(forward_flops(spec, pairs))


def _inner_width(mlp: Dense | Experts) -> int:
    """Columns of all matrices of the input width that a feed-forward multiplies a token by."""
    if isinstance(mlp, Dense):
        return mlp.width * (3 if mlp.gated else 2)
    shared = _inner_width(mlp.shared) if mlp.shared else 0
    return mlp.count + mlp.router.chosen * _inner_width(mlp.expert) + shared


def forward_flops(spec: Spec, pairs: Sequence[Pair]) -> Flops:
    """The FLOPs that the forward pass over the pairs needs at least.

    Only real tokens count, a prompt once for both responses: 2 per parameter of the linear layers
    and token; 4 per scalar of the heads for each query and key that may see each other; 2 per
    parameter of the output matrix for each scored token. Norms, activations, softmax, the embedding
    and the update are left out.
    """
    matrices = heads = 0
    for layer in spec.layers:
        a = layer.attention
        assert isinstance(a, Softmax)  # as in all decoders of the benchmarks
        matrices += spec.width * a.head_width * 2 * (a.heads + a.kv_heads)
        matrices += spec.width * _inner_width(layer.mlp)
        heads += a.heads * a.head_width
    tokens = visible = scored = 0
    for prompt, *responses in pairs:
        p = len(prompt)
        tokens += p
        visible += p * (p + 1) // 2
        for r in map(len, responses):
            tokens += r
            visible += r * p + r * (r + 1) // 2
            scored += r if p else r - 1
    return Flops(
        linear=2 * matrices * tokens,
        attention=4 * heads * visible,
        head=2 * spec.width * spec.vocab * scored,
    )
