"""MagicFace Concept: one thing to take from a reference image."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..host.page.thumbnails import thumbnails_on_page
from ..host.pictures import own_picture
from ..host.pictures.own_picture import NO_PICTURE
from ..magic.concepts import LEVELS, Concept
from ..magic.curves import parse_curve
from ..magic.messages import shown
from ..magic.pictures import mask_batch, picture_batch
from .declare import ConceptsBefore, chain_output, curve_input, optional, schema, span_inputs
from .inputs import Node, check_ranges, check_span, check_texts, invert_input, painted_mask

DEFAULT_STRENGTH = 3.0
CUSTOM_STRENGTH = "custom"
_STRENGTHS = (-5.0, 10.0)
_NOT_CONNECTED = object()
"""What an input has that the host does not name: None stands for one that is linked."""


class MagicFaceConcept(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicFaceConcept",
            display_name="MagicFace Concept",
            category="MagicPortrait/MagicFace",
            description=(
                "One thing to take from a reference image: a face, a hat, a scarf. Chain as many as"
                " you like."
            ),
            search_aliases=[
                "reference",
                "reference image",
                "face",
                "identity",
                "subject",
                "character",
                "consistent character",
                "outfit",
                "clothes",
                "clothes swap",
                "try on",
                "face swap",
                "swap face",
                "faceswap",
                "reactor",
                "hat",
                "scarf",
                "glasses",
                "accessory",
                "hair",
                "hairstyle",
                "multi subject",
                "personalize",
                "ip adapter",
                "instantid",
                "pulid",
            ],
            inputs=[
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip=(
                        "The reference. When it is connected it counts, and 'picture' does not. Any"
                        " size and aspect; a batch counts as several views of the same thing."
                    ),
                ),
                io.String.Input(
                    "phrase",
                    default="hat",
                    tooltip=(
                        "The words of the target prompt that name this concept, such as 'hat' or"
                        " 'red scarf'."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=DEFAULT_STRENGTH,
                    min=_STRENGTHS[0],
                    max=_STRENGTHS[1],
                    step=0.1,
                    tooltip=(
                        "How much more the picture looks at this reference: added to the attention"
                        " logits. 1.2 to 4 works on UNets, 0.5 to 2 on transformers; 0 is neutral,"
                        " higher copies more."
                    ),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=(
                        "Which part of the image shows the concept. Default: what is painted in the"
                        " node's own picture, else all of it. Soft edges count softly."
                    ),
                ),
                io.String.Input(
                    "reference_prompt",
                    optional=True,
                    default="",
                    tooltip=(
                        "What the reference image shows, such as 'a man wearing a hat'. Empty: the"
                        " phrase."
                    ),
                ),
                io.Mask.Input(
                    "target_region",
                    optional=True,
                    tooltip=(
                        "Where in the new picture the concept goes. Default: found by itself from"
                        " the prompt."
                    ),
                ),
                ConceptsBefore.Input(
                    "concepts", optional=True, tooltip="Concepts before this one."
                ),
                io.Combo.Input(
                    "picture",
                    options=[NO_PICTURE, *own_picture.list_pictures()],
                    optional=True,
                    default=NO_PICTURE,
                    upload=io.UploadType.image,
                    image_folder=io.FolderType.input,
                    tooltip=(
                        "A reference of the node's own: counts only as long as nothing is connected"
                        " to 'image'. Paint the thing in the Mask Editor; of a cut-out with a"
                        " transparent ground the rest is taken."
                    ),
                ),
                io.Combo.Input(
                    "preset",
                    options=[CUSTOM_STRENGTH, *(str(level) for level in LEVELS)],
                    optional=True,
                    default=CUSTOM_STRENGTH,
                    tooltip=(
                        "How much is copied, in words that fit every model: subtle, normal and"
                        " strong are a strength of 2, 3, 4 on UNets and of 0.5, 1, 2 on"
                        " transformers (Flux, Z-Image, ...). 'custom' takes the number of strength."
                    ),
                ),
                invert_input("the mask"),
                *(
                    optional(item)
                    for item in span_inputs(
                        "Share of sampling after which this reference is looked at. Later: the"
                        " prompt alone lays out the picture.",
                        "Share of sampling after which this reference is no longer looked at."
                        " Earlier: the model draws the details alone.",
                    )
                ),
                curve_input("0: 3, 0.5: 1", "strength and preset"),
            ],
            outputs=[chain_output()],
        )

    @classmethod
    def validate_inputs(cls, image: Any = _NOT_CONNECTED, picture: Any = NO_PICTURE) -> bool | str:
        # Where an image is linked, None stands for it, and the picture does not count.
        if image is not _NOT_CONNECTED or picture is None:
            return True
        return own_picture.complaint_about(picture) or True

    @classmethod
    def fingerprint_inputs(cls, picture: Any = NO_PICTURE, image: Any = None, **_: Any) -> str:
        is_own = image is None and isinstance(picture, str)
        return own_picture.state_of(picture) if is_own else ""

    @classmethod
    def execute(
        cls,
        image: torch.Tensor | None = None,
        phrase: str = "hat",
        strength: float = DEFAULT_STRENGTH,
        mask: torch.Tensor | None = None,
        reference_prompt: str = "",
        target_region: torch.Tensor | None = None,
        concepts: tuple[Concept, ...] = (),
        picture: str = NO_PICTURE,
        preset: str = CUSTOM_STRENGTH,
        invert: bool = False,
        start: float = 0.0,
        end: float = 1.0,
        strength_curve: str = "",
    ) -> io.NodeOutput:
        check_ranges(cls, strength=strength)
        check_span(cls, start, end)
        check_texts(phrase=phrase, reference_prompt=reference_prompt, strength_curve=strength_curve)
        level = next((at for at in LEVELS if at == preset), None)
        curve = parse_curve(strength_curve, *_STRENGTHS)
        if curve is not None and level is None:
            curve = curve.of(strength)
        phrase, covered, painted = phrase.strip(), mask, None
        if not phrase:
            raise ValueError(
                "phrase is empty: write the words of the target prompt that name this concept, such"
                " as 'hat'"
            )
        if image is None:
            image, painted = own_picture.read(picture)
            covered = painted if mask is None else mask
        image = picture_batch(image, f"image of concept '{shown(phrase)}'")
        if covered is not None:
            owner = f"mask of concept '{shown(phrase)}'"
            what_to_do = "paint over the part of the image to take"
            if covered is painted:
                what_to_do += ", with Paint the mask on this node"
            covered = painted_mask(covered, owner, what_to_do, invert)
        region = None if target_region is None else mask_batch(target_region, "target_region")
        prompt = reference_prompt.strip()
        concept = Concept(
            phrase,
            image,
            covered,
            prompt,
            strength,
            region,
            level,
            start=start,
            end=end,
            curve=curve,
        )
        return io.NodeOutput((*concepts, concept), ui=thumbnails_on_page(concept))
