"""A browser that Playwright can drive."""

from __future__ import annotations

import shutil

from devkit.pack import DevError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str:
    """A program that Playwright can drive."""
    if program := next(filter(None, map(shutil.which, BROWSERS)), None):
        return program
    raise DevError(
        f"no browser: install one of {', '.join(BROWSERS)}, such as with `apt install chromium`"
    )
