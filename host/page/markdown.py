"""The pack's own pages as HTML."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token

Link = Callable[[str], str | None]
"""Where a link or the address of a picture leads; None for what is not there."""


def as_html(text: str, link: Link) -> str:
    """CommonMark with tables, and with headings that links lead to. HTML in it is shown, not
    obeyed. ImportError without markdown-it-py."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    tokens = reader.parse(text)
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", anchor_of(inline.content))
    for token in tokens:
        if token.children:
            token.children = list(_with_links(token.children, link))
    page: str = reader.renderer.render(tokens, reader.options, {})
    return page


def anchor_of(heading: str) -> str:
    """What a heading is called in links, as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _with_links(tokens: Sequence[Token], link: Link) -> Iterator[Token]:
    """The same, without links to what is not there; of such a picture its words."""
    from markdown_it.token import Token

    open_links: list[bool] = []
    for token in tokens:
        if token.type == "link_close":
            if open_links.pop():
                yield token
        elif token.type in ("link_open", "image"):
            name = "href" if token.type == "link_open" else "src"
            target = link(str(token.attrGet(name)))
            if token.type == "link_open":
                open_links.append(target is not None)
            if target is not None:
                token.attrSet(name, target)
                yield token
            elif token.type == "image":
                yield Token("em_open", "em", 1)
                yield Token("text", "", 0, content=f"({token.content})")
                yield Token("em_close", "em", -1)
        else:
            yield token
