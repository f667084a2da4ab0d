"""The report of a run, made from its folder alone: a page with figures, and a terminal view.

It imports no training code, and needs neither jax nor a device.
"""

from .page import write_report
from .terminal import terminal

__all__ = ["terminal", "write_report"]
