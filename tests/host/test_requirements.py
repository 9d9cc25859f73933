"""What the pack asks pip for, beside what ComfyUI asks for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from devkit.comfyui import find_comfyui
from devkit.pack import ROOT


def names(file: Path) -> set[str]:
    packages = re.findall(r"^[A-Za-z][\w.-]*", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in packages}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-optional.txt"])
def test_nothing_is_asked_for_that_the_host_owns(file: str) -> None:
    assert names(ROOT / file).isdisjoint(names(find_comfyui() / "requirements.txt"))
