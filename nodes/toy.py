"""The embedded toy world: a tiny checkpoint and portraits drawn on the fly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ..demo import captures, checkpoint, portraits, transformer_checkpoint
from ..host.page.notices import notice
from ..host.sampling.native_size import add_size_notice, refuse_other_references
from .declare import schema
from .inputs import Node, check_ranges

_AS_DRAWN = "by seed"
_MODELS: dict[str, Callable[[], tuple[Any, Any, Any]]] = {
    "unet": checkpoint.load,
    "transformer": transformer_checkpoint.load,
    "transformer, edit": transformer_checkpoint.load_edit,
}


class MagicToyCheckpoint(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicToyCheckpoint",
            display_name="Toy Checkpoint",
            category="MagicPortrait/toy",
            description=(
                "Tiny models that come with this pack, a UNet and a transformer: cartoon portraits,"
                " seconds on any CPU. Prompts: 'a smiling woman with pale skin and red hair wearing"
                " a blue striped top hat, glasses and a green scarf, pink background, sketch"
                " style'."
            ),
            search_aliases=["demo model", "test checkpoint", "magic portrait"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(_MODELS),
                    default="unet",
                    optional=True,
                    tooltip=(
                        "'unet': in the shape of Stable Diffusion 1, 128 px. 'transformer': in the"
                        " shape of Flux, 256 px; it also draws two people side by side."
                        " 'transformer, edit': the same as an edit model, which looks at reference"
                        " latents of 128 px portraits and calls them by number ('a first hat, a"
                        " second scarf')."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL",
                    tooltip=(
                        "The UNet (4x16x16 latents, eps prediction) or the transformer (4x32x32"
                        " latents, flow matching): best at CFG 3 to 5."
                    ),
                ),
                io.Clip.Output(
                    display_name="CLIP", tooltip="A small text encoder behind the SD1 tokenizer."
                ),
                io.Vae.Output(display_name="VAE", tooltip="The autoencoder (TAESD-shaped, 8x)."),
            ],
        )

    @classmethod
    def execute(cls, model: str = "unet") -> io.NodeOutput:
        toy, clip, vae = _MODELS[model]()
        add_size_notice(toy, notice)
        refuse_other_references(toy)
        return io.NodeOutput(toy, clip, vae)


class MagicToyPortrait(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicToyPortrait",
            display_name="Toy Portrait",
            category="MagicPortrait/toy",
            description=(
                "Draws a portrait from a seed, with an exact mask of one of its parts: a reference"
                " image without any files."
            ),
            search_aliases=["demo image", "procedural portrait", "test image"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=True,
                    tooltip=(
                        "Which portrait is drawn. Portraits without the part are passed over."
                    ),
                ),
                io.Combo.Input(
                    "part",
                    options=list(portraits.PARTS),
                    default="hat",
                    tooltip="The part that the mask shows: every portrait drawn has it.",
                ),
                io.Combo.Input(
                    "style",
                    options=[_AS_DRAWN, *portraits.STYLES],
                    default="cartoon",
                    tooltip="How it is drawn; 'by seed' lets the seed choose.",
                ),
                io.Int.Input(
                    "size",
                    default=128,
                    min=64,
                    max=1024,
                    step=8,
                    tooltip=(
                        "Side in pixels. The toy's UNet was trained at 128, its transformer at 256."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="IMAGE", tooltip="The portrait."),
                io.Mask.Output(display_name="MASK", tooltip="The chosen part, exact."),
                io.String.Output(
                    display_name="caption",
                    tooltip="The portrait in words, as the toy checkpoint was trained on them.",
                ),
            ],
        )

    @classmethod
    def execute(cls, seed: int, part: str, style: str, size: int) -> io.NodeOutput:
        check_ranges(cls, seed=seed, size=size)
        portrait, drawn = _portrait_with(part, seed, style, size)
        return io.NodeOutput(
            torch.from_numpy(drawn.image)[None],
            torch.from_numpy(drawn.masks[part])[None],
            portraits.caption(portrait),
        )


def _portrait_with(
    part: str, seed: int, style: str, size: int
) -> tuple[portraits.Portrait, portraits.Rendering]:
    """The seed's portrait, or the first after it that has the part. Those come from seeds that the
    widget does not reach: the portrait of the next seed is another one."""
    attempt = 0
    while True:
        portrait = portraits.sample_portrait(seed + (attempt << 32))
        if style in portraits.STYLES:
            portrait = replace(portrait, style=style)
        drawn = portraits.render(portrait, size)
        if drawn.masks[part].any():
            return portrait, drawn
        attempt += 1


class MagicToyCapture(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MagicToyCapture",
            display_name="Toy Subject and Style",
            category="MagicPortrait/toy",
            description=(
                "Pictures to train MagiCapture with, drawn on the fly: one person in several poses,"
                " other people in one style, and the truth: the same person drawn in that style."
            ),
            search_aliases=["dreambooth", "demo data", "training images", "procedural portrait"],
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Who is drawn.",
                ),
                io.Combo.Input(
                    "style",
                    options=[*map(str, portraits.STYLES)],
                    default="neon",
                    tooltip="The style to learn; the person comes in cartoon style.",
                ),
                io.Int.Input(
                    "count", default=5, min=1, max=30, tooltip="How many pictures of each."
                ),
                io.Int.Input(
                    "size",
                    default=128,
                    min=64,
                    max=1024,
                    step=8,
                    tooltip=(
                        "Side in pixels. The toy's UNet was trained at 128, its transformer at 256."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="subject", tooltip="The person: for MagiCapture Subject."
                ),
                io.Mask.Output(
                    display_name="subject_faces", tooltip="Face and hair of the person, exact."
                ),
                io.Image.Output(
                    display_name="style",
                    tooltip="Other people in the style: for MagiCapture Style.",
                ),
                io.Mask.Output(display_name="style_faces", tooltip="Their faces and hair, exact."),
                io.Image.Output(
                    display_name="truth",
                    tooltip="The person in the style: what a perfect training would make.",
                ),
                io.String.Output(
                    display_name="class_word",
                    tooltip="'woman' or 'man', for both class_word inputs.",
                ),
            ],
        )

    @classmethod
    def execute(cls, seed: int, style: portraits.Style, count: int, size: int) -> io.NodeOutput:
        check_ranges(cls, seed=seed, count=count, size=size)
        capture = captures.sample_capture(seed, style, count)
        pictures = [
            torch.from_numpy(array)
            for part in (capture.subject, capture.style)
            for array in captures.draw(part, size)
        ]
        truth, _ = captures.draw(capture.truth, size)
        return io.NodeOutput(*pictures, torch.from_numpy(truth), capture.class_word)
