"""A browser that Playwright can drive: the system's, Playwright's own, or one that is installed
now."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from devkit.environment import ask_python
from devkit.pack import WINDOWS, DevError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLAYWRIGHTS = """
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
"""
CONNECTION_TIMEOUT = 5
"""Seconds that a download may be silent; Playwright tries five times."""
INSTALL_TIMEOUT = 900
"""Seconds that an installation may take in all."""


class NoBrowser(DevError):
    """This way leads to no browser; the message says why, beginning with what was tried."""


def find_browser(python: Path | None = None) -> str:
    """The program of a browser that is there already. `python` is one that has Playwright, by
    default this one. NoBrowser names what was tried."""
    return first_of((on_path, playwrights_own), python or Path(sys.executable))


def get_browser(python: Path) -> str:
    """The program of a browser, which is installed if there is none. NoBrowser names what was
    tried."""
    return first_of((on_path, playwrights_own, playwrights_download, system_package), python)


def first_of(ways: tuple[Callable[[Path], str], ...], python: Path) -> str:
    tried = []
    for way in ways:
        try:
            return way(python)
        except NoBrowser as error:
            tried.append(str(error))
    raise NoBrowser(
        "no browser for the tests of the page: install Chromium or Chrome. Tried:\n  "
        + "\n  ".join(tried)
    )


def on_path(python: Path) -> str:
    tried = []
    for name in NAMES:
        if program := shutil.which(name):
            if problem := why_not(program):
                tried.append(f"{program} {problem}")
            else:
                return program
    raise NoBrowser(f"on PATH: {'; '.join(tried) or 'none of ' + ', '.join(NAMES)}")


def playwrights_own(python: Path) -> str:
    try:
        program = ask_python(python, PLAYWRIGHTS)
    except DevError as error:
        raise NoBrowser(f"Playwright's Chromium: {gist(str(error))}") from error
    if not Path(program).exists():
        raise NoBrowser("Playwright's Chromium: not installed")
    if problem := why_not(program):
        raise NoBrowser(f"Playwright's Chromium: {program} {problem}")
    return program


def playwrights_download(python: Path) -> str:
    command = [str(python), "-m", "playwright", "install", "--no-shell", "chromium"]
    limit = {"PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": str(1000 * CONNECTION_TIMEOUT)}
    install("Playwright's download", command, limit)
    return playwrights_own(python)


def system_package(python: Path) -> str:
    """Debian's package; Ubuntu's of that name is a snap, which does not start in a container."""
    if not shutil.which("apt-get"):
        raise NoBrowser("apt-get install chromium: this system has no apt-get")
    if os.geteuid() != 0:
        raise NoBrowser("apt-get install chromium: only for root")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-o", f"Acquire::http::Timeout={CONNECTION_TIMEOUT}", "-o", "Acquire::Retries=1"]
    install("apt-get update", ["apt-get", *options, "update"], quiet)
    install(
        "apt-get install chromium",
        ["apt-get", *options, "install", "-y", "--no-install-recommends", "chromium"],
        quiet,
    )
    return on_path(python)


def install(what: str, command: list[str], environment: dict[str, str]) -> None:
    """Runs an installer; NoBrowser with its last word when it fails."""
    print(f"no browser yet: {what}", flush=True)
    try:
        answer = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=INSTALL_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoBrowser(f"{what}: {error}") from error
    if answer.returncode:
        raise NoBrowser(f"{what}: {gist(answer.stdout)}")


def why_not(program: str) -> str:
    """Why a browser does not start, as without the libraries that it needs; "" if it does."""
    if WINDOWS:  # where Chrome opens a window instead
        return ""
    try:
        answer = subprocess.run(
            [program, "--version"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not start: {error}"
    if answer.returncode == 0:
        return ""
    return f"does not start: {gist(answer.stderr or answer.stdout)}"


def gist(text: str) -> str:
    """The line of a program's output that says what went wrong: its first error, or its last
    word."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("Error:", "E:"))]
    return (errors or lines[-1:] or ["no message"])[0]
