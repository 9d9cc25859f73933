"""DINO: likeness to other pictures in what they show."""

from __future__ import annotations

from torch import Tensor

from ...magic.metrics import mean_cosine
from .comparison import Comparison
from .pretrained import chosen_folder, folders_of, image_features

_KINDS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")


def dino_folders() -> list[str]:
    return folders_of(_KINDS)


def dino(comparison: Comparison) -> Tensor:
    """The mean cosine of the class token to the references', as in DreamBooth (Ruiz et al., 2023):
    B."""
    from transformers import AutoModel

    references = comparison.needed_references()
    folder = chosen_folder(comparison.dino, _KINDS, "DINO model")
    features, of_references = (
        image_features(AutoModel, folder, pictures, lambda out: out.last_hidden_state[:, 0])
        for pictures in (comparison.images, references)
    )
    return mean_cosine(features, of_references)
