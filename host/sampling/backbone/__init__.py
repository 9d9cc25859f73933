"""What the pack knows of a kind of model: one protocol, and a module for each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .interface import Backbone, LayerKey, LayerView, Look, Rule, Watch
from .unet import UNet

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

__all__ = ["Backbone", "LayerKey", "LayerView", "Look", "Rule", "Watch", "backbone_of"]


def backbone_of(model: ModelPatcher) -> Backbone:
    """What a MODEL is. ValueError, with its class, for a kind that the pack does not know."""
    if (unet := UNet.read(model)) is not None:
        return unet
    raise ValueError(
        f"this needs a UNet model (SD1.5, SD2.1, SDXL or a fine-tune of one), got"
        f" {type(model.model).__name__}: models built from a single transformer (Flux, SD3, ...)"
        " have no such attention layers"
    )
