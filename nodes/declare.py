"""Declaring nodes for all supported hosts: what an older one does not know is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from comfy_api.latest import io

from ..magic.curves import NAMED, Curve, parse_curve
from ..magic.reference_passes import SPARSE, BandStarts

Concepts = io.Custom("MAGIC_CONCEPTS")
Layout = io.Custom("MAGIC_LAYOUT")
InversionType = io.Custom("MAGIC_INVERSION")
Styles = io.Custom("MAGIC_STYLES")
# What a chain goes on from. Nodes that send every output of a type to all open inputs of that very
# type (Use Everywhere) would send a chain to its own beginning: with a second type beside the first
# this input is none of those.
ConceptsBefore = io.Custom("MAGIC_CONCEPTS,MAGIC_CONCEPTS_BEFORE")
StylesBefore = io.Custom("MAGIC_STYLES,MAGIC_STYLES_BEFORE")
EditReferences = io.Custom("MAGIC_EDIT_REFERENCES")
EditReferencesBefore = io.Custom("MAGIC_EDIT_REFERENCES,MAGIC_EDIT_REFERENCES_BEFORE")
CropType = io.Custom("MAGIC_CROP")
IdentityType = io.Custom("MAGIC_IDENTITY")
SubjectType = io.Custom("MAGIC_SUBJECT")
SubjectsBefore = io.Custom("MAGIC_SUBJECT,MAGIC_SUBJECT_BEFORE")
StyleType = io.Custom("MAGIC_STYLE")
EmbeddingsType = io.Custom("MAGIC_EMBEDDINGS")
Attention = io.Custom("MAGIC_ATTENTION")
Correspondences = io.Custom("MAGIC_CORRESPONDENCE")
# The host's own types, as its trainer gives them.
LoraModel = io.Custom("LORA_MODEL")
LossMap = io.Custom("LOSS_MAP")
# The host's own type, which the oldest supported host does not name yet.
Boxes = io.Custom("BOUNDING_BOX")
# The host's own types, whose classes type checkers cannot read.
SamplerType = io.Custom("SAMPLER")
NoiseType = io.Custom("NOISE")

_KNOWN_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}
_Input = TypeVar("_Input", bound=io.Input)


class _Least(float):
    """The least value of a number. The host refuses what is `< least`, which not-a-number never is:
    so everything is below that is not at least so much."""

    def __gt__(self, value: float, /) -> bool:
        return not value >= float(self)


def schema(**fields: Any) -> io.Schema:
    """A node's schema, of which the host refuses numbers that are none or out of their range.

    It leaves out the inputs that a node's `validate_inputs` names, and repeats what that answers
    at every one of them. So that function is for a complaint about one input, and names no other
    that could get it; what is wrong with several together, `execute` says.
    """
    for item in fields.get("inputs", ()):
        if isinstance(item, io.Float.Input) and item.min is not None:
            item.min = _Least(item.min)
    return io.Schema(**{name: value for name, value in fields.items() if name in _KNOWN_FIELDS})


def defaults_of(node: type[io.ComfyNode]) -> dict[str, Any]:
    """What the widgets of a node start with, by name: to call a node from code as an untouched node
    in a graph would be."""
    declared = ((item.id, getattr(item, "default", None)) for item in node.define_schema().inputs)
    return {name: default for name, default in declared if default is not None}


def numbers_of(node: type[io.ComfyNode]) -> set[str]:
    """The inputs of a node that are numbers."""
    inputs = node.define_schema().inputs
    return {item.id for item in inputs if isinstance(item, (io.Int.Input, io.Float.Input))}


def link_only(declared: _Input) -> _Input:
    """An input without a widget, where the host's type has one of its own."""
    declared.extra_dict["forceInput"] = True
    return declared


def advanced(declared: _Input) -> _Input:
    """An input that is rarely turned: folded away where the host can fold."""
    declared.extra_dict["advanced"] = True
    return declared


def optional(declared: _Input) -> _Input:
    """An input that came to a node later: saved graphs go on without it."""
    declared.optional = True
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


def curve_input(example: str, instead: str = "strength") -> io.Input:
    """A strength that changes over sampling. example: points of a curve; instead: what these take
    the place of, and a name shapes."""
    return advanced(
        io.String.Input(
            "strength_curve",
            default="",
            optional=True,
            tooltip=(
                f"The strength over sampling: {', '.join(NAMED)} shape {instead}; points such as"
                f" '{example}', with straight lines between, count in place of it. Empty: the same"
                " all the time."
            ),
        )
    )


def curve_complaint(value: object, low: float, high: float) -> str | None:
    """What is wrong with the text of a curve whose strengths lie between low and high. None when
    nothing is, and for a value of another node, which the host does not have yet."""
    return text_complaint(parse_curve, value, low, high)


def text_complaint(read: Callable[..., object], value: object, *arguments: object) -> str | None:
    """What `read(text, *arguments)` has against a text, by its ValueError; of a value that is none
    it is given an empty one. None when it has nothing."""
    try:
        read(as_text(value) or "", *arguments)
    except ValueError as error:
        return str(error)
    return None


def file_complaint(path_of: Callable[[str], object], file: object) -> str | None:
    """What `path_of(file)` has against the name of a file. None when it has nothing, and for one of
    another node, which the host does not have yet."""
    return None if file is None else text_complaint(path_of, str(file))


def curve_of(text: str, low: float, high: float, strength: float) -> Curve | None:
    """The curve of a text on a node with a strength, both between low and high; None of an empty
    one. ValueError as `parse_curve`."""
    curve = parse_curve(text, low, high)
    return None if curve is None else curve.of(strength)


def chain_output() -> io.Output:
    """The concepts of a node of the chain and of those before it."""
    return Concepts.Output(
        display_name="concepts",
        tooltip="All concepts so far: connect to the next concept, or to MagicFace Apply.",
    )


def schedule_inputs() -> list[io.Input]:
    """Steps and scheduler, from which the sigmas of an inversion are made."""
    import comfy.samplers

    return [
        io.Int.Input(
            "steps",
            default=30,
            min=2,
            max=1000,
            tooltip=(
                "Steps of the inversion, and of sampling later. More is closer: 20 to 50 works."
            ),
        ),
        advanced(
            io.Combo.Input(
                "scheduler",
                options=list(comfy.samplers.SCHEDULER_NAMES),
                default="ddim_uniform",
                tooltip=(
                    "How the steps are spread over the noise levels. 'ddim_uniform' is the papers'"
                    " choice."
                ),
            )
        ),
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


PASSES: Mapping[str, BandStarts | None] = {"every step": None, "sparse": SPARSE}
"""The choices of `reference_passes_input`: which noise levels share a reference pass."""
EVERY_STEP = "every step"


def reference_passes_input(tooltip: str) -> io.Input:
    """How often the model looks at the references. Graphs that were saved without it go on with
    'every step', whether by the host's page, which fills in the default, or by an API."""
    return advanced(
        io.Combo.Input(
            "reference_passes",
            options=list(PASSES),
            optional=True,
            default=EVERY_STEP,
            tooltip=tooltip,
        )
    )


def as_text(value: object) -> str | None:
    """A text as validate_inputs gets it: None for an input that is linked or missing, and for what
    is no text, which the host refuses itself."""
    return value if isinstance(value, str) else None


def span_complaint(start: float, end: float) -> str | None:
    """None when nothing is wrong."""
    return None if start <= end else f"start ({start}) is after end ({end})"


def choice_complaint(name: str, value: object, options: Iterable[str]) -> str | None:
    """What is wrong with a choice that may come from another node, which the host does not look
    at. None when nothing is wrong."""
    choices = tuple(options)
    if isinstance(value, str) and value in choices:
        return None
    return f"{name}: {value!r:.40} is not one of {', '.join(choices)}"


def bypass_conditioning() -> io.Input:
    """The host passes a bypassed node's inputs on to the outputs of their types: without this one
    the sampler would get no positive."""
    return io.Conditioning.Input(
        "positive",
        optional=True,
        tooltip=(
            "To compare: the prompt that the sampler gets while this node is bypassed (Ctrl+B: the"
            " node is left out, and what comes in goes on). Else it is not used."
        ),
    )


def range_complaint(node: type[io.ComfyNode], **values: object) -> str | None:
    """What is wrong with numbers that the node's schema does not allow, None when all are allowed.
    For `execute`: the host looks at widgets only, not at what comes from other nodes."""
    declared: dict[str, Any] = {item.id: item for item in node.define_schema().inputs}
    for name, value in values.items():
        if not isinstance(value, (int, float)):
            return f"{name} is {value!r:.40}, a number is expected"
        low, high = declared[name].min, declared[name].max
        # Not-a-number is in no range.
        if not low <= value <= high:
            return f"{name} is {_short(value)}, expected {low:g} to {high:g}"
    return None


def _short(value: float) -> str:
    try:
        return f"{value:g}"
    except OverflowError:
        return f"a number of {len(str(value))} digits"


def node_id(node: type[io.ComfyNode]) -> str | None:
    """The id in the graph of the node that is executed, if its schema asks for it; None outside of
    a graph."""
    return node.hidden.unique_id if node.hidden else None
