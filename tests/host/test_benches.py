"""The benches are started by hand and seldom: that each one can still be started, and be found."""

from __future__ import annotations

import importlib

import pytest
import torch

from bench import magicface_step, magicstyle
from bench.step_cost import Scale, figures_alone
from devkit.pack import ROOT

FOLDER = ROOT / "bench"
TINY = Scale(latent=8, channels=32, steps=3, dtype=torch.float32)
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


@pytest.mark.parametrize("mode", ["plain", "live", "kept"])
def test_a_step_of_magicface_can_be_measured(mode):
    assert all(figure > 0 for figure in magicface_step.measure(2, mode, TINY))


@pytest.mark.parametrize("mode", ["plain", *magicstyle.ROWS])
def test_a_step_of_magicstyle_can_be_measured(mode):
    assert all(figure > 0 for figure in magicstyle.measure(mode, TINY))
