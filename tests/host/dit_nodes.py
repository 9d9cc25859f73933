"""MagicFace on small transformers: nodes, references and a VAE of the family's shape."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.layout import MagicSemanticLayout
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.nodes.magicface_concept import MagicFaceConcept
from magicportrait.tests.host import dits
from magicportrait.tests.host.dit_text import random_clip_of

PROMPT = "a man with a red hat and a striped scarf"
NEGATIVE = "blurry"
SIZE = (15, 13)


class SmallVae:
    """Latents of a family's shape, of pictures of any size: means over cells, spread over the
    channels."""

    def __init__(self, family: str):
        self._shape = dits.latent_shape(family)
        self._cell = 16 if family == "flux2" else 8

    def encode(self, images: Tensor) -> Tensor:  # B H W 3
        cells = F.avg_pool2d(images.movedim(-1, 1), self._cell)
        generator = torch.Generator().manual_seed(0)
        spread = torch.randn(self._shape[1], 3, generator=generator)
        latent = torch.einsum("bchw,dc->bdhw", cells, spread)
        return latent.unsqueeze(2) if len(self._shape) == 5 else latent


def concepts(
    count: int = 2, size: tuple[int, int] = (96, 128), region: Tensor | None = None, **more: Any
) -> tuple[Any, ...]:
    chained: tuple[Any, ...] = ()
    for seed, phrase in enumerate(("hat", "striped scarf", "man")[:count]):
        picture = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros(1, *size)
        # Whole tokens of 16 pixels.
        mask[:, 32:80, 32:96] = 1
        chained = MagicFaceConcept.execute(
            picture, phrase, 1.0, mask, "", region, chained, **more
        ).args[0]
    return chained


def apply(
    family: str, model: Any = None, chained: tuple[Any, ...] | None = None, **options: Any
) -> tuple[Any, Any, Any]:
    """MODEL, CONDITIONING, MAGIC_LAYOUT of MagicFaceApply."""
    settings = {**defaults_of(MagicFaceApply), "prompt": PROMPT, "inject_at": 0.0, **options}
    return MagicFaceApply.execute(
        model or dits.random_transformer(family),
        random_clip_of(family),
        SmallVae(family),
        concepts() if chained is None else chained,
        **settings,
    ).args


def watch(family: str, phrases: str = "hat, scarf") -> tuple[Any, Any, Any]:
    return MagicSemanticLayout.execute(
        dits.random_transformer(family), random_clip_of(family), PROMPT, phrases, 0.6
    ).args


def encode(family: str, text: str) -> list[Any]:
    clip = random_clip_of(family)
    conditioning: list[Any] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return conditioning


def sample(
    family: str,
    model: Any,
    positive: list[Any],
    cfg: float = 4.0,
    batch: int = 1,
    size: tuple[int, int] = SIZE,
    sigmas: tuple[float, ...] = (1.0, 0.7, 0.4, 0.0),
) -> Tensor:
    shape = dits.latent_shape(family, batch, size)
    return dits.sample(model, shape, positive, encode(family, NEGATIVE), cfg, sigmas)
