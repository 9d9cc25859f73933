"""The command lines of the benches."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def bench_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a bench's docstring, line by line as it stands there."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parse_with_quick(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The arguments, with a --quick among them, which puts the values of `quick` in the place of
    the other options' defaults."""
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the smallest setting, to see that it runs: nothing is kept in bench/results",
    )
    if parser.parse_args().quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def command_of(module: str) -> str:
    """The command that runs now, for a report."""
    return " ".join([f"python -m {module}", *sys.argv[1:]])
