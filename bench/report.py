"""What the benches find, in Markdown: printed while it is measured, kept in bench/results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def table_head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table in Markdown."""
    return [table_row(columns), table_row(["---"] * len(columns))]


def table_row(cells: Sequence[str]) -> str:
    """One line of a table in Markdown."""
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


class Report:
    """One file of bench/results: a title, the command that it comes from, then text and tables."""

    def __init__(self, name: str, title: str, setting: str) -> None:
        """name: of the file, without .md; setting: the command, and what to know about its run."""
        self.name = name
        self.lines = [f"# {title}", "", setting, ""]

    def write(self, *lines: str) -> None:
        self.lines += lines

    def begin_table(self, *columns: str) -> None:
        self.lines += table_head(columns)

    def add_row(self, *cells: str) -> None:
        """A row of the last table. It is printed at once: a bench may take hours."""
        self.lines.append(table_row(cells))
        print(self.lines[-1], flush=True)

    def finish(self, kept: bool = True) -> None:
        """Prints the whole, and writes it to bench/results when it is `kept`."""
        text = "\n".join(self.lines) + "\n"
        print(text)
        if kept:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{self.name}.md").write_text(text, encoding="utf-8")
