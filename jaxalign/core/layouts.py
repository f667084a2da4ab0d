"""The layouts of responses that objectives read: one record for each, free of jax.

`types` has a dataclass of statistics for each layout, and `data.fit` makes its examples.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which responses an example has, and what tells them apart."""

    name: str
    """The name of its dataclass in `types`."""
    responses: tuple[str, ...]
    """Names of the responses, in the order of an example."""
    kind: str
    """The kind of data it reads, for the documentation."""
    many: bool = False
    """Whether the last name is a list of responses, as long in every example."""
    borrowed: bool = False
    """Whether the last response belongs to another example, with another prompt."""
    frozen: tuple[str, ...] = ()
    """Names of the responses that no gradient flows through."""


DEMOS = Layout("Demos", ("response",), "demonstrations")
PAIRS = Layout("Pairs", ("chosen", "rejected"), "pairs")
LABELED = Layout("Labeled", ("response",), "labeled")
MISMATCHED = Layout(
    "Mismatched", ("response", "mismatched"), "labeled", borrowed=True, frozen=("mismatched",)
)
FORGET = Layout("Forget", ("response",), "forget")
RANKED = Layout("Ranked", ("responses",), "ranked", many=True)
RATIONALES = Layout("Rationales", ("chosen", "rejected", "rationale"), "pairs with rationales")
REVISED = Layout(
    "Revised",
    (
        "chosen",
        "rejected",
        "chosen_after_rejected",
        "rejected_after_chosen",
        "rejected_after_rejected",
        "chosen_after_chosen",
    ),
    "pairs",
)
DISPREFERRED = Layout("Dispreferred", ("rejected", "samples"), "to forget, with samples", many=True)

LAYOUTS = (
    DEMOS,
    PAIRS,
    LABELED,
    MISMATCHED,
    FORGET,
    RANKED,
    RATIONALES,
    REVISED,
    DISPREFERRED,
)
