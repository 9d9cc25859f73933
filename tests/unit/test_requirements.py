"""What the pack asks pip for."""

from __future__ import annotations

import re
import sys

import pytest

from devkit.pack import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OPTIONAL = ("lpips", "onnx2torch", "opencv-python-headless", "spandrel_extra_arches")


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def names(name: str) -> set[str]:
    """Of the packages in a requirements file, in the one form in which they can be compared."""
    packages = [re.match(r"[\w.-]+", line) for line in requirements(name)]
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in packages if match}


def test_the_manager_and_the_registry_install_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == requirements("requirements.txt")


@pytest.mark.parametrize("package", OPTIONAL)
def test_an_optional_package_is_listed_and_explained(package: str) -> None:
    assert package in {
        re.split(r"[<>=]", line)[0] for line in requirements("requirements-optional.txt")
    }
    assert f"| {package} |" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_package_is_in_two_files() -> None:
    files = ("requirements.txt", "requirements-optional.txt", "tests/requirements.txt")
    everything = [name for file in files for name in names(file)]
    assert len(everything) == len(set(everything))
