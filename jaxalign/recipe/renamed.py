"""Settings that have another name now."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UserError

RENAMED = {
    "lora.quantise": "lora.quantize",
    "lora.rank_stabilised": "lora.rank_stabilized",
}
"""End of the dotted path of a setting that has another name now -> that name."""


def new_name(path: str) -> str | None:
    """The dotted path of a renamed setting under its new name; None: it was not renamed."""
    for old, new in RENAMED.items():
        if path.endswith(f".{old}"):
            return path.removesuffix(old) + new
    return None


def refuse_renamed(argv: Sequence[str]) -> None:
    """Raise a UserError for a flag of a setting that has another name now."""
    for flag in (arg.partition("=")[0] for arg in argv if arg.startswith("--")):
        path = flag[2:].replace("-", "_").replace(".no_", ".")
        if new := new_name(path):
            raise UserError(f"{flag}: renamed; write --{new.replace('_', '-')}")
