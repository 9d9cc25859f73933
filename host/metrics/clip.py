"""What CLIP sees: likeness to other pictures (CLIP-I), to words (CLIP-T), and aesthetics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.metrics import linear_chain, mean_cosine
from ..models import folders as model_folders
from ..models.folders import METRICS
from .comparison import AT_ONCE, Comparison, Missing, chosen_file
from .pretrained import chosen_folder, folders_of, from_folder, image_features, processor_of

_KINDS = ("clip",)
_HEAD_MARKS = ("aesthetic", "linearmse", "vit_l_14_linear")


def clip_folders() -> list[str]:
    return folders_of(_KINDS)


def aesthetic_heads() -> list[str]:
    return [
        name
        for name in model_folders.names(METRICS)
        if any(mark in name.lower() for mark in _HEAD_MARKS)
    ]


def clip_i(comparison: Comparison) -> Tensor:
    """The mean cosine to the references: B."""
    references = comparison.needed_references()
    return mean_cosine(
        _embeddings(comparison, comparison.images), _embeddings(comparison, references)
    )


def clip_t(comparison: Comparison) -> Tensor:
    """The cosine to each picture's prompt: B. Pictures and words by the same folder. A checkpoint's
    own text encoder will not do: SD1.5's lacks CLIP's projection."""
    from transformers import (
        AutoTokenizer,
        CLIPTextModelWithProjection,
        CLIPVisionModelWithProjection,
    )

    if not any(comparison.prompts):
        raise Missing("no prompt: write what the pictures should show")
    folder = chosen_folder(comparison.clip, _KINDS, "CLIP model")
    pictures = image_features(
        CLIPVisionModelWithProjection, folder, comparison.images, lambda out: out.image_embeds
    )
    tokenizer = processor_of(AutoTokenizer, folder)
    model = from_folder(CLIPTextModelWithProjection, folder)
    tokens = tokenizer(
        list(comparison.prompts), padding=True, truncation=True, return_tensors="pt"
    ).to(model.device)
    words = model.on_device()(**tokens).text_embeds.float().cpu()
    return F.cosine_similarity(
        pictures, words.expand(len(pictures), -1) if len(words) == 1 else words
    )


def aesthetic(comparison: Comparison) -> Tensor:
    """LAION's score of each picture, about 1 to 10: B."""
    name = chosen_file(
        comparison.aesthetic,
        aesthetic_heads(),
        "aesthetic head",
        "sac+logos+ava1-l14-linearMSE as .safetensors or .pth",
    )
    state = model_folders.read_tensors(model_folders.path_of(METRICS, name))
    features = F.normalize(_embeddings(comparison, comparison.images), dim=-1)
    try:
        return linear_chain(state, features)
    except ValueError as error:
        raise Missing(
            f"{name} does not fit this CLIP ({error}): LAION's heads take CLIP ViT-L/14"
        ) from error


def _embeddings(comparison: Comparison, images: Tensor) -> Tensor:
    """B D, by the host's CLIP_VISION when there is one."""
    if comparison.clip_vision is not None:
        rows = [
            comparison.clip_vision.encode_image(images[i : i + AT_ONCE])["image_embeds"]
            for i in range(0, len(images), AT_ONCE)
        ]
        return torch.cat(rows).float().cpu()
    from transformers import CLIPVisionModelWithProjection

    folder = chosen_folder(comparison.clip, _KINDS, "CLIP model")
    return image_features(
        CLIPVisionModelWithProjection, folder, images, lambda out: out.image_embeds
    )
