"""What the server's own validation says to numbers that a node does not allow, of every node."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from magicportrait.nodes import NODES
from magicportrait.nodes.declare import defaults_of

NUMBERS = [
    (node, item)
    for node in NODES
    for item in node.define_schema().inputs or ()
    if item.get_io_type() in ("INT", "FLOAT")
]


def complaints(monkeypatch: pytest.MonkeyPatch, node: Any, **changes: Any) -> list[str]:
    """What ComfyUI says about a node on its own with its widgets untouched but for `changes`, links
    that are missing left out."""
    import execution

    import nodes as core

    schema = node.define_schema()
    monkeypatch.setitem(core.NODE_CLASS_MAPPINGS, schema.node_id, node)
    choices = {item.id: item.options[0] for item in schema.inputs if getattr(item, "options", None)}
    prompt = {
        "1": {"class_type": schema.node_id, "inputs": {**choices, **defaults_of(node), **changes}},
        "2": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0},
        },
    }
    if any(item.id == "image" and item.optional for item in schema.inputs):
        # A node that may have a picture of its own complains when it has none.
        prompt["1"]["inputs"]["image"] = ["2", 0]
    try:
        _, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "1", {}))
    except ValueError as complaint:
        # Said once, not for every input; ours begin with the one that they are about.
        return [f"{str(complaint).split(maxsplit=1)[0].rstrip(':')}: {complaint}"]
    return [
        f"{error['extra_info'].get('input_name')}: {error['message']}, {error['details']}"
        for error in errors
    ]


def about(name: str, said: list[str]) -> list[str]:
    return [text for text in said if text.startswith(f"{name}: ")]


@pytest.mark.parametrize(
    ("node", "item"), NUMBERS, ids=lambda part: getattr(part, "id", getattr(part, "__name__", ""))
)
def test_a_number_out_of_range_is_refused(node, item, monkeypatch):
    assert item.min is not None and item.max is not None, "a number needs a range"
    assert not about(item.id, complaints(monkeypatch, node))
    for value in (item.min - 1, item.max + 1):
        assert about(item.id, complaints(monkeypatch, node, **{item.id: value})), (
            f"{value} is outside {item.min} to {item.max}"
        )


@pytest.mark.parametrize(
    ("node", "item"),
    [(node, item) for node, item in NUMBERS if item.get_io_type() == "FLOAT"],
    ids=lambda part: getattr(part, "id", getattr(part, "__name__", "")),
)
def test_what_is_no_number_is_refused(node, item, monkeypatch):
    for value in (math.nan, math.inf, -math.inf):
        assert about(item.id, complaints(monkeypatch, node, **{item.id: value})), value


def test_the_complaint_says_what_is_expected(monkeypatch):
    from magicportrait.nodes.magicstyle import MagicStyleApply

    said = complaints(monkeypatch, MagicStyleApply, alpha=-3.0)
    assert any("alpha is -3, expected 0 to 1" in text for text in about("alpha", said))
    assert any(
        "alpha is nan" in text for text in complaints(monkeypatch, MagicStyleApply, alpha=math.nan)
    )
