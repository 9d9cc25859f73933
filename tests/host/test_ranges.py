"""What the server's own validation says to numbers that a node does not allow, of every node."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from magicportrait.nodes import NODES
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicstyle import MagicStyleApply

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
    _, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "1", {}))
    return [
        error["details"].partition(" - ")[2]
        if error["type"] == "custom_validation_failed"
        else f"{error['extra_info'].get('input_name')}: {error['message']}, {error['details']}"
        for error in errors
    ]


def about(name: str, said: list[str]) -> list[str]:
    """Those that begin with the input that they are about, as ours do too."""
    return [text for text in said if text.split(maxsplit=1)[0].rstrip(":") == name]


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


def test_the_complaint_says_once_what_is_expected(monkeypatch):
    said = complaints(monkeypatch, MagicStyleApply, alpha=-3.0)
    assert about("alpha", said) == ["alpha is -3, expected 0 to 1"]
    said = complaints(monkeypatch, MagicStyleApply, alpha=math.nan)
    assert about("alpha", said) == ["alpha is nan, expected 0 to 1"]


def test_the_host_s_own_complaints_stand_beside_ours(monkeypatch):
    said = complaints(monkeypatch, MagicStyleApply, alpha=-3.0, temperature=-3.0)
    assert about("alpha", said) == ["alpha is -3, expected 0 to 1"]
    assert len(about("temperature", said)) == 1
    assert len(about("model", said)) == 1, "a link that is missing"
