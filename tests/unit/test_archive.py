"""What the registry gets: small, whole, and described."""

from __future__ import annotations

import io
import re
import shutil
import struct
import sys
import zipfile

import pytest

from devkit.pack import ROOT, packed_files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIMIT = 20 * 2**20
"""Bytes, of which both toys are 16 MB."""
NEEDED = ("nodes", "host", "magic", "demo", "js", "locales", "workflows", "subgraphs")
NOT_NEEDED = ("bench", "tests", "devkit", "dev.py", ".github", "package.json", "docs/icon.png")
PICTURES = {"Icon": (400, 400), "Banner": (1260, 540)}
"""The registry takes a square of at most 400 pixels, and 21 : 9."""

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="no checkout of git"
)


@pytest.fixture(scope="module")
def files() -> list[str]:
    return packed_files()


def test_the_archive_has_what_nodes_need_and_no_more(files: list[str]) -> None:
    there = {
        file.relative_to(ROOT).as_posix()
        for folder in NEEDED
        for file in (ROOT / folder).rglob("*")
        if file.suffix
        in (".py", ".js", ".css", ".md", ".jpg", ".webp", ".json", ".ttf", ".safetensors")
        and not {"training", "__pycache__"} & set(file.parts)
    }
    assert there - set(files) == set()
    assert {"__init__.py", "requirements.txt", "LICENSE", "README.md"} <= set(files)
    assert [file for file in files if file.startswith(NOT_NEEDED)] == []


def test_the_archive_is_small(files: list[str]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(ROOT / file, file)
    assert buffer.tell() <= LIMIT


def comfy() -> dict[str, str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    table: dict[str, str] = settings["tool"]["comfy"]
    return table


@pytest.mark.parametrize("picture", PICTURES)
def test_the_registry_finds_a_picture_of_the_size_that_it_shows(picture: str) -> None:
    file = ROOT / "docs" / comfy()[picture].rsplit("/main/docs/")[1]
    head = file.read_bytes()[:24]
    assert head[12:16] == b"IHDR" and struct.unpack(">II", head[16:]) == PICTURES[picture]


def test_icon_and_banner_are_light() -> None:
    files = [ROOT / "docs" / name for name in ("icon.png", "banner.png")]
    assert sum(file.stat().st_size for file in files) < 100_000


def test_publishing_writes_the_address_wherever_it_is_missing() -> None:
    """The workflow's own replacement, on pyproject.toml."""
    publish = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    [placeholder] = re.findall(r'sed -i "s#(.+?)#\$GITHUB_REPOSITORY#g" pyproject', publish)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settings = tomllib.loads(text.replace(placeholder, "somebody/fork"))
    urls = [*settings["project"]["urls"].values(), *map(settings["tool"]["comfy"].get, PICTURES)]
    assert len(urls) == 5
    assert [url for url in urls if not re.match(r"https://[\w.]+/somebody/fork\b", url)] == []


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [project["version"]]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+) \(", changelog, re.MULTILINE)[0] == project["version"]
