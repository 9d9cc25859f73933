"""The frontend's files against the Python side that they have to agree with."""

from __future__ import annotations

import re

from devkit.pack import ROOT
from magicportrait.host.pictures.palette import DISTINCT, PALETTE, colour_name

JS = ROOT / "js"


def test_the_page_has_the_palette_of_the_layouts() -> None:
    css = (JS / "style.css").read_text(encoding="utf-8")
    colours = re.findall(r"\.magic-colour-(\d+) \{ --magic-colour: (#[0-9a-f]{6}); \}", css)
    assert colours == [
        (str(i), "#{:02x}{:02x}{:02x}".format(*rgb)) for i, (_, rgb) in enumerate(PALETTE)
    ]
    [count] = re.findall(r"const COLOURS = (\d+);", (JS / "palette.js").read_text(encoding="utf-8"))
    assert int(count) == len(PALETTE)


def test_the_page_has_the_patterns_of_the_layouts() -> None:
    """In their order, each as a picture for swatches and as a line for words."""
    [listed] = re.findall(
        r"const PATTERNS = \[(.+)\];", (JS / "palette.js").read_text(encoding="utf-8")
    )
    classes = [name.strip() for name in re.findall(r'"(.*?)"', listed)]
    names = [colour_name(i * len(PALETTE)).split()[:-1] for i in range(DISTINCT // len(PALETTE))]
    assert classes == ["", *(f"magic-{pattern}" for [pattern] in names[1:])]
    css = (JS / "style.css").read_text(encoding="utf-8")
    rules = {
        name: re.findall(
            rf"^\.{name} \{{ --magic-pattern: (.+?); --magic-line: (\w+); \}}", css, re.MULTILINE
        )
        for name in classes[1:]
    }
    assert len({tuple(pair) for [pair] in rules.values()}) == len(classes) - 1


def test_colours_come_from_the_palette_or_the_theme() -> None:
    for file in [*JS.glob("*.js"), JS / "style.css"]:
        lines = [
            line
            for line in file.read_text(encoding="utf-8").splitlines()
            if not line.startswith(".magic-colour-")
        ]
        assert not re.findall(
            r"#[0-9a-fA-F]{3,8}\b(?!private)|rgba?\(|hsl",
            "\n".join(re.sub(r"this\.#\w+|^\s+#\w+\(", "", line) for line in lines),
        ), file


def test_every_view_belongs_to_a_node_of_ours() -> None:
    [table] = re.findall(
        r"const VIEWS = \{(.+?)\n\};",
        (JS / "magicportrait.js").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    nodes = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "nodes").glob("*.py"))
    views = re.findall(r"(\w+): \w+,", table)
    assert len(views) == 11
    assert set(views) <= set(re.findall(r'node_id="(\w+)"', nodes))
