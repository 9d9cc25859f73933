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
    cfg: float = 5.0,
) -> Tensor:
    """Samples `prompt` with DDIM: 1 H W 3. size: of the latent, rows and columns. Changes nothing
    that the training depends on."""
    text, unet, device = networks.text, networks.unet, networks.device
    with networks.strengths(*STRENGTHS):
        context, pooled = text.encode([text.prompt(""), text.prompt(prompt)])
        vector = unet.size_condition(pooled, size)
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(1, unet.latent_channels, *size, generator=generator).to(device)
        schedule = torch.linspace(len(unet.alpha_bars) - 1, 0, steps).round().long().tolist()
        for now, after in zip(schedule, [*schedule[1:], -1], strict=True):
            timesteps = torch.full((2,), now, device=device)
            output, _ = unet.predict(latent.expand(2, -1, -1, -1), timesteps, context, vector)
            guided = output[:1] + cfg * (output[1:] - output[:1])
            clean = unet.clean(latent, guided, timesteps[:1])
            alpha_bar = unet.alpha_bars[now]
            noise = (latent - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
            following = unet.alpha_bars[after] if after >= 0 else torch.ones((), device=device)
            latent = following.sqrt() * clean + (1 - following).sqrt() * noise
    with torch.inference_mode():
        picture: Tensor = vae.decode(unet.process_out(latent)).clone().cpu()
    return picture
