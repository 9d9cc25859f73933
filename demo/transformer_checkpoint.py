"""The transformer toy in the host's own classes, and how it is written.

One safetensors file as the UNet toy's (`checkpoint.py`), with 'transformer.*' in place of 'unet.*'.
It brings its own text encoder; the autoencoder is the UNet toy's, from its file.
`load_edit` makes of it a model that is given references in its sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .low_rank import merge
from .transformer import REFERENCE_METHOD, TEXT_TOKENS, host_config, in_host_names, noised

PATH = checkpoint.PATH.with_name("magic_toy_transformer.safetensors")
EDIT_PATH = checkpoint.PATH.with_name("magic_toy_transformer_edit.safetensors")
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
        checkpoint.build_vae(checkpoint.read_parts()["autoencoder"]),
    )


def load_model(path: Path = PATH, disable_dynamic: bool = False) -> Any:
    """MODEL alone. disable_dynamic: in the host's plain patcher, as its loaders have it."""
    return build_model(checkpoint.read_parts(path)["transformer"], disable_dynamic)


def load_edit(change: Path | None = None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE that are given reference latents. change: a trained one (`low_rank.py`);
    without one the shipped weights as they are, which see references at the noise of the
    picture."""
    parts = checkpoint.read_parts(PATH)
    text = parts["text"] if change is None else _changed(parts, change)[1]
    model = load_edit_model(change)
    model.cached_patcher_init = (load_edit_model, (change,))
    return (
        model,
        checkpoint.build_clip(text, TEXT_TOKENS),
        checkpoint.build_vae(checkpoint.read_parts()["autoencoder"]),
    )


def load_edit_model(change: Path | None = None, disable_dynamic: bool = False) -> Any:
    """MODEL of `load_edit` alone."""
    parts = checkpoint.read_parts(PATH)
    transformer = parts["transformer"] if change is None else _changed(parts, change)[0]
    return _with_references(build_model(transformer, disable_dynamic), is_noised=change is None)


def _changed(
    parts: dict[str, dict[str, Tensor]], path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of transformer and text encoder with the change of a file."""
    return merge(parts["transformer"], parts["text"], checkpoint.read_parts(path)["edit"])


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


def _with_references(model: Any, is_noised: bool) -> Any:
    """The MODEL, which takes references as REFERENCE_METHOD has them, whatever the host's default
    is. is_noised: whether it sees them at the noise of the picture."""
    from comfy.patcher_extension import WrappersMP

    def apply(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (given := kwargs.get("ref_latents")) is not None:
            kwargs.setdefault("ref_latents_method", REFERENCE_METHOD)
            if is_noised:
                noised = [_noised(latent, t, index) for index, latent in enumerate(given)]
                kwargs["ref_latents"] = noised
        out: Tensor = executor(x, t, *args, **kwargs)
        return out

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "magic_toy_references", apply)
    return model


def _noised(latent: Tensor, sigma: Tensor, index: int) -> Tensor:
    """A reference at the noise of the picture: what the shipped weights were trained to look at.
    latent: B C h w; sigma: of each row of the call; index: of the reference, whose noise is the
    same in every call."""
    generator = torch.Generator().manual_seed(index)
    noise = torch.randn(1, *latent.shape[1:], generator=generator).to(latent)
    return noised(latent, sigma.to(latent), noise)
