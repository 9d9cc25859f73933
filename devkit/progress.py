"""How far a prompt is, on the terminal."""

from __future__ import annotations

import shutil
import sys

_LINES = 5
"""So many a node, where lines are not rewritten."""


class Progress:
    """One line that is rewritten on a terminal; elsewhere one for each node, and for each fifth of
    its steps."""

    def __init__(self) -> None:
        self.interactive = sys.stdout.isatty()
        self.title = ""
        self.width = 0
        self.parts = 0

    def node(self, title: str) -> None:
        self.title = title
        self.parts = 0
        if self.interactive:
            self._rewrite(title)
        else:
            print(title, flush=True)

    def step(self, value: float, maximum: float) -> None:
        if not maximum:
            return
        if self.interactive:
            done = min(30, int(30 * value / maximum))
            self._rewrite(
                f"[{'#' * done}{'-' * (30 - done)}] {value:.0f}/{maximum:.0f} {self.title}"
            )
        elif (parts := int(_LINES * value / maximum)) > self.parts:
            self.parts = parts
            print(f"{self.title}: {value:.0f} of {maximum:.0f}", flush=True)

    def end(self) -> None:
        if self.interactive:
            self._rewrite("")
            print("\r", end="", flush=True)

    def _rewrite(self, line: str) -> None:
        """With spaces over what was there: an old Windows console knows no escape sequences, and
        prints them."""
        line = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r{line.ljust(self.width)}", end="", flush=True)
        self.width = len(line)
