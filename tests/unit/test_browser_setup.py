"""Where the browser for the page's tests comes from, on machines that have this or that."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devkit import browser
from devkit.browser import NoBrowser, find_browser, get_browser

PYTHON = Path("python")


class Machine:
    """Programs by the name under which they are run, and what installing adds.

    programs: what is on PATH, with what it says when asked for its version ("" if it works).
    downloads, packages: whether Playwright's download and Debian's package can be had.
    ran: what was run, in short.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.programs: dict[str, str] = {}
        self.downloads = self.packages = False
        self.own = folder / "ms-playwright" / "chrome"
        self.ran: list[str] = []
        self.root = True
        monkeypatch.setattr(shutil, "which", self.which)
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(browser, "ask_python", lambda python, code: str(self.own))
        monkeypatch.setattr(browser, "WINDOWS", False)
        monkeypatch.setattr(os, "geteuid", lambda: 0 if self.root else 1000, raising=False)

    def which(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.programs else None

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        said = ""
        if "playwright" in command:
            self.ran.append("download")
            if self.downloads:
                self.own.parent.mkdir(exist_ok=True)
                self.own.touch()
            else:
                said = "Downloading\nError: getaddrinfo ENOTFOUND\n    at Socket"
        elif command[0] == "apt-get":
            self.ran.append(f"apt-get {'install' if 'install' in command else 'update'}")
            assert options["env"]["DEBIAN_FRONTEND"] == "noninteractive"
            if "install" in command:
                if self.packages:
                    self.programs["chromium"] = ""
                else:
                    said = "E: Unable to locate package chromium"
        elif command[1:] == ["--version"]:
            said = self.programs.get(Path(command[0]).name, "")
        return subprocess.CompletedProcess(command, 1 if said else 0, said, said)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_a_browser_on_path_is_taken_as_it_is(machine: Machine) -> None:
    machine.programs = {"google-chrome": "", "apt-get": ""}
    assert get_browser(PYTHON) == find_browser(PYTHON) == "/usr/bin/google-chrome"
    assert machine.ran == []


def test_playwrights_own_comes_next(machine: Machine) -> None:
    machine.own.parent.mkdir()
    machine.own.touch()
    assert get_browser(PYTHON) == find_browser(PYTHON) == str(machine.own)
    assert machine.ran == []


def test_then_playwright_downloads_its_own(machine: Machine) -> None:
    machine.downloads = True
    with pytest.raises(NoBrowser):
        find_browser(PYTHON)
    assert machine.ran == []
    assert get_browser(PYTHON) == str(machine.own)
    assert machine.ran == ["download"]


def test_a_failed_download_falls_through_to_the_system_package(machine: Machine) -> None:
    machine.programs, machine.packages = {"apt-get": ""}, True
    assert get_browser(PYTHON) == "/usr/bin/chromium"
    assert machine.ran == ["download", "apt-get update", "apt-get install"]


def test_a_browser_that_does_not_start_is_none(machine: Machine) -> None:
    """Ubuntu's package is a script that asks for a snap."""
    machine.programs = {"chromium-browser": "requires the chromium snap", "apt-get": ""}
    machine.packages = True
    assert get_browser(PYTHON) == "/usr/bin/chromium"


@pytest.mark.parametrize(
    ("programs", "root", "last"),
    [
        ({"apt-get": ""}, True, "apt-get install chromium: E: Unable to locate package chromium"),
        ({"apt-get": ""}, False, "apt-get install chromium: only for root"),
        ({}, True, "apt-get install chromium: this system has no apt-get"),
    ],
)
def test_the_failure_names_what_was_tried(
    machine: Machine, programs: dict[str, str], root: bool, last: str
) -> None:
    machine.programs = {"chromium": "error while loading libnss3.so", **programs}
    machine.root = root
    with pytest.raises(NoBrowser) as failure:
        get_browser(PYTHON)
    assert str(failure.value).splitlines()[1:] == [
        "  on PATH: /usr/bin/chromium does not start: error while loading libnss3.so",
        "  Playwright's Chromium: not installed",
        "  Playwright's download: Error: getaddrinfo ENOTFOUND",
        f"  {last}",
    ]


def test_an_installer_that_hangs_is_given_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = machine.run

    def hangs(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "playwright" in command:
            assert int(options["env"]["PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT"]) <= 10_000
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return run(command, **options)

    machine.programs, machine.packages = {"apt-get": ""}, True
    monkeypatch.setattr(subprocess, "run", hangs)
    assert get_browser(PYTHON) == "/usr/bin/chromium"
