"""Reports and command lines of the benches, which do not need ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench import report
from bench.command_line import bench_parser, parse_with_quick
from bench.report import Report, table_head, table_row

TABLE = """\
| | seconds | x |
| --- | --- | --- |
| core | 1.50 | 1.0 |
"""


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_table_is_markdown_with_a_column_that_may_have_no_name():
    rows = [*table_head(["", "seconds", "x"]), table_row(["core", "1.50", "1.0"])]
    assert "\n".join(rows) + "\n" == TABLE


def test_a_report_prints_rows_as_they_come_and_keeps_the_whole(results, capsys):
    speed = Report("speed", "Speed", "`python -m bench.speed`")
    speed.begin_table("", "seconds", "x")
    speed.add_row("core", "1.50", "1.0")
    assert capsys.readouterr().out == "| core | 1.50 | 1.0 |\n"
    speed.finish()
    text = (results / "speed.md").read_text(encoding="utf-8")
    assert text == f"# Speed\n\n`python -m bench.speed`\n\n{TABLE}"
    assert capsys.readouterr().out == text + "\n"


def test_a_report_that_is_not_kept_is_only_printed(results, capsys):
    Report("speed", "Speed", "`python -m bench.speed`").finish(kept=False)
    assert "# Speed" in capsys.readouterr().out and not results.exists()


@pytest.mark.parametrize(
    ("arguments", "seeds", "steps"),
    [([], 8, 50), (["--quick"], 1, 50), (["--quick", "--seeds", "3"], 3, 50)],
)
def test_quick_puts_small_values_in_the_place_of_defaults(monkeypatch, arguments, seeds, steps):
    parser = bench_parser("A bench.")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    args = parse_with_quick(parser, seeds=1)
    assert args == argparse.Namespace(seeds=seeds, steps=steps, quick="--quick" in arguments)
