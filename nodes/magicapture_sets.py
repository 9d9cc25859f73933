"""MagiCapture Subject and MagiCapture Style: the pictures that a training learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..host.page.thumbnails import leaves_out
from ..host.pictures import capture_folder
from ..host.segmentation.face_masks import detectors_state, find_face_masks
from ..host.training.pictures import masked_previews
from ..magic.capture_sets import (
    CapturePicture,
    StyleSet,
    Subject,
    capture_pictures,
    check_placeholder,
)
from ..magic.pictures import mask_batch, picture_batch
from .declare import StyleType, SubjectsBefore, SubjectType, advanced, as_text, schema
from .inputs import Node, check_ranges, check_texts, invert_input, inverted, warn_of_border

SUBJECT_TEMPLATES = "\n".join(
    (
        "a photo of a {person}",
        "a portrait photo of a {person}",
        "a close photo of a {person}",
        "a bright photo of a {person}",
        "a snapshot of a {person}",
        "a photo of one {person}",
    )
)
STYLE_TEMPLATES = "\n".join(
    (
        "a picture of a {person} in the style of {style}",
        "a portrait of a {person} in the style of {style}",
        "a close portrait of a {person} in the style of {style}",
        "a {person} in {style} style",
        "one {person}, made in the style of {style}",
    )
)


def _picture_inputs(
    what: str, templates: str, slots: str, placeholder: str, without_masks: str = ""
) -> list[io.Input]:
    """without_masks: what else a set does without face masks, for the tooltip."""
    return [
        io.Image.Input(
            "images",
            optional=True,
            tooltip=f"Pictures of the {what}: a batch, or a list of different sizes and aspects.",
        ),
        io.Mask.Input(
            "faces",
            optional=True,
            tooltip=(
                "The face in every picture, one mask each. Without: the largest face that a"
                " detector in models/face_detection or models/detection finds; else the whole"
                " picture counts as face, which binds less well." + without_masks
            ),
        ),
        io.Combo.Input(
            "folder",
            options=[capture_folder.NO_FOLDER, *capture_folder.list_folders()],
            tooltip=(
                "Instead of images: a folder in ComfyUI's input folder. Masks of the same names may"
                " lie in its subfolder mask; without, faces are found as for images."
            ),
        ),
        io.String.Input(
            "placeholder",
            default=placeholder,
            tooltip=(
                f"The new word that will mean this {what} in prompts. One word, better none that"
                " exists already."
            ),
        ),
        io.String.Input(
            "class_word",
            default="person",
            tooltip=(
                "What is in the pictures, in a word that the model knows: person, woman, man, dog."
            ),
        ),
        advanced(
            io.String.Input(
                "templates",
                multiline=True,
                default=templates,
                tooltip=(
                    f"Training prompts, one a line, each with the slots of {slots} once, as the"
                    " defaults have. Every step draws one."
                ),
            )
        ),
        invert_input("the face masks"),
        io.String.Input(
            "captions",
            force_input=True,
            optional=True,
            tooltip=(
                "What is on each picture, a list or one a line, instead of the templates;"
                f" {slots} {'are' if ' and ' in slots else 'is'} added where missing. An empty"
                " one: the templates. Without: name.txt beside each picture of the folder, where"
                " there is one."
            ),
        ),
    ]


def _first(value: Any) -> Any:
    """These nodes take lists, so that pictures may differ in size: all other inputs are lists of
    one."""
    return next(iter(value), None) if isinstance(value, list) else value


def _read(
    images: list[torch.Tensor] | None,
    faces: list[torch.Tensor] | None,
    folder: str,
    invert: bool,
    captions: list[str] | None,
    what: str,
) -> tuple[CapturePicture, ...]:
    check_texts(**{f"captions {i + 1}": text for i, text in enumerate(captions or ())})
    lines = list(captions or ())
    if len(lines) == 1:
        lines = lines[0].rstrip().split("\n") if lines[0].strip() else []
    if folder != capture_folder.NO_FOLDER:
        pictures, masks, names = capture_folder.read_folder(folder)
        lines = lines or capture_folder.read_captions(folder)
    else:
        pictures = _pictures(images or (), what)
        masks = [mask for batch in faces or () for mask in mask_batch(batch, "faces")] or None
        names = [f"{what} picture {i + 1}" for i in range(len(pictures))]
    if masks is None:
        masks = find_face_masks(pictures, names, what)
    else:
        # An empty one stays empty: it is not what somebody painted.
        masks = [inverted(mask) if invert and mask.any() else mask for mask in masks]
        warn_of_border(masks, f"a face mask of the {what}", invert)
    # Lines that the last pictures have not are empty ones.
    lines += [""] * (len(pictures) - len(lines)) if lines else []
    return capture_pictures(pictures, masks, names, lines)


def _pictures(images: Sequence[Any], what: str) -> list[torch.Tensor]:
    """H W C of each picture of a list of batches, or of pictures without that dimension."""
    tensors = [image if isinstance(image, torch.Tensor) else None for image in images]
    singles = [
        single
        for image in tensors
        for single in (image if image is not None and image.ndim == 4 else [image])
    ]
    return [
        picture_batch(None if single is None else single[None], f"{what} picture {i + 1}")[0]
        for i, single in enumerate(singles)
    ]


def _class_pictures(images: Sequence[Any]) -> tuple[CapturePicture, ...]:
    what = "class"
    pictures = _pictures(images, what)
    names = [f"{what} picture {i + 1}" for i in range(len(pictures))]
    return capture_pictures(pictures, None, names) if pictures else ()


def _fingerprint(folder: Any, linked: Any) -> str:
    """Changes with the folder's files and, where faces have to be found, with the detectors'."""
    name = _first(folder) or capture_folder.NO_FOLDER
    has_masks = (
        "faces" in linked if name == capture_folder.NO_FOLDER else capture_folder.has_masks(name)
    )
    return capture_folder.state_of(name) + ("" if has_masks else detectors_state())


def _check(placeholder: object) -> bool | str:
    """The form of the word, for validate_inputs. What it says beside the other words is checked
    where they are put together."""
    word = as_text(_first(placeholder))
    try:
        if word is not None:
            check_placeholder(word.strip())
    except ValueError as error:
        return str(error)
    return True


def _words(**inputs: list[str]) -> tuple[str, str, tuple[str, ...]]:
    """Placeholder, class word and templates, of the inputs of these names. ValueError for one that
    is no text."""
    words = {name: _first(value) for name, value in inputs.items()}
    check_texts(**words)
    lines = (line.strip() for line in words["templates"].splitlines())
    return (
        words["placeholder"].strip(),
        words["class_word"].strip() or "person",
        tuple(line for line in lines if line),
    )


class MagiCaptureSubject(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagiCaptureSubject",
            display_name="MagiCapture Subject",
            category="MagicPortrait/MagiCapture",
            description=(
                "The person to learn: a handful of pictures with face masks, the new word for them,"
                " and training prompts."
            ),
            search_aliases=["dreambooth", "training images", "person", "face", "identity"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                *_picture_inputs("subject", SUBJECT_TEMPLATES, "the person", "<subject>"),
                io.Image.Input(
                    "class_images",
                    optional=True,
                    tooltip=(
                        "Pictures of other people of that class, so that the class word keeps its"
                        " meaning (prior): trained with the class word alone, all of each picture."
                        " Given ones, or made by the model itself. Twice as many as images or more."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "class_weight",
                        default=1.0,
                        min=0.0,
                        max=10.0,
                        step=0.1,
                        optional=True,
                        tooltip=(
                            "How much class_images count. Higher: the class word keeps its meaning"
                            " better, and the subject is learned more slowly. No effect without"
                            " such pictures."
                        ),
                    )
                ),
                SubjectsBefore.Input(
                    "subjects",
                    optional=True,
                    tooltip=(
                        "Subjects before this one: one training learns all of them, each by its own"
                        " word, pictures and masks."
                    ),
                ),
            ],
            outputs=[
                SubjectType.Output(
                    display_name="subject",
                    tooltip="For MagiCapture Train, or another MagiCapture Subject behind it.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, placeholder: object = None) -> bool | str:
        return _check(placeholder)

    @classmethod
    def fingerprint_inputs(cls, folder: Any = None, **linked: Any) -> str:
        return _fingerprint(folder, linked)

    @classmethod
    def execute(
        cls,
        folder: list[str],
        placeholder: list[str],
        class_word: list[str],
        templates: list[str],
        images: list[torch.Tensor] | None = None,
        faces: list[torch.Tensor] | None = None,
        invert: list[bool] | None = None,
        captions: list[str] | None = None,
        class_images: list[torch.Tensor] | None = None,
        class_weight: list[float] | None = None,
        subjects: list[Subject] | None = None,
    ) -> io.NodeOutput:
        weight = 1.0 if class_weight is None else _first(class_weight)
        check_ranges(cls, class_weight=weight)
        words = _words(placeholder=placeholder, class_word=class_word, templates=templates)
        pictures = _read(images, faces, _first(folder), bool(_first(invert)), captions, "subject")
        before = _first(subjects)
        subject = Subject(
            pictures,
            *words,
            _class_pictures(class_images or ()),
            weight,
            () if before is None else before.all,
        )
        faces = [picture.mask for picture in pictures]
        return io.NodeOutput(subject, ui=_on_page(cls, pictures, faces))


def _on_page(
    cls: type[Node], pictures: Sequence[CapturePicture], masks: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """What the node shows: its pictures, and whether the masks leave out any of them."""
    previews = ui.PreviewImage(masked_previews(pictures, masks), cls=cls)
    shown: dict[str, Any] = previews.as_dict()  # type: ignore[no-untyped-call]
    return {**shown, "magic_masked": [leaves_out(masks)]}


class MagiCaptureStyle(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagiCaptureStyle",
            display_name="MagiCapture Style",
            category="MagicPortrait/MagiCapture",
            description=(
                "The style to learn: a handful of pictures of other people in it, with face masks,"
                " and the new word for it."
            ),
            search_aliases=["dreambooth", "training images", "style"],
            is_input_list=True,
            is_output_node=True,
            inputs=_picture_inputs(
                "style",
                STYLE_TEMPLATES,
                "person and style",
                "<style>",
                " Prompts with both words then train without refocusing: there is no place beside"
                " the face for the style.",
            ),
            outputs=[StyleType.Output(display_name="style", tooltip="For MagiCapture Train.")],
        )

    @classmethod
    def validate_inputs(cls, placeholder: object = None) -> bool | str:
        return _check(placeholder)

    @classmethod
    def fingerprint_inputs(cls, folder: Any = None, **linked: Any) -> str:
        return _fingerprint(folder, linked)

    @classmethod
    def execute(
        cls,
        folder: list[str],
        placeholder: list[str],
        class_word: list[str],
        templates: list[str],
        images: list[torch.Tensor] | None = None,
        faces: list[torch.Tensor] | None = None,
        invert: list[bool] | None = None,
        captions: list[str] | None = None,
    ) -> io.NodeOutput:
        words = _words(placeholder=placeholder, class_word=class_word, templates=templates)
        pictures = _read(images, faces, _first(folder), bool(_first(invert)), captions, "style")
        style = StyleSet(pictures, *words)
        beside_faces = [1 - picture.mask for picture in pictures]
        return io.NodeOutput(style, ui=_on_page(cls, pictures, beside_faces))
