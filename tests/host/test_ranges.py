"""What the server's own validation says to numbers that a node does not allow, of every node."""

from __future__ import annotations

import asyncio
import inspect
import math
from typing import Any

import pytest

from magicportrait.nodes import NODES
from magicportrait.nodes.analysis import MagicCorrespondence
from magicportrait.nodes.concept_folder import MagicFaceConceptFolder
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.inversion import MagicInversionLoad
from magicportrait.nodes.magicapture_sets import MagiCaptureStyle, MagiCaptureSubject
from magicportrait.nodes.magicface_concept import MagicFaceConcept
from magicportrait.nodes.magicstyle import MagicStyleApply
from magicportrait.nodes.masks import MagicConceptMask

NEVER_AT = {
    # It has nothing to say where an image is.
    MagicFaceConcept: {"image"},
    # It keeps the host from saying something.
    MagicConceptMask: {"sam", "detector", "face_model"},
}
"""Inputs that a validate_inputs names and that no complaint of its is said at."""
NUMBERS = [
    (node, item)
    for node in NODES
    for item in node.define_schema().inputs or ()
    if item.get_io_type() in ("INT", "FLOAT")
]


def complaints(
    monkeypatch: pytest.MonkeyPatch, node: Any, has_image: bool = True, **changes: Any
) -> list[tuple[str, str]]:
    """What ComfyUI says about a node on its own with its widgets untouched but for `changes`: the
    input at which it says so, and the sentence. has_image: an image is linked to an optional
    one."""
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
    if has_image and any(item.id == "image" and item.optional for item in schema.inputs):
        # A node that may have a picture of its own complains when it has none.
        prompt["1"]["inputs"]["image"] = ["2", 0]
    _, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "1", {}))
    return [
        (
            error["extra_info"]["input_name"],
            error["details"].partition(" - ")[2]
            if error["type"] == "custom_validation_failed"
            else error["message"],
        )
        for error in errors
    ]


def about(name: str, said: list[tuple[str, str]]) -> list[str]:
    return [text for place, text in said if place == name]


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


@pytest.mark.parametrize(
    ("node", "name", "value", "sentence"),
    [
        (MagicStyleApply, "alpha", -3.0, "Value -3.0 smaller than min of 0.0"),
        (MagicFaceConcept, "picture", "gone.png", "picture 'gone.png' is not in ComfyUI's input"),
        (MagicFaceConceptFolder, "folder", "gone", "concept folder 'gone' is not there"),
        (MagicInversionLoad, "file", "gone.safetensors", "file 'gone.safetensors' is not there"),
        (MagiCaptureSubject, "placeholder", "two words", "'two words' must be one word"),
        (MagiCaptureStyle, "placeholder", "a,b", "'a,b' must be one word"),
        (MagicCorrespondence, "points", "here", "is not understood"),
    ],
)
def test_a_complaint_is_said_once_and_at_its_input(node, name, value, sentence, monkeypatch):
    said = complaints(monkeypatch, node, has_image=False, **{name: value})
    [text] = [text for _, text in said if sentence in text]
    assert (name, text) in said


def test_no_complaint_can_be_said_at_the_wrong_input():
    """The host repeats what validate_inputs answers at every input that it names."""
    for node in NODES:
        if "validate_inputs" in vars(node):
            named = set(inspect.signature(node.validate_inputs).parameters)
            assert len(named - NEVER_AT.get(node, set())) <= 1, node.__name__


def test_a_picture_of_its_own_does_not_count_beside_a_linked_one(monkeypatch):
    said = complaints(monkeypatch, MagicFaceConcept, picture="gone.png")
    assert not about("picture", said) and not about("image", said)


def test_the_host_s_own_complaints_stand_beside_ours(monkeypatch):
    said = complaints(monkeypatch, MagicInversionLoad, file="gone.safetensors")
    assert len(about("file", said)) == 1
    assert len(about("model", said)) == 1, "a link that is missing"
