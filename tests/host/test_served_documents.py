"""The pack's documents as the server shows them: whole, with links that lead somewhere."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

import pytest

from devkit.pack import ROOT
from magicportrait.host.page import documents
from magicportrait.host.page.documents import answer
from magicportrait.host.page.markdown import as_html

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
TARGETS = re.compile(r'(?:href|src)="([^"]+)"')


def page(file: str) -> str:
    served = answer(file)
    assert served and served[1] == "text/html"
    return served[0].decode()


@pytest.mark.parametrize("file", PAGES)
def test_a_page_has_no_link_that_the_server_does_not_answer(file: str) -> None:
    text = page(file)
    assert f"<title>{text.split('</h1>')[0].split('>')[-1]}</title>" in text
    for target in TARGETS.findall(text):
        if re.match("https?:", target):
            continue
        address, _, anchor = target.partition("#")
        other = posixpath.normpath(posixpath.join(posixpath.dirname(file), address))
        shown = page(other) if address.endswith(".md") else text
        assert answer(other) or not address, target
        assert not anchor or f'id="{anchor}"' in shown, target
    # What is left of the marks would be a kind of Markdown that is not read.
    words = re.sub(r"<pre>.*?</pre>|<code>.*?</code>|<[^>]+>", "", text, flags=re.DOTALL)
    assert re.findall(r"\*\*|\]\(|^#|^\|", words, re.MULTILINE) == []


def test_pictures_and_pages_that_an_archive_leaves_out_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n\n![words](b.png) [c](../bench/c.md)\n")
    monkeypatch.setattr(documents, "_ROOT", tmp_path)
    assert "<p><em>(words)</em> c</p>" in page("docs/a.md")
    (tmp_path / "docs" / "b.png").write_bytes(b"png")
    assert '<p><img src="b.png" alt="words"> c</p>' in page("docs/a.md")
    assert answer("docs/b.png") == (b"png", "image/png")


@pytest.mark.parametrize(
    "file",
    ["docs/none.md", "docs/../README.md", "../docs/magicface.md", "docs", "nodes/__init__.py"],
)
def test_nothing_else_of_the_pack_is_served(file: str) -> None:
    assert answer(file) is None
    assert answer(f"/{file}") is None


def test_markdown_is_read_as_it_is_written_here() -> None:
    text = """# A *b*
Words with `a < b`, **bold
over lines** and [a [b]](c.md#d).

- one
  goes on
- two

  with a second paragraph
1. first

| a | b |
| --- | --- |
| `x \\| y` | <b> |

    code  * 2
```
fenced **
```
"""
    shown = as_html(text, lambda address: address)
    for part in (
        '<h1 id="a-b">A <em>b</em></h1>',
        "<p>Words with <code>a &lt; b</code>, <strong>bold\nover lines</strong> and"
        ' <a href="c.md#d">a [b]</a>.</p>',
        "<p>with a second paragraph</p>",
        "<ol>\n<li>first</li>\n</ol>",
        "<th>a</th>",
        "<td><code>x | y</code></td>\n<td>&lt;b&gt;</td>",
        "<pre><code>code  * 2\n</code></pre>",
        "<pre><code>fenced **\n</code></pre>",
    ):
        assert part in shown


def test_without_the_library_a_page_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    content, kind = answer("docs/magicface.md") or (b"", "")
    assert kind == "text/plain" and content == (ROOT / "docs/magicface.md").read_bytes()
