"""A picture of the subject in the style as a training stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .networks import Networks

STRENGTHS = (0.6, 0.9)
"""LoRA of UNet and text encoders, as the paper samples."""


@torch.no_grad()
def sample_picture(
    networks: Networks,
    vae: Any,
    prompt: str,
    size: tuple[int, int],
    seed: int,
    steps: int = 20,
    strengths: tuple[float, float] = STRENGTHS,
) -> Tensor:
    """Samples `prompt`: 1 H W 3. size: of the latent, rows and columns. strengths: of the LoRA of
    the denoiser, of the text encoders. Changes nothing that the training depends on."""
    denoiser, device = networks.denoiser, networks.device
    with networks.strengths(*strengths):
        condition = networks.condition([networks.text.prompt(each) for each in ("", prompt)], size)
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(1, denoiser.latent_channels, *size, generator=generator).to(device)
        schedule = denoiser.schedule(steps)
        for now, after in zip(schedule, [*schedule[1:], None], strict=True):
            times = torch.full((2,), now, device=device)
            output, _ = denoiser.predict(latent.expand(2, -1, -1, -1), times, condition)
            velocity = output[:1] + denoiser.preview_cfg * (output[1:] - output[:1])
            clean = denoiser.clean(latent, velocity, times[:1])
            latent = denoiser.renoised(latent, clean, now, after)
    with torch.inference_mode():
        picture: Tensor = vae.decode(denoiser.process_out(latent)).clone().cpu()
    return picture
