"""The transformer toy in the host's own classes, and how it is written.

One safetensors file as the UNet toy's (`checkpoint.py`), with 'transformer.*' in place of 'unet.*'.
It brings its own text encoder; the autoencoder is the UNet toy's, from its file.
`load_edit` makes of it a model that is given references in its sequence, by a trained change of its
weights (`low_rank.py`) in a file of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from . import checkpoint
from .low_rank import merge
from .transformer import (
    REFERENCE_METHOD,
    REFERENCE_SIDE,
    TEXT_TOKENS,
    host_config,
    in_host_names,
)

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
    return _with_text_and_vae(model, parts["text"])


def _with_text_and_vae(model: Any, text: dict[str, Tensor]) -> tuple[Any, Any, Any]:
    """MODEL, CLIP from the weights of the text encoder, and the UNet toy's VAE."""
    return (
        model,
        checkpoint.build_clip(text, TEXT_TOKENS),
        checkpoint.build_vae(checkpoint.read_parts()["autoencoder"]),
    )


def load_model(path: Path = PATH, disable_dynamic: bool = False) -> Any:
    """MODEL alone. disable_dynamic: in the host's plain patcher, as its loaders have it."""
    return build_model(checkpoint.read_parts(path)["transformer"], disable_dynamic)


def load_edit(path: Path | None = None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE that are given reference latents; path: of the change, EDIT_PATH unless
    another is given."""
    path = path or EDIT_PATH
    transformer, text = _changed(path)
    model = _with_references(build_model(transformer, reference_side=REFERENCE_SIDE))
    model.cached_patcher_init = (load_edit_model, (path,))
    return _with_text_and_vae(model, text)


def load_edit_model(path: Path = EDIT_PATH, disable_dynamic: bool = False) -> Any:
    """MODEL of `load_edit` alone."""
    transformer, _ = _changed(path)
    return _with_references(build_model(transformer, disable_dynamic, REFERENCE_SIDE))


def _changed(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of transformer and text encoder with the change of a file."""
    parts = checkpoint.read_parts(PATH)
    return merge(parts["transformer"], parts["text"], checkpoint.read_parts(path)["edit"])


def build_model(
    state: dict[str, Tensor], disable_dynamic: bool = False, reference_side: int | None = None
) -> Any:
    """MODEL from the weights of the transformer: flow matching without a shift. reference_side: of
    the pictures that it is given, in pixels; None where it is given none."""
    import comfy.latent_formats
    import comfy.supported_models

    given_side = reference_side

    class ToyFlux(comfy.supported_models.FluxSchnell):
        # The host's detection by keys has no part in this.
        unet_config: dict[str, Any] = {}
        unet_extra_config: dict[str, Any] = {}
        # Four channels, scaled as the UNet toy's: the VAE is the same.
        latent_format: Any = comfy.latent_formats.SD15
        supported_inference_dtypes = [*checkpoint.HALF_OR_FULL]
        native_side = IMAGE_SIDE
        if given_side is not None:
            reference_side = given_side
        # Its context is CLIP's, where other models of this class have T5's.
        context_tokens = "l"

    config: Any = ToyFlux
    return checkpoint.in_a_patcher(config(host_config()), in_host_names(state), disable_dynamic)


def _with_references(model: Any) -> Any:
    """The MODEL, which takes references as REFERENCE_METHOD has them, whatever the host's default
    is."""
    from comfy.patcher_extension import WrappersMP

    def apply(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("ref_latents") is not None:
            kwargs.setdefault("ref_latents_method", REFERENCE_METHOD)
        out: Tensor = executor(x, t, *args, **kwargs)
        return out

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "magic_toy_references", apply)
    return model
