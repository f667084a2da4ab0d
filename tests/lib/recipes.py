"""Recipes as plain values, for the tests of their reader."""

from __future__ import annotations


def minimal(**changes):
    """A recipe of one DPO stage, with other sections."""
    stage = {"objective": {"name": "dpo"}, "data": {"path": "p"}}
    return {"run": {"dir": "r"}, "model": {"path": "m"}, "stages": {"dpo": stage}} | changes


def with_stage(**changes):
    """`minimal` with other values in its stage."""
    return minimal(stages={"dpo": minimal()["stages"]["dpo"] | changes})
