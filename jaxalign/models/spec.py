"""The mathematics of one decoder, layer by layer, as data. `models.families` reads it."""

from __future__ import annotations

import dataclasses
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "gelu_sigmoid", "silu", "relu"]


@dataclasses.dataclass(frozen=True)
class NormKind:
    """Normalization over the last axis, in float32: by the root mean square, unless centered."""

    eps: float
    centered: bool = False
    """Subtract the mean first, as layer norm does."""
    scale: Literal["w", "1 + w", "none"] = "w"
    """Factor of the normalized values, with a parameter w; none: 1, without a parameter."""
    bias: bool = False


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding of the leading dimensions of a head; the others pass through."""

    frequencies: tuple[float, ...]
    """Angle per position, radians, of each rotated pair of dimensions; none: no rotation."""
    interleaved: bool = False
    """Dimension 2i is paired with 2i + 1, rather than i with i + half the rotated width."""
    scale: float = 1.0
    """Factor of cosines and sines."""
    long: tuple[float, ...] = ()
    """Frequencies for sequences of more than `longest_short` tokens; none: the same."""
    longest_short: int = 0
    query_slope: float = 0.0
    """If s > 0, queries at position p have the factor 1 + s log(1 + floor((p + first) / step))."""
    query_step: int = 0
    query_first: int = 0


@dataclasses.dataclass(frozen=True)
class QkNorm:
    """Normalization of queries and keys."""

    kind: NormKind
    over: Literal["head", "own head", "projection"] = "head"
    """Each head; each head, with parameters of its own; or all heads together."""
    after_rope: bool = False


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Grouped-query attention."""

    heads: int
    kv_heads: int
    head_width: int
    scale: float
    """Factor of the products of queries and keys."""
    rope: Rope | None
    """None: no positions."""
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QkNorm | None = None
    window: int | None = None
    """Number of positions that a query sees, its own included; None: all."""
    chunk: int | None = None
    """If set, positions are cut into chunks of this number, and a query sees only its own chunk."""
    softcap: float | None = None
    """If set to c, scores s become c tanh(s / c) before the softmax."""
    sinks: bool = False
    """Whether each head has a learned score that takes part in the softmax, with a value of 0."""
    clip: float | None = None
    """If set, queries, keys and values are limited to this magnitude, before heads are split."""
    gate: bool = False
    """The output of each head is multiplied by sigmoid(x G), with a matrix G of its own."""


@dataclasses.dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: a narrow vector gives the keys and values of all heads."""

    heads: int
    rank: int
    """Width of the latent of keys and values."""
    query_rank: int | None
    """Width of the latent of queries; None: none."""
    plain_width: int
    """Scalars of a query or key that the latents give."""
    rope_width: int
    """Further scalars, which are rotated; in keys they are the same in all heads."""
    value_width: int
    scale: float
    """Factor of the products of queries and keys."""
    rope: Rope
    norm: NormKind
    """The norm of the latents."""
    bias: bool = False
    """Whether the layers that give latents, and the last one, have biases."""


@dataclasses.dataclass(frozen=True)
class Delta:
    """A gated delta net (Yang et al. 2024, arXiv:2412.06464): recurrent, without positions."""

    key_heads: int
    value_heads: int
    """A multiple of `key_heads`; neighboring heads share queries and keys."""
    key_width: int
    """Scalars per head of queries and keys."""
    value_width: int
    """Scalars per head of values."""
    taps: int
    """Tokens that the convolution of queries, keys and values reads."""
    activation: Activation
    """Function of the convolved queries, keys and values."""
    norm: NormKind
    """Norm of the outputs of each head."""


@dataclasses.dataclass(frozen=True)
class ShortConv:
    """A gated convolution over the last tokens, without positions."""

    taps: int
    """Tokens that it reads."""
    bias: bool = False


@dataclasses.dataclass(frozen=True)
class Dense:
    """down(act(gate(x)) * (up(x) + offset)), or down(act(up(x))) without a gate."""

    width: int
    activation: Activation
    gated: bool = True
    bias: bool = False
    limit: float | None = None
    """If set, the gate is at most this, and the magnitude of `up`."""
    offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class Router:
    """Which experts compute a token, and the factors of what they return; in float32."""

    chosen: int
    """Number of experts of a token: those with the largest scores."""
    score: Literal["softmax", "sigmoid", "softmax of the chosen"]
    """The scores, from the logits; the factors are the scores of the chosen experts."""
    normalized: bool = False
    """Whether the factors are divided by their sum."""
    scale: float = 1.0
    """Factor of the factors."""
    bias: bool = False
    correction: bool = False
    """Whether a vector, which is not trained, is added to the scores to choose, not to weigh."""
    groups: int = 1
    """Neighboring experts form this number of groups of equal size."""
    kept_groups: int = 1
    """Number of groups from which experts are chosen: those with the largest group scores."""
    group_score: Literal["largest", "largest two"] = "largest"
    """The score of a group: the sum of this number of its experts' scores."""


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture of experts (Shazeer et al. 2017, arXiv:1701.06538); no token is ever dropped."""

    count: int
    router: Router
    expert: Dense
    shared: Dense | None = None
    """Feed-forward of every token, added to the output of its experts."""
    shared_gate: bool = False
    """Whether the output of `shared` is multiplied by the sigmoid of a linear function."""
    scales_input: bool = False
    """Whether the factors multiply the inputs of the experts rather than their outputs."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """Attention and feed-forward, each added to the residual stream."""

    attention: Softmax | Latent | Delta | ShortConv
    mlp: Dense | Experts
    norm: NormKind
    places: Literal["before", "after", "around"] = "before"
    """Where the norms are: on the inputs of both parts, on their outputs, or on both."""
    parallel: Literal["no", "own norms", "one norm"] = "no"
    """Whether both parts read the same residual stream, through a norm each or through one."""
    residual_scale: float = 1.0
    """Factor of both outputs before they are added to the residual stream."""


@dataclasses.dataclass(frozen=True)
class LearnedPositions:
    """A vector for each position, added to the embedding of the token there."""

    rows: int
    first: int = 0
    """Row of position 0."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The mathematics of one decoder. Widths are counts of scalars."""

    family: str
    """`model_type` in `config.json`, the key of `FAMILIES`."""
    vocab: int
    width: int
    layers: tuple[Layer, ...]
    norm: NormKind
    """The final norm."""
    max_positions: int
    """Longest sequence the checkpoint was trained on, tokens."""
    tied: bool
    """The head is the transposed embedding table. Never true of a reward head."""
    embed_scale: float = 1.0
    """Factor of the embeddings."""
    positions: LearnedPositions | None = None
    logit_scale: float = 1.0
    """Factor of the logits; scores of a reward head have none."""
    logit_softcap: float | None = None
    """If set to c, logits z become c tanh(z / c); scores of a reward head do not."""
    scores: int = 0
    """Number of outputs of a reward head, which replaces the unembedding; 0: no reward head."""

    @property
    def routers(self) -> frozenset[Router]:
        """The routers of all layers with experts."""
        mlps = {layer.mlp for layer in self.layers}
        return frozenset(mlp.router for mlp in mlps if isinstance(mlp, Experts))

    @property
    def ropes(self) -> frozenset[Rope]:
        """The rotary embeddings of all layers."""
        found = {getattr(layer.attention, "rope", None) for layer in self.layers}
        return frozenset(rope for rope in found if rope)

    @property
    def switches(self) -> tuple[int, ...]:
        """Lengths beyond which a sequence has other rotary frequencies, tokens."""
        return tuple(sorted({rope.longest_short for rope in self.ropes if rope.long}))
