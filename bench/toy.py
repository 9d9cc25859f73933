"""The toy world for benches: the shipped checkpoint, pictures, and where their parts are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import in_process  # noqa: F401 (before what follows)

# ruff: isort: split
import comfy.sample
import comfy.samplers
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.demo import checkpoint, face_network, portraits, transformer_checkpoint
from magicportrait.demo.dataset import HELD_OUT_SEEDS
from magicportrait.demo.portraits import Portrait, Rendering
from magicportrait.host.faces.identity import Identity
from magicportrait.host.layout.record import LayoutRecord
from magicportrait.nodes.layout import MagicSemanticLayout

SIDE = checkpoint.IMAGE_SIDE
"""Of the UNet's pictures, in pixels."""
LATENT_PIXELS = 8
"""Pixels along the side of a latent pixel."""


@dataclass(frozen=True)
class Toy:
    """A shipped checkpoint.

    model: MODEL; clip: CLIP; vae: VAE, as the host's nodes pass them on.
    side: of its pictures, in pixels.
    scheduler: the host's schedule that takes equal steps of it.
    """

    model: Any
    clip: Any
    vae: Any
    side: int = SIDE
    scheduler: str = "ddim_uniform"

    @classmethod
    def load(cls) -> Toy:
        """The UNet."""
        return cls(*checkpoint.load())

    @classmethod
    def load_transformer(cls) -> Toy:
        parts = transformer_checkpoint.load()
        return cls(*parts, side=transformer_checkpoint.IMAGE_SIDE, scheduler="simple")

    def encode_text(self, text: str) -> list[Any]:
        """CONDITIONING of a prompt."""
        conditioning: list[Any] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        return conditioning

    def empty_conds(self) -> dict[str, list[Any]]:
        """Positive and negative of the empty prompt, as an inversion takes them."""
        empty = self.encode_text("")
        return {"positive": empty, "negative": empty}

    def decode(self, samples: Tensor) -> Tensor:
        """B 4 h w -> B H W 3 in 0..1."""
        images: Tensor = self.vae.decode(samples)
        return images.clamp(0, 1)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """A latent of noise for each seed: B 4 h w."""
        size = (1, 4, self.side // LATENT_PIXELS, self.side // LATENT_PIXELS)
        return torch.cat(
            [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )

    def sigmas(self, steps: int) -> Tensor:
        """Those of the uniform schedule, the last one 0: steps + 1."""
        sampling = self.model.get_model_object("model_sampling")
        return comfy.samplers.calculate_sigmas(sampling, self.scheduler, steps)

    def sample(
        self,
        model: Any,
        positive: Any,
        noise: Tensor,
        steps: int = 25,
        cfg: float = 4.0,
        callback: Callable[..., None] | None = None,
    ) -> Tensor:
        """B 4 h w, by a model that is this one with patches. The negative prompt is empty.
        callback: called after each step."""
        # Euler over the uniform schedule of an eps model is DDIM with eta 0.
        samples: Tensor = comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            "euler",
            self.scheduler,
            positive,
            self.encode_text(""),
            torch.zeros_like(noise),
            callback=callback,
            disable_pbar=True,
            seed=0,
        )
        return samples

    def denoise(self, model: Any, positive: Any, latent: Tensor, sigma: float, seed: int) -> Tensor:
        """One model call at CFG 4, on a latent that is noised to `sigma`: B 4 h w."""
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, self.encode_text(""))
        guider.set_cfg(4.0)
        samples: Tensor = guider.sample(
            self.noise([seed]),
            latent,
            comfy.samplers.sampler_object("euler"),
            torch.tensor([sigma, 0.0]),
            disable_pbar=True,
            seed=seed,
        )
        return samples

    def watch(
        self, prompt: str, phrases: Sequence[str], ca_scale: float = 1.0
    ) -> tuple[Any, Any, LayoutRecord]:
        """MODEL, conditioning and record of Semantic Layout."""
        model, positive, record = MagicSemanticLayout.execute(
            self.model, self.clip, prompt, ", ".join(phrases), ca_scale
        ).args
        return model, positive, record


def identity() -> Identity:
    """The shipped network that tells drawn faces apart."""
    return Identity("toy", face_network.load(), face_network.SIDE, face_network.MARGIN)


def held_out(
    count: int, fits: Callable[[Portrait], bool] = lambda portrait: True
) -> list[Portrait]:
    """The first `count` portraits that no training had, of those that fit; fewer when there are
    no more."""
    people: list[Portrait] = []
    for seed in HELD_OUT_SEEDS:
        portrait = portraits.sample_portrait(seed)
        if fits(portrait):
            people.append(portrait)
        if len(people) == count:
            break
    return people


def picture(rendering: Rendering) -> Tensor:  # 1 H W 3
    return torch.from_numpy(rendering.image)[None]


def part_mask(rendering: Rendering, part: str) -> Tensor:  # 1 H W
    """How much of each pixel a part covers, 0..1."""
    return torch.from_numpy(rendering.masks[part])[None]


def owners(record: LayoutRecord, samples: Tensor) -> Tensor:
    """The index of the phrase that owns each cell in the layout of a run's last step, -1 for none:
    B rows columns."""
    run = record.run_of(samples).steps
    return torch.from_numpy(run[max(run)].concepts)


def regions(record: LayoutRecord, samples: Tensor, phrases: Sequence[str]) -> dict[str, Tensor]:
    """Where each phrase is in the layout of a run's last step, at picture size: B H W, bool."""
    cells = _at_picture_size(owners(record, samples), samples)
    return {phrase: cells == i for i, phrase in enumerate(phrases)}


def foreground(record: LayoutRecord, samples: Tensor) -> Tensor:
    """The same for the layout's foreground: B H W, bool."""
    steps = record.run_of(samples).steps
    return _at_picture_size(torch.from_numpy(steps[max(steps)].foreground), samples) > 0


def _at_picture_size(cells: Tensor, samples: Tensor) -> Tensor:
    """B rows columns, and B 4 h w -> B H W of its picture."""
    size = [length * LATENT_PIXELS for length in samples.shape[-2:]]
    return F.interpolate(cells[:, None].float(), size=size, mode="nearest")[:, 0]


def mean_colour(image: Tensor, mask: Tensor) -> Tensor:
    """image: H W 3, mask: H W -> 3."""
    weight = mask.float()[..., None]
    return (image * weight).sum((0, 1)) / weight.sum().clamp(min=1e-6)
