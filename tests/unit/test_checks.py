"""The command `test`: what it runs, and what it says of it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from devkit import checks
from devkit.checks import Outcome, Step, run_steps
from devkit.pack import DevError

TESTS = """
import pytest

def test_good(): pass
def test_also_good(): pass
def test_bad(): assert False
@pytest.fixture
def broken():
    yield
    raise ValueError
def test_bad_twice(broken): assert False
@pytest.mark.skip
def test_left_out(): pass
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "CACHE", tmp_path / ".cache")
    monkeypatch.setattr(checks, "LOGS", tmp_path / ".cache" / "logs")


def python_step(name: str, code: str) -> Step:
    return Step(name, (sys.executable, "-c", code), {"WORD": "für"})


def pytest_step(folder: Path, *arguments: str) -> Step:
    (folder / "test_it.py").write_text(TESTS)
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py", *arguments)
    return Step("tests", command, {}, folder, is_pytest=True)


def test_what_a_step_says_is_printed_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import os, sys; print(os.environ['WORD']); sys.exit('no good')"
    outcomes = run_steps([python_step("one", code), python_step("two", "print(2)")])
    assert outcomes == {"one": Outcome(failed=1), "two": Outcome()}
    said = capsys.readouterr().out
    assert "für\nno good\n== one: FAILED after" in said
    assert "2\n== two: ok after" in said


def test_tests_are_counted_one_by_one(tmp_path: Path) -> None:
    outcomes = run_steps([pytest_step(tmp_path)])
    # The one that fails and then fails once more in its teardown counts as two.
    assert outcomes["tests"] == Outcome(passed=2, failed=3, skipped=1)


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [(["-k", "nothing"], Outcome()), (["--no-such-option"], Outcome(failed=1))],
)
def test_no_test_is_no_failure_but_a_crash_is(
    tmp_path: Path, arguments: list[str], outcome: Outcome
) -> None:
    assert run_steps([pytest_step(tmp_path, *arguments)])["tests"] == outcome


def test_the_last_line_is_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = {"a": Outcome(3, 0, 1), "b": Outcome()}, {"a": Outcome(3), "b": Outcome(failed=2)}
    assert checks.summary(good) == 0
    assert capsys.readouterr().out.splitlines() == ["3 passed, 0 failed, 1 skipped"]
    assert checks.summary(bad) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["failed: b", "3 passed, 2 failed"]


class Command:
    """The command `test` on a machine that has this or that; `steps` is what it would run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.steps: list[Step] = []
        self.host = folder / "ComfyUI"
        for host, version in ((self.host, "2"), (folder / "ComfyUI-1", "1")):
            (host / "comfy").mkdir(parents=True)
            (host / "main.py").touch()
            (host / "nodes.py").touch()
            (host / "comfyui_version.py").write_text(f'__version__ = "{version}"')
        monkeypatch.setattr(checks, "prepare_python", lambda *_, **__: Path("python"))
        monkeypatch.setattr(checks, "get_browser", lambda python: "chromium")
        monkeypatch.setattr(checks, "javascript_steps", lambda: [python_step("eslint", "")])
        monkeypatch.setattr(checks, "mypy_step", lambda *_: python_step("mypy", ""))
        monkeypatch.setattr(checks, "run_steps", self.run_steps)

    def run_steps(self, steps: list[Step]) -> dict[str, Outcome]:
        self.steps = steps
        return {step.name: Outcome(1) for step in steps}

    def run(self, **options: Any) -> int:
        values = {"comfyui": self.host, "python": None, "k": None, "quick": False, **options}
        return checks.test(argparse.Namespace(**values))

    def of(self, name: str) -> Step:
        [step] = [step for step in self.steps if step.name == name]
        return step


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.delenv("CI", raising=False)
    return Command(monkeypatch, tmp_path)


def test_everything_is_run_against_both_versions(command: Command) -> None:
    assert command.run(k="mask") == 0
    assert [step.name for step in command.steps] == [
        "ruff check",
        "ruff format",
        "eslint",
        "tests/host on ComfyUI 2",
        "tests/e2e on ComfyUI 2",
        "mypy",
        "tests/unit",
        "tests/host on ComfyUI 1",
    ]
    for step in command.steps:
        assert (step.command[-2:] == ("-k", "mask")) == step.is_pytest
        # The longest parts may not be one process each while a core waits.
        in_host = step.name.startswith(("tests/host", "tests/e2e"))
        assert ("-n" in step.command) == in_host
    assert Path(command.of("tests/host on ComfyUI 1").environment["COMFYUI_PATH"]).name.endswith(
        "-1"
    )


def test_the_quick_lane_selects(command: Command) -> None:
    assert command.run(quick=True) == 0
    names = [step.name for step in command.steps]
    assert "tests/host on ComfyUI 1" not in names and "mypy" in names
    assert "tests/host" not in command.of("tests/host on ComfyUI 2 (a selection)").command


def missing(message: str) -> Any:
    def fail(*_: Any) -> Any:
        raise DevError(message)

    return fail


def test_without_a_browser_there_is_one_failure(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "get_browser", missing("no browser for the tests of the page"))
    assert command.run() == 1
    assert command.of("tests/e2e on ComfyUI 2").command[-2:] == ("-m", "not page")
    assert capsys.readouterr().out.splitlines()[-1] == "8 passed, 1 failed"


@pytest.mark.parametrize(
    ("ci", "last"), [("", "7 passed, 0 failed, 1 skipped"), ("true", "7 passed, 1 failed")]
)
def test_without_node_js_the_page_is_left_out_but_not_in_ci(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ci: str,
    last: str,
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(checks, "javascript_steps", missing("Node.js is not installed"))
    command.run()
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == last
    assert ("LEFT OUT" in said) == (not ci)


def test_without_comfyui_the_unit_tests_run_still(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "find_or_install_comfyui", missing("no ComfyUI found"))
    assert command.run() == 1
    assert [step.name for step in command.steps if step.is_pytest] == ["tests/unit"]
    assert capsys.readouterr().out.splitlines()[-1] == "4 passed, 1 failed"


def test_mypy_looks_at_every_folder_of_ours() -> None:
    root = Path(checks.__file__).parent.parent
    [listed] = re.findall(
        r"\[tool\.mypy\].*?packages = \[(.*?)\]",
        (root / "pyproject.toml").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    names = {name.split(".")[-1] for name in re.findall(r'"(.+?)"', listed)}
    folders = {path.parent.name for path in root.glob("[a-z]*/*.py")}
    assert names == folders - {"tests"}
