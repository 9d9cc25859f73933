"""Declaring nodes for all supported hosts: what an older one does not know is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

from comfy_api.latest import io

Concepts = io.Custom("MAGIC_CONCEPTS")
Layout = io.Custom("MAGIC_LAYOUT")
InversionType = io.Custom("MAGIC_INVERSION")
Styles = io.Custom("MAGIC_STYLES")
CropType = io.Custom("MAGIC_CROP")
IdentityType = io.Custom("MAGIC_IDENTITY")
Attention = io.Custom("MAGIC_ATTENTION")
Correspondences = io.Custom("MAGIC_CORRESPONDENCE")
# The host's own type, which the oldest supported host does not name yet.
Boxes = io.Custom("BOUNDING_BOX")

_KNOWN_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}
_Input = TypeVar("_Input", bound=io.Input)
_LONGEST_NUMBER = 24
"""Letters that a message shows of a number: some have hundreds."""


def schema(**fields: Any) -> io.Schema:
    return io.Schema(**{name: value for name, value in fields.items() if name in _KNOWN_FIELDS})


def defaults_of(node: type[io.ComfyNode]) -> dict[str, Any]:
    """What the widgets of a node start with, by name: to call a node from code as an untouched node
    in a graph would be."""
    declared = ((item.id, getattr(item, "default", None)) for item in node.define_schema().inputs)
    return {name: default for name, default in declared if default is not None}


def link_only(declared: _Input) -> _Input:
    """An input without a widget, where the host's type has one of its own."""
    declared.extra_dict["forceInput"] = True
    return declared


def advanced(declared: _Input) -> _Input:
    """An input that is rarely turned: folded away where the host can fold."""
    declared.extra_dict["advanced"] = True
    return declared


def span_inputs(
    start_tooltip: str, end_tooltip: str, start: float = 0.0, end: float = 1.0
) -> list[io.Input]:
    """The two shares of sampling between which a node acts."""
    ends = (("start", start, start_tooltip), ("end", end, end_tooltip))
    return [
        advanced(
            io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)
        )
        for name, default, tooltip in ends
    ]


def layers_input(default: str, tooltip: str) -> io.Input:
    """Which layers a node acts in, as `magic.blocks.parse_blocks` reads it."""
    return advanced(io.String.Input("layers", default=default, tooltip=tooltip))


def cache_input(entry_size: str = "") -> io.Input:
    """Room on disk for remembered inversions. entry_size: what the tooltip says of the size of
    one, such as ' (2.3 MB each)'."""
    return advanced(
        io.Int.Input(
            "cache_mb",
            default=512,
            min=0,
            max=1_000_000,
            tooltip=(
                f"Room for remembered inversions on disk, in MB{entry_size}. When it is full the"
                " least recently used go. 0: do not remember."
            ),
        )
    )


def keep_features_input(tooltip: str) -> io.Input:
    """Whether what references showed is kept for the next run: 'off' or 'memory'."""
    return advanced(
        io.Combo.Input("keep_features", options=["off", "memory"], default="off", tooltip=tooltip)
    )


def as_number(value: object) -> float | None:
    """A number as validate_inputs gets it: None for an input that is linked or missing, and for
    what is no number, which the host refuses itself."""
    return value if isinstance(value, (int, float)) else None


def as_text(value: object) -> str | None:
    """A text as validate_inputs gets it: None for an input that is linked or missing, and for what
    is no text, which the host refuses itself."""
    return value if isinstance(value, str) else None


def span_complaint(start: object, end: object) -> str | None:
    """None when nothing is wrong, or not known yet."""
    first, last = as_number(start), as_number(end)
    if first is None or last is None or first <= last:
        return None
    return f"start ({first}) is after end ({last})"


def choice_complaint(name: str, value: object, options: Iterable[str]) -> str | None:
    """What is wrong with the choice of an input that validate_inputs names: the host leaves it to
    the node. None when nothing is wrong, or not known yet."""
    choices = tuple(options)
    if value is None or (isinstance(value, str) and value in choices):
        return None
    return f"{name}: {value!r} is not one of {', '.join(choices)}"


def range_complaint(node: type[io.ComfyNode], **values: object) -> str | None:
    """What is wrong with numbers that the node's schema does not allow, None when all are allowed.
    For validate_inputs: the host leaves the ranges of the inputs that it names to it. None stands
    for an input that is linked or missing; what is no number, the host refuses itself.
    """
    declared = {
        item.id: item
        for item in node.define_schema().inputs
        if isinstance(item, (io.Int.Input, io.Float.Input))
    }
    for name, value in values.items():
        number, low, high = as_number(value), declared[name].min, declared[name].max
        # Not-a-number is in no range.
        if number is not None and not low <= number <= high:
            return f"{name} is {str(number)[:_LONGEST_NUMBER]}, expected {low:g} to {high:g}"
    return None


def node_id(node: type[io.ComfyNode]) -> str | None:
    """The id in the graph of the node that is executed, if its schema asks for it; None outside of
    a graph."""
    return node.hidden.unique_id if node.hidden else None
