"""What the pack knows of a kind of model: one protocol, and a module for each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .families import OUT_OF_REACH, family_of
from .interface import (
    Backbone,
    CallSize,
    LayerKey,
    LayerTokens,
    LayerView,
    Look,
    Rule,
    Watch,
)
from .joint import JointTransformer
from .texts import RegionText, TextsOfConds, text_places, text_tokens
from .unet import UNet

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

__all__ = [
    "Backbone",
    "CallSize",
    "JointTransformer",
    "LayerKey",
    "LayerTokens",
    "LayerView",
    "Look",
    "RegionText",
    "Rule",
    "TextsOfConds",
    "Watch",
    "backbone_of",
    "check_reads_texts",
    "edit_model_of",
    "text_places",
    "text_tokens",
    "unet_of",
]
_PAGE = "docs/model_families.md in this pack's folder, 'How to add a model family'"


def backbone_of(model: ModelPatcher) -> Backbone:
    """What a MODEL is. ValueError, with its class, for a kind that the pack does not know."""
    backbone: Backbone | None = UNet.read(model) or JointTransformer.read(model)
    if backbone is not None:
        return backbone
    name = type(model.model).__name__
    if name in OUT_OF_REACH:
        raise ValueError(f"{name} is a model that this pack cannot work with: {OUT_OF_REACH[name]}")
    if family_of(model) is not None:
        raise ValueError(
            f"this ComfyUI is older than the {name} that this pack knows: update ComfyUI, or use"
            " another model"
        )
    raise ValueError(
        f"{name} is a kind of model that this pack does not know: use a UNet (SD1.5, SD2.1, SDXL)"
        f" or one of the transformers that the README lists. {_PAGE} says how to teach it another"
    )


def check_reads_texts(backbone: Backbone) -> None:
    """ValueError for a kind of model in which no text can stand beside the prompt."""
    if isinstance(backbone, JointTransformer):
        backbone.check_reads_texts()


def unet_of(model: ModelPatcher) -> UNet:
    """The UNet of a MODEL. ValueError, with its class, when it has none: for what works on UNets
    only."""
    if (unet := UNet.read(model)) is not None:
        return unet
    raise ValueError(
        "this needs a UNet model (SD1.5, SD2.1, SDXL or a fine-tune of one), got"
        f" {type(model.model).__name__}"
    )


def edit_model_of(model: ModelPatcher) -> JointTransformer:
    """The transformer of a MODEL that can be given pictures in its sequence. ValueError, with its
    class, when it cannot."""
    backbone = backbone_of(model)
    if isinstance(backbone, JointTransformer) and backbone.family.takes_pictures:
        return backbone
    raise ValueError(
        f"{type(model.model).__name__} takes no reference pictures in its sequence: load an edit"
        " model (Flux.1 Kontext, Flux.2, Qwen-Image-Edit, Krea 2 edit, Z-Image-Omni), or use"
        " MagicFace Apply with a reference pass"
    )
