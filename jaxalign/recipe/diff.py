"""What changed between two recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two `resolved` recipes differ: `dotted.path: value before -> value now`."""
    old, new = dict(leaves(before)), dict(leaves(now))
    pairs = {k: (old.get(k, "absent"), new.get(k, "absent")) for k in old | new}
    return [f"{k}: {a} -> {b}" for k, (a, b) in pairs.items() if a != b]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values inside nested mappings, each with its dotted path."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
