"""The nodes of the host that messages tell people to use are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devkit.comfyui import find_comfyui
from devkit.pack import ROOT

NODE = re.compile(
    r"\b(?:Conditioning|Disable|Flux|Image|Latent|Mask(?!Editor)|Sampler|Split|TorchCompile)"
    r"[A-Z]\w+|Convert \w+ to \w+|Invert Mask"
)
"""How the host's names of nodes look, as far as messages have them."""


def messages() -> Iterator[str]:
    for folder in ("nodes", "host", "magic"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            documentation = {id(part.value) for part in parts if isinstance(part, ast.Expr)}
            for part in parts:
                is_text = isinstance(part, ast.Constant) and isinstance(part.value, str)
                if is_text and id(part) not in documentation and " " in part.value:
                    yield part.value


def test_a_node_that_a_message_names_is_one_of_the_hosts() -> None:
    named = {name for text in messages() for name in NODE.findall(text)}
    assert "ImageFromBatch" in named
    host = find_comfyui()
    files = [host / "nodes.py", *(host / "comfy_extras").glob("*.py")]
    # A name has blanks where people read it, and none where it is an id.
    source = "".join(path.read_text(encoding="utf-8") for path in files).replace(" ", "")
    assert sorted(name for name in named if name.replace(" ", "") not in source) == []
