"""What comes in from other nodes, for every node: pictures, masks, latents, numbers and texts that
cannot be are refused with a sentence before anything else is touched. A new node is tried too."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch

from magicportrait.nodes import NODES
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.detail import MagicDetailPass
from magicportrait.nodes.edit import MagicEditReference
from magicportrait.nodes.magicapture_sets import MagiCaptureStyle, MagiCaptureSubject
from magicportrait.nodes.magicface_concept import MagicFaceConcept
from magicportrait.nodes.magicstyle import MagicStyleReference
from magicportrait.nodes.magicstyle_prompt import MagicStyleEdit
from magicportrait.nodes.portrait_crop import MagicPortraitCrop, MagicPortraitPaste
from magicportrait.nodes.restore import MagicPortraitRestore


class Untouched:
    """An input that is looked at only after what comes with it was checked."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"{name} was asked for before the inputs were checked")


def picture(*shape: int, value: float = 0.5) -> torch.Tensor:
    return torch.full(shape, value)


GOOD: dict[str, Any] = {
    "IMAGE": picture(1, 64, 64, 3),
    "MASK": picture(1, 64, 64, value=1.0),
    "LATENT": {"samples": picture(1, 4, 8, 8)},
}
BAD: dict[str, dict[str, Any]] = {
    "IMAGE": {
        "two channels": picture(1, 64, 64, 2),
        "no pictures": picture(0, 64, 64, 3),
        "flat": picture(64),
        "not a number": picture(1, 64, 64, 3, value=math.nan),
        "text": "picture",
    },
    "MASK": {
        "a row": picture(64),
        "no masks": picture(0, 64, 64),
        "not a number": picture(1, 64, 64, value=math.nan),
        "text": "mask",
    },
    "LATENT": {
        "without samples": {},
        "a picture": picture(1, 64, 64, 3),
        "three dimensions": {"samples": picture(4, 8, 8)},
        "not a number": {"samples": picture(1, 4, 8, 8, value=math.nan)},
    },
    "STRING": {"half a letter": "half \ud800 letter", "a number": 7, "-": None},
    "INT": {"not a number": math.nan, "far": 10**30, "infinite": -math.inf, "text": "7", "-": None},
    "FLOAT": {"not a number": math.nan, "far": 1e30, "infinite": -math.inf, "text": "7", "-": None},
}
GUARDED = [
    pytest.param(node, item.id, BAD[item.get_io_type()], id=f"{node.__name__}-{item.id}")
    for node in NODES
    for item in node.define_schema().inputs or ()
    if item.get_io_type() in BAD
]


def good_inputs(node: Any) -> dict[str, Any]:
    """All inputs of a node: the widgets' defaults, pictures, masks and latents, and for the rest
    what may not be touched."""
    declared = node.define_schema().inputs or ()
    defaults = defaults_of(node)
    choices = {item.id: item.options[0] for item in declared if getattr(item, "options", None)}
    linked = {item.id: GOOD.get(item.get_io_type(), Untouched()) for item in declared}
    return {**linked, **choices, **defaults}


@pytest.mark.parametrize(("node", "name", "values"), GUARDED)
def test_what_cannot_be_is_refused_before_anything_else(node, name, values):
    for what, value in values.items():
        inputs = {**good_inputs(node), name: value}
        if node.define_schema().is_input_list:
            inputs = {name: [each] for name, each in inputs.items()}
        with pytest.raises(ValueError) as refusal:
            node.execute(**inputs)
        place = refusal.traceback[-1].frame.f_globals["__name__"]
        assert place.startswith("magicportrait."), f"{what}: another library's words"
        assert re.search("expected|no numbers|no pictures", str(refusal.value)), what


WRITTEN: dict[str, Any] = {
    "text": "abc",
    "number": 5,
    "yes": True,
    "list": [1.0, "abc"],
    "fields": {"samples": [[0.5]]},
    "-": None,
}
"""What a prompt that was written by hand may have in place of a link."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SOCKETS = [
    pytest.param(node, item, id=f"{node.__name__}-{item.id}")
    for node in NODES
    for item in node.define_schema().inputs or ()
    if item.get_io_type() not in WIDGETS
]


@pytest.mark.parametrize(("node", "socket"), SOCKETS)
def test_what_is_written_into_a_socket_is_refused_with_what_to_connect(node, socket):
    kind = socket.get_io_type().split(",")[0]
    for what, value in WRITTEN.items():
        # Boxes are what a prompt may hold itself, and an open socket holds nothing.
        is_box = "BOUNDING_BOX" in socket.get_io_type() and isinstance(value, (list, dict))
        if is_box or (value is None and socket.optional):
            continue
        inputs = {**good_inputs(node), socket.id: value}
        if node.define_schema().is_input_list:
            inputs = {name: [each] for name, each in inputs.items()}
        with pytest.raises(
            ValueError, match=f"^{socket.id} is .*, {kind} is expected: connect .*"
        ) as refusal:
            node.execute(**inputs)
        place = refusal.traceback[-1].frame.f_globals["__name__"]
        assert place.startswith("magicportrait."), f"{what}: another library's words"


def test_the_host_runs_nodes_that_look_at_their_sockets():
    copy = MagicFaceConcept.PREPARE_CLASS_CLONE({})
    with pytest.raises(ValueError, match="image is 'abc', IMAGE is expected: connect Load Image"):
        copy.EXECUTE_NORMALIZED(**{**good_inputs(MagicFaceConcept), "image": "abc"})


MASKED = {
    MagicDetailPass: "masks",
    MagicEditReference: "mask",
    MagicStyleEdit: "keep",
    MagicFaceConcept: "mask",
    MagicStyleReference: "mask",
    MagicPortraitCrop: "mask",
    MagicPortraitPaste: "mask",
    MagicPortraitRestore: "faces",
    MagiCaptureSubject: "faces",
    MagiCaptureStyle: "faces",
}
"""Nodes with the mask of a thing in a picture, which may be the MASK of a cut-out."""
OF_PLACES = {
    ("MagicFaceConcept", "target_region"),
    ("MagicConceptLora", "target_region"),
    ("MagicLayoutConditioning", "target_region"),
    ("MagicEditReference", "target_region"),
    ("MagicCorrespondence", "mask"),
}
"""Masks of a place in the new picture, which may well be its border."""
CHANGES_MASKS = {"MagicMaskRefine"}


@pytest.mark.parametrize("value", ["\ud83d", "nowhere", 7, ["a", "b"], None])
def test_a_fingerprint_never_fails_and_can_be_logged(value):
    """The host logs what a fingerprint raises, and a log that cannot be written ends its worker:
    what is wrong is said by execute."""
    tried = 0
    for node in NODES:
        if "fingerprint_inputs" not in vars(node):
            continue
        for item in node.define_schema().inputs:
            if item.id in inspect.signature(node.fingerprint_inputs).parameters:
                state = node.fingerprint_inputs(**{item.id: value})
                str(state).encode()
                tried += 1
    assert tried >= 8


def test_every_mask_of_a_thing_can_be_turned_round():
    for node in NODES:
        schema = node.define_schema()
        masks = {
            item.id
            for item in schema.inputs or ()
            if item.get_io_type() == "MASK" and (schema.node_id, item.id) not in OF_PLACES
        }
        if masks and schema.node_id not in CHANGES_MASKS:
            assert masks == {MASKED.get(node)}, f"{schema.node_id}: in neither table"
            assert "invert" in {item.id for item in schema.inputs}, schema.node_id
