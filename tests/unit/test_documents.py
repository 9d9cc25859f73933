"""What people read: every link leads somewhere, every page can be found, every command is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from devkit.pack import ROOT

README = ROOT / "README.md"
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "js" / "docs").glob("*.md"),
    *(ROOT / ".github").rglob("*.md"),
    ROOT / "bench" / "README.md",
    ROOT / "demo" / "MODEL_CARD.md",
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")
PICTURE = re.compile(r"!\[([^\]]*)\]\(|<img [^>]*alt=\"([^\"]*)\"")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links(page: Path) -> list[str]:
    """That stay in the repository."""
    targets = [link or image for link, image in LINK.findall(read(page))]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def target_of(page: Path, link: str) -> tuple[Path, str]:
    file, _, anchor = link.partition("#")
    return ((page.parent / file).resolve() if file else page), anchor


def leads_nowhere(page: Path, link: str) -> bool:
    target, anchor = target_of(page, link)
    if not target.exists() or ROOT not in (target, *target.parents):
        return True
    return bool(anchor) and anchor not in anchors(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_leads_nowhere(page: Path) -> None:
    assert [link for link in links(page) if leads_nowhere(page, link)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pictures_have_words_for_those_who_cannot_see_them(page: Path) -> None:
    words = [markdown or html for markdown, html in PICTURE.findall(read(page))]
    assert [text for text in words if not text] == []
    assert len(words) == len(re.findall(r"!\[|<img ", read(page)))


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = {README}, [README]
    while ahead:
        page = ahead.pop()
        for link in links(page):
            target, _ = target_of(page, link)
            if target.suffix == ".md" and target not in reached:
                reached.add(target)
                ahead.append(target)
    assert {page for page in PAGES if ".github" not in page.parts} - reached == set()


def test_the_readme_is_read_in_two_minutes_and_says_how_to_test() -> None:
    assert len(read(README).split()) <= 900
    for command in ("python dev.py test ", "python dev.py test --quick "):
        assert f"\n    {command}" in read(README)


def test_the_readme_names_the_button_for_masks_as_the_node_does() -> None:
    [button] = re.findall(r"press \*\*(.* mask)\*\*", read(README))
    assert f'"{button}"' in read(ROOT / "js" / "concept_view.js")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_are_to_be_run_exist(page: Path) -> None:
    named = set(re.findall(r"\b((?:bench|demo|devkit)\.[a-z_]+)\b(?!\.py)", read(page)))
    files = {name for name in named if not (ROOT / f"{name.replace('.', '/')}.py").is_file()}
    assert files == set()


def test_templates_that_are_named_exist() -> None:
    there = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    for page in PAGES:
        pattern = r"\b(?:MagicFace|MagicStyle|MagiCapture)-(?:\d-|SD1\.5-)[\w-]+"
        assert set(re.findall(pattern, read(page))) <= there, page
