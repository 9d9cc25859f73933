"""The pack's own pages as HTML: as much of Markdown as they are written in."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator

Link = Callable[[str], str | None]
"""Where a link or the address of a picture leads; None for what is not there."""

_FENCE = re.compile(r"```")
_HEADING = re.compile(r"(#{1,6}) (.+)")
_ITEM = re.compile(r"(- |\d+\. )(?=\S)")
_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_BOLD = re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*", re.DOTALL)
_ITALIC = re.compile(r"\*(?=\S)(.+?)(?<=\S)\*", re.DOTALL)
_HELD = re.compile("\0(\\d+)\0")


def as_html(text: str, link: Link) -> str:
    """Headings, paragraphs, lists, tables and code; everything else is text. HTML in it is shown,
    not obeyed."""
    return "\n".join(_blocks(text.replace("\0", "").splitlines(), link))


def anchor_of(heading: str) -> str:
    """What a heading is called in links, as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _blocks(lines: list[str], link: Link) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        end = at + 1
        if not line.strip():
            pass
        elif _FENCE.match(line):
            while end < len(lines) and not _FENCE.match(lines[end]):
                end += 1
            yield _code(lines[at + 1 : end])
            end += 1
        elif line.startswith("    "):
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield _code([each[4:] for each in lines[at:end]])
        elif heading := _HEADING.match(line):
            marks, words = heading.groups()
            tag = f"h{len(marks)}"
            yield f'<{tag} id="{html.escape(anchor_of(words))}">{_inline(words, link)}</{tag}>'
        elif line.startswith("|"):
            while end < len(lines) and lines[end].startswith("|"):
                end += 1
            yield _table(lines[at:end], link)
        elif _ITEM.match(line):
            while end < len(lines) and _goes_on(lines, end, _is_numbered(line)):
                end += 1
            yield _list(lines[at:end], link)
        else:
            while end < len(lines) and lines[end].strip() and not _begins(lines[end]):
                end += 1
            yield f"<p>{_inline(' '.join(lines[at:end]), link)}</p>"
        at = end


def _begins(line: str) -> bool:
    """Whether something else than the rest of a paragraph begins."""
    return line.startswith("|") or any(pattern.match(line) for pattern in (_FENCE, _HEADING, _ITEM))


def _is_numbered(item: str) -> bool:
    return not item.startswith("-")


def _goes_on(lines: list[str], at: int, is_numbered: bool) -> bool:
    """Whether a list does: with an item of its kind, or an indented line, also after a blank
    one."""
    if not lines[at].strip():
        return at + 1 < len(lines) and lines[at + 1].startswith("  ")
    if _ITEM.match(lines[at]):
        return _is_numbered(lines[at]) == is_numbered
    return lines[at].startswith("  ")


def _list(lines: list[str], link: Link) -> str:
    items: list[list[str]] = []
    indent = 0
    for line in lines:
        if item := _ITEM.match(line):
            indent = len(item[1])
            items.append([line[indent:]])
        else:
            items[-1].append(line[min(indent, len(line) - len(line.lstrip())) :])
    parts = []
    for item_lines in items:
        inner = "\n".join(_blocks(item_lines, link))
        # A single paragraph stands close to its neighbours.
        if inner.count("<p>") == 1 and inner.startswith("<p>"):
            inner = inner.replace("<p>", "", 1).replace("</p>", "", 1)
        parts.append(f"<li>{inner}</li>")
    tag = "ol" if _is_numbered(lines[0]) else "ul"
    return f"<{tag}>\n" + "\n".join(parts) + f"\n</{tag}>"


def _table(lines: list[str], link: Link) -> str:
    def row(line: str, tag: str) -> str:
        # A bar within code is written \|.
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        filled = (_inline(cell.strip().replace("\\|", "|"), link) for cell in cells)
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in filled) + "</tr>"

    head, _, *rows = [*lines, ""] if len(lines) == 1 else lines
    body = "\n".join(row(line, "td") for line in rows)
    return f"<table>\n{row(head, 'th')}\n{body}\n</table>"


def _code(lines: list[str]) -> str:
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def _inline(text: str, link: Link) -> str:
    held: list[str] = []

    def hold(part: str) -> str:
        held.append(part)
        return f"\0{len(held) - 1}\0"

    def picture(match: re.Match[str]) -> str:
        words, address = match.groups()
        # Words are escaped already.
        target = link(html.unescape(address))
        if target is None:
            return f"<em>({words})</em>"
        return hold(f'<img src="{html.escape(target)}" alt="{words}">')

    def linked(match: re.Match[str]) -> str:
        words, address = match.groups()
        target = link(html.unescape(address))
        if target is None:
            return words
        return hold(f'<a href="{html.escape(target)}">') + f"{words}</a>"

    text = _CODE.sub(lambda match: hold(f"<code>{html.escape(match[2].strip())}</code>"), text)
    text = html.escape(text)
    text = _LINK.sub(linked, _IMAGE.sub(picture, text))
    text = _ITALIC.sub(r"<em>\1</em>", _BOLD.sub(r"<strong>\1</strong>", text))
    while _HELD.search(text):
        text = _HELD.sub(lambda match: held[int(match[1])], text)
    return text
