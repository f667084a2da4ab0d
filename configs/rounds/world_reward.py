"""The scorer of the small world: its true reward, from 0 to 1."""

from typing import Any

from jaxalign.quickstart import world


def reward(prompt: str, response: str, row: dict[str, Any]) -> float:
    """0.5 for the right answer, 0.25 for a polite one, up to 0.25 for a short one."""
    return world.reward(prompt, response)
