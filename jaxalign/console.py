"""The console of the command line: what it prints is text, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from .shown import escaped


class Terminal(Console):
    """A console that escapes control characters and leaves brackets as they are.

    Where nobody reads the output it raises `BrokenPipeError`, as `print` does.
    """

    def __init__(self, **options: Any):
        """Take the options of `rich.console.Console`; markup and names of emoji are off."""
        super().__init__(markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments of a renderable, their control characters escaped."""
        for segment in super().render(renderable, options):
            # The control codes of rich itself, as those of a live view, are no text.
            if segment.control is None and not segment.text.isprintable():
                segment = Segment(escaped(segment.text, keep="\n\t"), segment.style)
            yield segment

    def on_broken_pipe(self) -> None:
        """Pass the error on; rich itself would end the process."""
        raise
