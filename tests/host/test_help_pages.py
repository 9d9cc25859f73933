"""Every node has a help page, and what the page points to is there."""

from __future__ import annotations

import re

import pytest

from devkit.pack import ROOT
from magicportrait.nodes import NODES

DOCS = ROOT / "js" / "docs"
IDS = [node.define_schema().node_id for node in NODES]


def test_there_is_a_page_for_every_node_and_no_other() -> None:
    assert sorted(path.stem for path in DOCS.glob("*.md")) == sorted(IDS)


@pytest.mark.parametrize("node", IDS)
def test_a_long_list_of_inputs_stands_under_headings(node: str) -> None:
    page = (DOCS / f"{node}.md").read_text(encoding="utf-8")
    lists = re.split(r"^##+ .*$", page, flags=re.MULTILINE)
    assert max(len(re.findall(r"^- \*\*", part, re.MULTILINE)) for part in lists) <= 10


@pytest.mark.parametrize("node", IDS)
def test_page_says_what_the_node_does_and_shows_it(node: str) -> None:
    page = (DOCS / f"{node}.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    pictures = re.findall(r"!\[(.+?)\]\((.+?)\)", page)
    assert pictures and all(len(words) > 20 for words, _ in pictures), (
        "a picture with words for those who cannot see it"
    )
    assert [file for _, file in pictures if not (DOCS / file).is_file()] == []
    workflows = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    named = set(re.findall(r"`([\w.]+(?:-[\w.]+)+)`", page.split("## See it work\n")[1]))
    assert named <= workflows
    # A node that no workflow has says where to put it.
    assert named or "Templates >" in page or "any workflow" in page
