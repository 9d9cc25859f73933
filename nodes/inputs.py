"""What comes in from other nodes: checked before anything is done with it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..host.page.notices import notice
from ..magic.pictures import check_painted, covers_border, mask_batch, picture_batch
from .declare import advanced, range_complaint, span_complaint

TO_CONNECT: Mapping[str, str] = {
    "MODEL": "the MODEL of Load Checkpoint, or of another node",
    "CLIP": "the CLIP of Load Checkpoint, or of another node",
    "VAE": "the VAE of Load Checkpoint, or Load VAE",
    "CLIP_VISION": "Load CLIP Vision",
    "UPSCALE_MODEL": "Load Upscale Model",
    "LORA_MODEL": "the lora of MagiCapture Train",
    "IMAGE": "Load Image, or VAE Decode",
    "MASK": "the MASK of Load Image, or of Concept Mask",
    "LATENT": "the LATENT of a sampler, or VAE Encode",
    "CONDITIONING": "CLIP Text Encode",
    "SIGMAS": "the SIGMAS of MagicStyle Invert, or of a scheduler node",
    "BOUNDING_BOX": "the boxes of Concept Mask",
    "BBOX": "the boxes of a face detector",
    "MAGIC_CONCEPTS": "MagicFace Concept",
    "MAGIC_EDIT_REFERENCES": "Edit Reference",
    "MAGIC_LAYOUT": "the layout of MagicFace Apply, or of Semantic Layout",
    "MAGIC_INVERSION": "the inversion of MagicStyle Invert",
    "MAGIC_STYLES": "MagicStyle Reference",
    "MAGIC_CROP": "the crop of Portrait Crop",
    "MAGIC_IDENTITY": "Load Identity Network",
    "MAGIC_ATTENTION": "the attention of Attention Map",
    "MAGIC_CORRESPONDENCE": "the correspondence of Correspondence",
    "MAGIC_SUBJECT": "MagiCapture Subject",
    "MAGIC_STYLE": "MagiCapture Style",
    "MAGIC_EMBEDDINGS": "the embeddings of MagiCapture Train, or Load Embedding",
}
"""What gives a value of each type that no widget can: the sockets of this pack's nodes."""
_OF_TEXT_AND_NUMBERS = {"BOUNDING_BOX", "BBOX"}
"""Types of which a prompt may hold the value itself."""


class Node(io.ComfyNode):
    """A node of this pack. Before `execute` runs, what stands in a socket where only a link can is
    refused: a prompt that was written by hand may have a text or a number there. What has no
    fingerprint, such as a file that is not there, has an empty one: `execute` says what is wrong,
    where the host shows it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls).get("execute")
        # The host runs a copy of the class, with the same methods.
        if own is not None and not hasattr(own.__func__, "__wrapped__"):
            cls.execute = _after_sockets(own.__func__)  # type: ignore[method-assign]
        own = vars(cls).get("fingerprint_inputs")
        if own is not None and not hasattr(own.__func__, "__wrapped__"):
            cls.fingerprint_inputs = _or_empty(own.__func__)  # type: ignore[method-assign]


def _or_empty(fingerprint: Callable[..., str]) -> Any:
    @functools.wraps(fingerprint)
    def tried(cls: type[Node], *args: Any, **named: Any) -> str:
        try:
            return fingerprint(cls, *args, **named)
        except (AttributeError, OSError, TypeError, ValueError):
            return ""

    return classmethod(tried)


def _after_sockets(execute: Callable[..., io.NodeOutput]) -> Any:
    signature = inspect.signature(execute)
    open_sockets = {name: parameter.default for name, parameter in signature.parameters.items()}

    @functools.wraps(execute)
    def checked(cls: type[Node], *args: Any, **named: Any) -> io.NodeOutput:
        values = {**signature.bind(cls, *args, **named).arguments, **named}
        schema = cls.define_schema()
        for name, kinds in _sockets(schema):
            # What an open socket gives may be given as well.
            value = values.get(name, open_sockets.get(name))
            if value is not open_sockets.get(name):
                items = value if schema.is_input_list and isinstance(value, list) else [value]
                for item in items:
                    refuse(_socket_complaint(name, kinds, item))
        return execute(cls, *args, **named)

    return classmethod(checked)


def _sockets(schema: io.Schema) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The inputs of a node that have no widget, each with the types that it takes."""
    for item in schema.inputs or ():
        kinds = tuple(item.get_io_type().split(","))  # type: ignore[no-untyped-call]
        if kinds[0] in TO_CONNECT:
            yield item.id, kinds


def _socket_complaint(name: str, kinds: Sequence[str], value: object) -> str | None:
    is_own = bool(_OF_TEXT_AND_NUMBERS.intersection(kinds)) and isinstance(value, (list, dict))
    if is_own or not _is_written(value):
        return None
    what = "empty" if value is None else f"{value!r:.40}"
    return f"{name} is {what}, {kinds[0]} is expected: connect {TO_CONNECT[kinds[0]]}"


def _is_written(value: object) -> bool:
    """Whether text and numbers are all that a value is made of, as what a prompt holds itself."""
    if isinstance(value, dict):
        return all(_is_written(part) for part in value.values())
    if isinstance(value, list):
        return all(_is_written(part) for part in value)
    return value is None or isinstance(value, (str, int, float))


def refuse(complaint: str | None) -> None:
    """ValueError with a complaint of validate_inputs, if there is one. For `execute`: what comes
    from other nodes is not looked at before."""
    if complaint is not None:
        raise ValueError(complaint)


def check_ranges(node: type[io.ComfyNode], **values: Any) -> None:
    """ValueError when a number is none, or not in the range of its widget. For `execute`, as
    `refuse`."""
    missing = next((name for name, value in values.items() if value is None), None)
    refuse(f"{missing} is empty, a number is expected" if missing else None)
    refuse(range_complaint(node, **values))


def check_texts(**texts: Any) -> None:
    """ValueError when one is no text, or has half a letter in it, which no tokenizer, font or file
    name takes. For `execute`, as `refuse`."""
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name} is {text!r:.40}, a text is expected")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} has half a letter in it, {text[error.start]!r} at place"
                f" {error.start + 1}, whole ones are expected: type that place anew"
            ) from error


def check_span(node: type[io.ComfyNode], start: float, end: float) -> None:
    """ValueError when these are no two shares of sampling, one after the other."""
    check_ranges(node, start=start, end=end)
    refuse(span_complaint(start, end))


def pictures_of(image: Any, latent: torch.Tensor, what: str) -> torch.Tensor:
    """The decoded pictures of a sampled latent, or one for all: B H W 3. ValueError for another
    number of them."""
    pictures = picture_batch(image, what)
    if len(pictures) not in (1, len(latent)):
        raise ValueError(
            f"{what} has {len(pictures)} pictures, but the latent {len(latent)}: connect the"
            " decoded samples"
        )
    return pictures[..., :3]


def invert_input(what: str, tooltip: str = "") -> io.Input:
    """Turns a mask round. what: the mask's input; tooltip: in place of the sentence about it."""
    return advanced(
        io.Boolean.Input(
            "invert",
            default=False,
            optional=True,
            tooltip=tooltip
            or (
                f"On: what {what} leaves out counts, and what it covers does not. Turn it on for"
                " the MASK that Load Image gives of a cut-out: that covers what is transparent,"
                " everything but the thing."
            ),
        )
    )


def painted_mask(
    mask: Any, owner: str, what_to_do: str, invert: bool = False, is_of_a_thing: bool = True
) -> torch.Tensor:
    """A mask as B H W, turned round if asked. ValueError when nothing is painted; a notice when it
    should be of a thing, but has the picture's border and not its middle. owner: whose mask, for
    both; what_to_do: when it is empty."""
    masks = mask_batch(mask, owner)
    check_painted(masks, 0.0, owner, what_to_do)
    if invert:
        masks = inverted(masks)
        check_painted(masks, 0.0, f"{owner}, turned round,", "turn off invert, or paint less")
    if is_of_a_thing:
        warn_of_border(masks, owner, invert)
    return masks


def inverted(masks: torch.Tensor) -> torch.Tensor:
    return 1 - masks.float().clamp(0, 1)


def warn_of_border(
    masks: torch.Tensor | Sequence[torch.Tensor], owner: str, is_inverted: bool = False
) -> None:
    """A notice when masks have the picture's border and not its middle. masks: B H W, or H W each
    of its own size, of which one is enough; is_inverted: whether the node has turned them round."""
    parts = [masks] if isinstance(masks, torch.Tensor) else masks
    if not any(map(covers_border, parts)):
        return
    what_to_do = (
        "Turn off invert"
        if is_inverted
        else "The mask of a cut-out is what is transparent: turn on invert, or put Invert Mask"
        " before"
    )
    notice(
        f"{owner} has the border of the picture and leaves out its middle. {what_to_do}, if the"
        " thing itself is meant"
    )
