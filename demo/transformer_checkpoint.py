"""The transformer toy in the host's own classes, and how it is written.

One safetensors file as the UNet toy's (`checkpoint.py`), with 'transformer.*' in place of 'unet.*'.
It brings its own text encoder, which knows a few words more, and its own copy of the autoencoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from . import checkpoint
from .transformer import TEXT_TOKENS, host_config, in_host_names

PATH = checkpoint.PATH.with_name("magic_toy_transformer.safetensors")
IMAGE_SIDE = 256


def load(path: Path | None = None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE, as a checkpoint loader returns them; from PATH unless another is
    given."""
    path = path or PATH
    parts = checkpoint.read_parts(path)
    model = build_model(parts["transformer"])
    # Newer hosts copy a model by loading it again: for training and for a second device.
    model.cached_patcher_init = (load_model, (path,))
    return (
        model,
        checkpoint.build_clip(parts["text"], TEXT_TOKENS),
        checkpoint.build_vae(parts["autoencoder"]),
    )


def load_model(path: Path = PATH, disable_dynamic: bool = False) -> Any:
    """MODEL alone. disable_dynamic: in the host's plain patcher, as its loaders have it."""
    return build_model(checkpoint.read_parts(path)["transformer"], disable_dynamic)


def build_model(state: dict[str, Tensor], disable_dynamic: bool = False) -> Any:
    """MODEL from the weights of the transformer: flow matching without a shift."""
    import comfy.latent_formats
    import comfy.supported_models

    class ToyFlux(comfy.supported_models.FluxSchnell):
        # The host's detection by keys has no part in this.
        unet_config: dict[str, Any] = {}
        unet_extra_config: dict[str, Any] = {}
        # Four channels, scaled as the UNet toy's: the VAE is the same.
        latent_format: Any = comfy.latent_formats.SD15
        supported_inference_dtypes = [*checkpoint.HALF_OR_FULL]
        native_side = IMAGE_SIDE
        # Its context is CLIP's, where other models of this class have T5's.
        context_tokens = "l"

    config: Any = ToyFlux
    return checkpoint.in_a_patcher(config(host_config()), in_host_names(state), disable_dynamic)
