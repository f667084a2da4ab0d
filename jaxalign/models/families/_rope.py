"""Reading of rotary settings, which files spell in several ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ...errors import UserError, near_miss
from ...shown import shown
from ..spec import Rope
from ._fields import Fields

KEYS = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"),
    *("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
)
SCALINGS: dict[Literal["default", "linear", "llama3"], tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""The kinds of rotary scaling, and the settings that each needs."""


def read_rope(
    f: Fields, head_width: int, *, partial: float = 1.0, older: Mapping[str, str] | None = None
) -> Rope:
    """Rotary settings from either spelling: loose keys and `rope_scaling`, or `rope_parameters`.

    Args:
      f: the raw configuration.
      head_width: scalars per head.
      partial: rotated fraction of a head if the file gives none; 1 refuses any other fraction.
      older: further spellings of settings, by their newer name.

    Raises:
      UserError: a setting is unknown, missing, ill-typed or given twice.
    """
    given = _values(f, older or {})
    kind = given.get("rope_type", "default")
    if kind not in SCALINGS:
        raise UserError(
            f"{f.where}: rope_type '{kind}' is not implemented; {near_miss(str(kind), SCALINGS)}"
        )
    fraction = float(given.get("partial_rotary_factor", partial))
    if partial == 1.0 and fraction != 1.0:
        raise UserError(
            f"{f.where}: partial_rotary_factor {fraction} is not implemented for model_type "
            f"'{f.raw['model_type']}'; wanted 1"
        )
    if missing := [key for key in SCALINGS[kind] if key not in given]:
        raise UserError(
            f"{f.where}: rope_type '{kind}' needs {missing[0]}; got {given}; "
            "restore the original file"
        )
    original = 0
    if kind == "llama3":
        original = given.get("original_max_position_embeddings")
        original = original or f.get("max_position_embeddings", int)
    return Rope(
        theta=float(given.get("rope_theta", 10_000.0)),
        width=int(head_width * fraction),
        kind=kind,
        original_positions=int(original),
        **{key: float(given[key]) for key in SCALINGS[kind]},
    )


def _values(f: Fields, older: Mapping[str, str]) -> dict[str, Any]:
    """All rotary settings of the file under their newer names; one value for each, or an error."""
    loose = {key: f.get(key, float, None) for key in ("rope_theta", "partial_rotary_factor")}
    sources: list[dict[str, Any]] = [
        loose,
        f.get("rope_parameters", dict, {}),
        f.get("rope_scaling", dict, {}),
        {name: f.get(key, float, None) for name, key in older.items()},
    ]
    merged: dict[str, Any] = {}
    for source in sources:
        for key, value in source.items():
            if key not in KEYS:
                raise UserError(
                    f"{f.where}: rotary setting '{key}' is not implemented; {near_miss(key, KEYS)}"
                )
            if value is None:
                continue
            name = "rope_type" if key == "type" else key
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
            if name != "rope_type" and not number:
                raise UserError(f"{f.where}: {name}: got {shown(value)}, wanted a positive number")
            if merged.setdefault(name, value) != value:
                raise UserError(
                    f"{f.where}: {name} is given twice, {merged[name]} and {value}; keep one"
                )
    return merged
