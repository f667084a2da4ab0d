"""The packed batch that travels from the loader to the step: plain arrays in a named tuple."""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # numpy on the host, jax on devices; this module imports neither


class Batch(NamedTuple):
    """The examples of one update, packed into rows of tokens.

    Leading axes [n, S] everywhere: n microbatches, S shards of the batch (the product of the mesh
    axes `data` and `fsdp`). A cell [i, s] is self-contained: it holds b examples, all their
    responses, and every index below points inside the cell. K rows of L tokens, R responses per
    example, at most T scored tokens per response; B = n * S * b. A response is one branch after its
    prompt, or several that do not see one another. The logits of a cell exist one
    chunk at a time: a chunk holds the M scored positions of b/chunks examples.
    """

    ids: Array  # [n, S, K, L] int32  tokens; 0 where `segment` is 0
    positions: Array  # [n, S, K, L] int32  position in its sequence; goes on from the prompt's end
    segment: Array  # [n, S, K, L] int32  0 is padding; 1, 2, ... number the examples of a row
    branch: Array  # [n, S, K, L] int32  0 is the prompt; 1, 2, ... number what follows it
    source: Array  # [n, S, chunks, M] int32  index into K * L: what predicts the target
    target: Array  # [n, S, chunks, M] int32  the token, or the score of a reward head
    slot: Array  # [n, S, chunks, M] int32  index into b/chunks * R * T; its end: padding
    mask: Array  # [n, S, b, R, T] bool  True on scored tokens
    weight: Array  # [n, S, b] float32  weight of the example's loss; 0 for padding
    example: Array  # [n, S, b] int32  index of the example in its data set; -1 for padding
    columns: dict[str, Array]  # {name: [n, S, b] float32}; `scores` is [n, S, b, R]
    ref: dict[str, Array]  # {token statistic: [n, S, b, R, T] float32}; empty if not cached
    start: dict[str, Array]  # the same under the weights that the stage starts from
