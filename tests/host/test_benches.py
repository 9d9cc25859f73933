"""The benches are started by hand and seldom: that each one can still be started, and be found."""

from __future__ import annotations

import importlib

import pytest

from bench.step_cost import figures_alone
from devkit.pack import ROOT

FOLDER = ROOT / "bench"
BENCHES = sorted(
    path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_explains_itself(name, monkeypatch, capsys):
    bench = importlib.import_module(f"bench.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        bench.main()
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"python -m bench.{name}" in text


def test_every_module_is_named_in_the_readme_of_its_folder():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in FOLDER.glob("*.py") if f"`{path.stem}`" not in readme] == []


def test_a_figure_of_a_process_that_failed_says_why():
    with pytest.raises(
        RuntimeError, match=r"(?s)bench\.nowhere --one plain ended with 1:.*nowhere"
    ):
        figures_alone("bench.nowhere", "--one", "plain")
