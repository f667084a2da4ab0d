"""Reading of rotary settings, which files spell in several ways, and the frequencies they mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import UserError, near_miss
from ...shown import shown
from ..spec import Rope
from ._fields import Fields
from ._parts import KINDS, Kind

FACTORS = ("short_factor", "long_factor")
ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor")
ORIGINAL = "original_max_position_embeddings"
SLOPE = "llama_4_scaling_beta"
SCALINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
"""The kinds of rotary scaling, and the settings that each needs.

`dynamic` changes nothing up to `max_position_embeddings`, and longer sequences are refused.
"""
OPTIONS: dict[str, tuple[str, ...]] = {
    "llama3": (ORIGINAL,),
    "dynamic": ("alpha", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "longrope": (ORIGINAL, "factor", "attention_factor"),
    "yarn": (
        *(ORIGINAL, "beta_fast", "beta_slow", "attention_factor"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
}
"""The settings that a kind may have."""
KEYS = tuple(
    dict.fromkeys(key for keys in (ALWAYS, *SCALINGS.values(), *OPTIONS.values()) for key in keys)
)


def read_rope(
    f: Fields,
    head_width: int,
    *,
    theta: float = 10_000.0,
    partial: float = 1.0,
    any_partial: bool = False,
    interleaved: bool = False,
    original: int | None = None,
    older: Mapping[str, str] | None = None,
    absent: Mapping[str, Any] | None = None,
    unused: Collection[str] = (),
) -> Rope:
    """Rotary settings from either spelling: loose keys and `rope_scaling`, or `rope_parameters`.

    Args:
      f: the raw configuration.
      head_width: scalars per head.
      theta: base of the frequencies if the file gives none.
      partial: rotated fraction of a head if the file gives none.
      any_partial: whether the file may give another fraction.
      interleaved: whether neighboring dimensions are pairs.
      original: context length before scaling if the file gives none, tokens; None: the longest.
      older: further spellings of settings, by their newer name.
      absent: the settings if the file names no kind of scaling.
      unused: settings that change nothing in this family.

    Raises:
      UserError: a setting is unknown, missing, ill-typed or given twice.
    """
    given = settings(f, older, unused)
    if absent is not None and "rope_type" not in given:
        given = {**absent, **given}
    if original is not None:
        given.setdefault(ORIGINAL, f.get(ORIGINAL, int, original))
    return rope_of(
        f, given, head_width,
        theta=theta, partial=partial, any_partial=any_partial, interleaved=interleaved,
    )  # fmt: skip


def read_growing_rope(f: Fields, head_width: int, default: Mapping[str, Any]) -> Rope:
    """Rotary settings with a factor of queries that grows with their positions.

    Args:
      f: the raw configuration.
      head_width: scalars per head.
      default: the settings if the file gives none.

    Raises:
      UserError: see `read_rope`; or there is no slope or no step of the factor.
    """
    f.read.add("rope_parameters")
    own = f.get("rope_scaling", dict, {}) or f.get("rope_parameters", dict, default)
    outer = {"rope_theta": f.get("rope_theta", float, None)}
    given = merged(f, [outer, own], (SLOPE, "max_position_embeddings"))
    if missing := [key for key in (SLOPE, ORIGINAL) if key not in given]:
        raise UserError(
            f"{f.where}: rope_parameters: {missing[0]} is missing; restore the original file"
        )
    fixed = {"theta": 10_000.0, "partial": 1.0, "any_partial": False, "interleaved": False}
    rope = rope_of(f, given, head_width, **fixed)
    return dataclasses.replace(
        rope, query_slope=float(given[SLOPE]), query_step=int(_original(f, given))
    )


def read_ropes(f: Fields, head_width: int, *, full: float, sliding: float) -> dict[Kind, Rope]:
    """Rotary settings by kind of layer, from `rope_parameters` with a key for each kind.

    In the older spelling `rope_theta` and `rope_scaling` are for full attention, and
    `rope_local_base_freq` is the base of the others.

    Args:
      f: the raw configuration.
      head_width: scalars per head.
      full: base of the frequencies of full attention if the file gives none.
      sliding: base of the frequencies of layers with a window if the file gives none.

    Raises:
      UserError: see `read_rope`; or the settings are given without kinds.
    """
    local = f.get("rope_local_base_freq", float, None)
    nested = f.get("rope_parameters", dict, {})
    if nested.keys() >= set(KINDS):
        nested = {kind: nested[kind] for kind in KINDS}  # transformers reads nothing else either
    elif nested:
        # Releases of transformers read one for all in different ways, but for the defaults.
        if not merged(f, [nested]).items() <= {"rope_type": "default", "rope_theta": full}.items():
            raise UserError(
                f"{f.where}: rope_parameters: got {shown(nested)}; give the settings of "
                f"{' and '.join(KINDS)} each"
            )
        nested = {}
    outer = {"rope_theta": f.get("rope_theta", float, None)}
    given = {
        "full_attention": (outer, f.get("rope_scaling", dict, {})),
        "sliding_attention": ({"rope_theta": local},),
    }
    fixed = {"partial": 1.0, "any_partial": False, "interleaved": False}
    return {
        kind: rope_of(
            f, merged(f, (*given[kind], nested.get(kind, {}))), head_width, theta=theta, **fixed
        )
        for kind, theta in zip(KINDS, (full, sliding), strict=True)
    }


def rope_of(
    f: Fields, given: Mapping[str, Any], head_width: int, *,
    theta: float, partial: float, any_partial: bool, interleaved: bool,
) -> Rope:  # fmt: skip
    """The embedding that settings under their newer names mean; see `read_rope`."""
    kind = given.get("rope_type", "default")
    if kind not in SCALINGS:
        raise UserError(
            f"{f.where}: rope_type '{kind}' is not implemented; {near_miss(str(kind), SCALINGS)}"
        )
    fraction = float(given.get("partial_rotary_factor", partial))
    if fraction != partial and not any_partial:
        raise UserError(
            f"{f.where}: partial_rotary_factor {fraction} is not implemented for model_type "
            f"'{f.raw['model_type']}'; wanted {partial:g}"
        )
    if missing := [key for key in SCALINGS[kind] if key not in given]:
        raise UserError(
            f"{f.where}: rope_type '{kind}' needs {missing[0]}; got {dict(given)}; "
            "restore the original file"
        )
    width = int(head_width * fraction)
    if width % 2 or not 0 < width <= head_width:
        raise UserError(
            f"{f.where}: rotary width: got {width}, wanted an even number up to the head width "
            f"{head_width}; check partial_rotary_factor"
        )
    theta = float(given.get("rope_theta", theta))
    if kind == "dynamic" and "alpha" in given:  # of Hunyuan: another base, at every length
        theta *= given["alpha"] ** (width / (width - 2))
    base = theta ** (-np.arange(0, width, 2) / width)
    scale = 1.0
    if kind == "linear":
        base = base / given["factor"]
    if kind == "llama3":
        base = _llama3(base, given, _original(f, given))
    if kind == "yarn":
        base = _yarn(base, given, _original(f, given))
        scale = _yarn_scale(given)
    if kind == "longrope":
        return _longrope(f, base, given, interleaved)
    return Rope(tuple(base.tolist()), interleaved, scale)


def _longrope(f: Fields, base: np.ndarray, given: Mapping[str, Any], interleaved: bool) -> Rope:
    """Frequencies divided by factors, one for each; by others in long sequences.

    Ding et al. 2024, arXiv:2402.13753. The scale is sqrt(1 + log s / log original), with s the
    longest over the original length.
    """
    original = _original(f, given)
    longest = given.get("factor", f.get("max_position_embeddings", int) / original)
    scale = 1.0 if longest <= 1 else math.sqrt(1 + math.log(longest) / math.log(original))
    short, long = (_factors(f, given[key], len(base), key) for key in FACTORS)
    return Rope(
        tuple((base / short).tolist()), interleaved, float(given.get("attention_factor", scale)),
        tuple((base / long).tolist()), int(original),
    )  # fmt: skip


def _factors(f: Fields, values: Any, count: int, key: str) -> np.ndarray:
    if len(values) != count:
        raise UserError(
            f"{f.where}: {key} has {len(values)} factors for {count} frequencies; restore the "
            "original file"
        )
    return np.array(values, np.float64)


def _original(f: Fields, given: Mapping[str, Any]) -> float:
    """Context length before scaling, tokens; as in transformers, one outside wins."""
    longest = f.get("max_position_embeddings", int)
    return float(f.get(ORIGINAL, int, None) or given.get(ORIGINAL, longest))


def _llama3(base: np.ndarray, given: Mapping[str, Any], original: float) -> np.ndarray:
    """Low frequencies divided by `factor`, with a linear ramp to the high ones (Llama 3.1, 2024).

    A frequency is low when its wavelength exceeds original / low_freq_factor.
    """
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    turns = original * base / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0) if high != low else turns >= low
    return keep * base + (1 - keep) * base / given["factor"]


def _yarn(base: np.ndarray, given: Mapping[str, Any], original: float) -> np.ndarray:
    """Frequencies of few turns within the original context divided by `factor`.

    Peng et al. 2023, arXiv:2309.00071, Eq. 17 and 18, with a linear ramp over the dimensions
    between `beta_fast` and `beta_slow` turns, as in transformers.
    """
    # base = theta^(-2 i / width), so dimension i turns `turns` times where log base = log needed.
    per_pair = -math.log(base[1]) if len(base) > 1 else math.inf

    def pair(turns: float) -> float:
        return math.log(original / (2 * math.pi * turns)) / per_pair

    low, high = pair(given.get("beta_fast", 32.0)), pair(given.get("beta_slow", 1.0))
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * len(base) - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(len(base)) - low) / (high - low), 0, 1)
    return ramp * base / given["factor"] + (1 - ramp) * base


def _yarn_scale(given: Mapping[str, Any]) -> float:
    """Factor of cosines and sines."""

    def of(m: float) -> float:
        return 1.0 if given["factor"] <= 1 else 0.1 * m * math.log(given["factor"]) + 1.0

    if "attention_factor" in given:
        return float(given["attention_factor"])
    if "mscale" in given and "mscale_all_dim" in given:
        return of(given["mscale"]) / of(given["mscale_all_dim"])
    return of(1.0)


def settings(
    f: Fields, older: Mapping[str, str] | None = None, unused: Collection[str] = ()
) -> dict[str, Any]:
    """All rotary settings of the file under their newer names."""
    loose = {key: f.get(key, float, None) for key in ("rope_theta", "partial_rotary_factor")}
    sources: list[dict[str, Any]] = [
        loose,
        f.get("rope_parameters", dict, {}),
        f.get("rope_scaling", dict, {}),
        {name: f.get(key, float, None) for name, key in (older or {}).items()},
    ]
    return merged(f, [{k: v for k, v in s.items() if k not in unused} for s in sources])


def merged(
    f: Fields, sources: Sequence[Mapping[str, Any]], further: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Settings of several places under their newer names; one value for each, or an error.

    Args:
      f: the raw configuration.
      sources: the settings.
      further: names of settings that only some families have.

    Raises:
      UserError: a setting is unknown, ill-typed or given twice.
    """
    found: dict[str, Any] = {}
    for source in sources:
        for key, value in source.items():
            if key not in (*KEYS, *further):
                raise UserError(
                    f"{f.where}: rotary setting '{key}' is not implemented; {near_miss(key, KEYS)}"
                )
            if value is None:
                continue
            name = "rope_type" if key == "type" else key
            value = "longrope" if value == "su" else value  # its older name
            _check_value(f, name, value)
            if found.setdefault(name, value) != value:
                raise UserError(
                    f"{f.where}: {name} is given twice, {found[name]} and {value}; keep one"
                )
    return found


def _check_value(f: Fields, name: str, value: Any) -> None:
    def positive(x: Any) -> bool:
        return isinstance(x, (int, float)) and not isinstance(x, bool) and x > 0

    if name == "truncate" and not isinstance(value, bool):
        raise UserError(f"{f.where}: {name}: got {shown(value)}, wanted true or false")
    if name in FACTORS and not (isinstance(value, list) and value and all(map(positive, value))):
        raise UserError(f"{f.where}: {name}: got {shown(value)}, wanted positive numbers")
    if name not in ("rope_type", "truncate", *FACTORS) and not positive(value):
        raise UserError(f"{f.where}: {name}: got {shown(value)}, wanted a positive number")
