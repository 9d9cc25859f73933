"""What the pack needs to know of the UNet it is applied to."""

from __future__ import annotations

from typing import Any

from ....magic.blocks import AttentionBlock, Block


def attention_blocks(model: Any) -> list[AttentionBlock]:
    """The self-attention blocks of a MODEL in forward order. ValueError for anything but a UNet
    with BasicTransformerBlock."""
    unet = model.get_model_object("diffusion_model")
    if not all(hasattr(unet, part) for part in ("input_blocks", "middle_block", "output_blocks")):
        raise ValueError(
            "this needs a UNet model (SD1.5, SD2.1, SDXL or a fine-tune of one), got"
            f" {type(model.model).__name__}: models built from a single transformer (Flux, SD3,"
            " ...) have no such attention layers"
        )
    found: list[AttentionBlock] = []
    downscale = 1
    for index, block in enumerate(unet.input_blocks):
        _collect(found, Block("input", index), block, downscale)
        if any(type(part).__name__ == "Downsample" for part in block):
            downscale *= 2
    _collect(found, Block("middle", 0), unet.middle_block, downscale)
    for index, block in enumerate(unet.output_blocks):
        _collect(found, Block("output", index), block, downscale)
        if any(type(part).__name__ == "Upsample" for part in block):
            downscale //= 2
    return found


def _collect(found: list[AttentionBlock], name: Block, block: Any, downscale: int) -> None:
    for part in block:
        if hasattr(part, "transformer_blocks"):
            found.append(AttentionBlock(name, downscale, len(part.transformer_blocks)))


def native_side(model: Any) -> int:
    """The side in pixels of the square pictures that the model was trained on."""
    import comfy.model_base

    # Asked of the class: the host's instances answer every unknown name, with a warning.
    own = getattr(type(model.model.model_config), "native_side", None)
    if own is not None:
        return int(own)
    if isinstance(model.model, comfy.model_base.SDXL):
        return 1024
    is_sd2 = model.model.model_config.unet_config.get("context_dim") == 1024
    return (
        768 if is_sd2 and model.model.model_type == comfy.model_base.ModelType.V_PREDICTION else 512
    )
