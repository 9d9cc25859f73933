"""The toy autoencoder: TAESD's architecture (github.com/madebyollin/taesd, 8x down, 4 channels)
with narrow layers while it trains.

A TAESD block whose weights are zero passes non-negative activations through unchanged, and zero
rows and columns widen a convolution without changing it. So a narrow, shallow network is exactly a
TAESD network with zeros: `as_taesd` writes it out in the full shape, which the host's own VAE class
loads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TAESD_WIDTH = 64
LATENT_CHANNELS = 4
_ENCODER_STAGES = ((16, 0), (32, 1), (64, 2), (64, 3))
"""(width, blocks) at full, 1/2, 1/4 and 1/8 resolution. TAESD has (64, 1), (64, 3), (64, 3), (64,
3)."""
_DECODER_STAGES = ((64, 3), (64, 2), (32, 2), (16, 1))
"""(width, blocks) at 1/8, 1/4, 1/2 and full resolution. TAESD has (64, 3), (64, 3), (64, 3), (64,
1)."""
_TAESD_BLOCKS = {"encoder": (1, 3, 3, 3), "decoder": (3, 3, 3, 1)}


class Block(nn.Module):
    """Three convolutions beside a skip, at one width: B C H W -> B C H W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.conv = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv(x))


class Clamp(nn.Module):
    """TAESD's soft limit of latents to -3 .. 3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for stage, (out, blocks) in enumerate(_ENCODER_STAGES):
        layers.append(nn.Conv2d(width, out, 3, padding=1, stride=2 if stage else 1, bias=not stage))
        layers += [Block(out) for _ in range(blocks)] or [nn.ReLU()]
        width = out
    return nn.Sequential(*layers, nn.Conv2d(width, LATENT_CHANNELS, 3, padding=1))


def _decoder() -> nn.Sequential:
    width = _DECODER_STAGES[0][0]
    layers: list[nn.Module] = [Clamp(), nn.Conv2d(LATENT_CHANNELS, width, 3, padding=1), nn.ReLU()]
    for stage, (out, blocks) in enumerate(_DECODER_STAGES):
        if stage:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, out, 3, padding=1, bias=False)]
        layers += [Block(out) for _ in range(blocks)]
        width = out
    return nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))


class Autoencoder(nn.Module):
    """Images B 3 H W in 0..1 <-> latents B 4 H/8 W/8 of about unit variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _encoder()
        self.decoder = _decoder()

    def encode(self, image: Tensor) -> Tensor:
        """B 3 H W in 0..1 -> B 4 H/8 W/8."""
        latent: Tensor = self.encoder(image)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """B 4 H W -> B 3 8H 8W, about 0..1 (not clamped)."""
        image: Tensor = self.decoder(latent)
        return image


def as_taesd(autoencoder: Autoencoder, scaling_factor: float = 0.18215) -> dict[str, Tensor]:
    """The same function as a state dict in TAESD's full shape, as the host's VAE loads it.

    `scaling_factor` is the latent format's: the host multiplies what the encoder gives by it, so
    the VAE divides by it first.
    """
    state: dict[str, Tensor] = {
        "vae_scale": torch.tensor(scaling_factor),
        "vae_shift": torch.tensor(0.0),
    }
    _write(
        state,
        "taesd_encoder",
        autoencoder.encoder,
        _ENCODER_STAGES,
        _TAESD_BLOCKS["encoder"],
        first_index=0,
    )
    # The decoder's convolution, ReLU and clamp before its first stage keep TAESD's places 0 to 2.
    _write(
        state,
        "taesd_decoder",
        autoencoder.decoder,
        _DECODER_STAGES,
        _TAESD_BLOCKS["decoder"],
        first_index=1,
    )
    return state


def _write(
    state: dict[str, Tensor],
    name: str,
    layers: nn.Sequential,
    stages: tuple[tuple[int, int], ...],
    full_blocks: tuple[int, ...],
    first_index: int,
) -> None:
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    blocks = iter(layer for layer in layers if isinstance(layer, Block))
    decoder, index = name.endswith("decoder"), first_index
    for stage, ((_, n_blocks), n_full) in enumerate(zip(stages, full_blocks, strict=True)):
        _write_conv(state, f"{name}.{index}", convolutions[stage])
        index += 2 if decoder and stage == 0 else 1
        for i in range(n_full):
            _write_block(state, f"{name}.{index}", next(blocks) if i < n_blocks else None)
            index += 1
        if decoder and stage < len(stages) - 1:
            index += 1
    _write_conv(state, f"{name}.{index}", convolutions[-1])


def _write_block(state: dict[str, Tensor], name: str, block: Block | None) -> None:
    for i in (0, 2, 4):
        conv = block.conv[i] if block else None
        if isinstance(conv, nn.Conv2d):
            _write_conv(state, f"{name}.conv.{i}", conv)
        else:
            state[f"{name}.conv.{i}.weight"] = torch.zeros(TAESD_WIDTH, TAESD_WIDTH, 3, 3)
            state[f"{name}.conv.{i}.bias"] = torch.zeros(TAESD_WIDTH)


def _write_conv(state: dict[str, Tensor], name: str, conv: nn.Conv2d) -> None:
    def widened(channels: int) -> int:
        return channels if channels in (3, LATENT_CHANNELS) else TAESD_WIDTH

    out, into = conv.weight.shape[:2]
    weight = torch.zeros(widened(out), widened(into), 3, 3)
    weight[:out, :into] = conv.weight.detach()
    state[f"{name}.weight"] = weight
    if conv.bias is not None:
        bias = torch.zeros(widened(out))
        bias[:out] = conv.bias.detach()
        state[f"{name}.bias"] = bias
