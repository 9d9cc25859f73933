"""One way to set up and sample a MagicFace picture, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from magicportrait.demo import portraits
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.layout import MagicSemanticLayout
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.nodes.magicface_concept import MagicFaceConcept
from magicportrait.tests.host import models

PROMPT = "a man wearing a red hat and a striped scarf"
NEGATIVE = "blurry"


@cache
def parts(shape: str = "sd15", dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    return models.random_model(shape, dtype), models.random_clip(), models.random_vae()


def encode(text: str) -> list[Any]:
    clip = parts()[1]
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@cache
def picture(seed: int) -> Tensor:
    """A portrait of the toy world, 1 3 128 128."""
    image: Tensor = torch.from_numpy(portraits.render(portraits.sample_portrait(seed)).image)
    return image[None].movedim(-1, 1)


def concepts(
    count: int = 2, size: tuple[int, int] = (128, 128), region: Tensor | None = None
) -> tuple[Any, ...]:
    chained: tuple[Any, ...] = ()
    for seed, phrase in list(enumerate(("hat", "scarf", "man")))[:count]:
        image = torch.nn.functional.interpolate(picture(seed), size=size).movedim(1, -1)
        mask = torch.zeros(1, *size)
        mask[:, size[0] // 8 : size[0] * 5 // 8, size[1] // 4 : size[1] * 7 // 8] = 1
        chained = MagicFaceConcept.execute(image, phrase, 2.0, mask, "", region, chained).args[0]
    return chained


def apply(
    model: Any, shape: str = "sd15", chained: tuple[Any, ...] | None = None, **options: Any
) -> tuple[Any, Any, Any]:
    """MODEL, CONDITIONING, MAGIC_LAYOUT of MagicFaceApply."""
    _, clip, vae = parts(shape)
    return MagicFaceApply.execute(
        model,
        clip,
        vae,
        chained or concepts(),
        **{**defaults_of(MagicFaceApply), "prompt": PROMPT, **options},
    ).args


def watch(model: Any, phrases: str = "hat, scarf") -> tuple[Any, Any, Any]:
    return MagicSemanticLayout.execute(model, parts()[1], PROMPT, phrases, 0.6).args


@dataclass
class Sampling:
    """How a latent is sampled."""

    batch: int = 1
    size: tuple[int, int] = (16, 16)
    cfg: float = 7.0
    steps: int = 4
    sampler: str = "euler"
    seed: int = 3
    negative: list[Any] = field(default_factory=lambda: encode(NEGATIVE))
    callback: Callable[..., None] | None = None

    def noise(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.cat(
            [torch.randn(1, 4, *self.size, generator=generator) for _ in range(self.batch)]
        )

    def run(self, model: Any, positive: Any, noise: Tensor | None = None) -> Tensor:
        import comfy.sample

        noise = self.noise() if noise is None else noise
        return comfy.sample.sample(
            model,
            noise,
            self.steps,
            self.cfg,
            self.sampler,
            "normal",
            positive,
            self.negative,
            torch.zeros_like(noise),
            callback=self.callback,
            disable_pbar=True,
            seed=self.seed,
        )
