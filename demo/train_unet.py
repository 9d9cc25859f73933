"""Stages of `python -m demo.train` that train the UNet toy: autoencoder, UNet, text encoder."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_losses import attention_loss
from .autoencoder import Autoencoder
from .captions import Captions
from .checkpoint import read_parts, write_parts
from .networks import TextEncoder, attention_recorder, build_unet
from .portraits import PARTS, Portrait, sample_portrait
from .training_run import (
    FOLDER,
    Run,
    build_optimizers,
    cosine_rate,
    descend,
    run_steps,
    save_atomically,
)

FACE_PARTS = [PARTS.index("face"), PARTS.index("glasses")]


def train_autoencoder(run: Run, decoder_only: bool = False) -> None:
    images, parts = (
        np.load(FOLDER / "images.npy", mmap_mode="r"),
        np.load(FOLDER / "parts.npy", mmap_mode="r"),
    )
    model = Autoencoder().to(run.device)
    if decoder_only:
        model.load_state_dict(
            torch.load(FOLDER / "autoencoder.pt", map_location="cpu", weights_only=True)["model"]
        )
        model.encoder.requires_grad_(False)
    optimizers = build_optimizers(model)

    def step_once(step: int) -> float:
        picked = torch.randint(len(images), (run.batch,))[run.share].sort().values.numpy()
        image = torch.from_numpy(images[picked]).to(run.device).float() / 255
        face = (
            torch.from_numpy(
                parts[picked][:, FACE_PARTS].sum(1, keepdims=True, dtype=np.float32)
            ).to(run.device)
            / 255
        )
        latent = model.encode(image)
        # A little noise keeps neighbouring latents alike, so that the small errors of a diffusion
        # model stay small in the picture.
        decoded = model.decode(latent + 0.03 * torch.randn_like(latent))
        error = (decoded - image).square()
        squared = error.mean()
        # Eyes and mouths are a small part of the picture and what people look at first.
        weighted = (error * (1 + 2 * F.interpolate(face, scale_factor=8.0))).mean()
        # Without a term for the mean colour of each cell, training first learns brightness and
        # takes very long to find the hues.
        colour = F.mse_loss(F.avg_pool2d(decoded, 8), F.avg_pool2d(image, 8))
        loss = weighted + 0.05 * F.l1_loss(decoded, image) + 3 * colour
        if not decoder_only:
            mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
            loss = loss + 0.002 * (mean.square() + (std - 1).square()).mean()
        rate = cosine_rate(step, run.steps, run.peak, warmup=20)
        descend(model, optimizers, loss, {"muon": 0.012 * rate, "adam": 1e-3 * rate}, run)
        return -10 * math.log10(squared.item())

    run_steps(
        "decoder" if decoder_only else "autoencoder", run, {"model": model, **optimizers}, step_once
    )


def encode_training_set(device: torch.device) -> None:
    images = np.load(FOLDER / "images.npy", mmap_mode="r")
    model = Autoencoder().to(device)
    model.load_state_dict(
        torch.load(FOLDER / "autoencoder.pt", map_location="cpu", weights_only=True)["model"]
    )
    latents = []
    with torch.inference_mode():
        for i in range(0, len(images), 64):
            latents.append(
                model.encode(torch.from_numpy(images[i : i + 64]).to(device).float() / 255)
                .cpu()
                .half()
            )
    np.save(FOLDER / "latents.npy", torch.cat(latents).numpy())


class ToyDiffusion(nn.Module):
    """UNet and text encoder. `token_ids`: the text encoder's vocabulary."""

    def __init__(self, token_ids: list[int]) -> None:
        super().__init__()
        self.unet = build_unet()
        self.text_encoder = TextEncoder(token_ids)

    def forward(self, x: Tensor, timesteps: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Predicted noise, and the head mean of every cross-attention map (B N 77)."""
        maps: list[Tensor] = []
        eps = self.unet(
            x,
            timesteps,
            context=self.text_encoder(rows),
            transformer_options={"patches_replace": attention_recorder(maps)},
        )
        return eps, maps


def draws(portrait: Portrait) -> float:
    """How often a portrait is drawn, beside one with nothing of what is hard to learn."""
    hard = [
        portrait.hat is not None,
        portrait.hat is not None and portrait.hat.pattern != "plain",
        portrait.glasses is not None,
        portrait.style == "neon",
    ]
    return 1 + 0.5 * sum(hard)


def train_diffusion(run: Run) -> None:
    latents = torch.from_numpy(np.load(FOLDER / "latents.npy"))
    parts = torch.from_numpy(np.load(FOLDER / "parts.npy"))
    portraits = [sample_portrait(seed) for seed in range(len(latents))]
    weights = torch.tensor([draws(portrait) for portrait in portraits])
    captions = Captions()
    torch.manual_seed(0)
    model = ToyDiffusion(captions.token_ids).to(run.device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = build_optimizers(model)
    alpha_bar = sd_alpha_bar().to(run.device)

    def step_once(step: int) -> float:
        # Every worker draws the whole batch and takes its share: the result does not depend on
        # their number.
        picked = torch.multinomial(weights, run.batch)[run.share]
        # One timestep from each of `batch` equal slices: the loss of a step is less noisy than with
        # independent draws.
        timesteps = (
            ((torch.arange(run.batch) + torch.rand(run.batch)) * (1000 / run.batch))
            .long()[run.share]
            .to(run.device)
        )
        noise = torch.randn(run.batch, *latents.shape[1:])[run.share].to(run.device)
        rng = random.Random(step * run.workers + run.rank)
        text = captions.batch([portraits[i] for i in picked.tolist()], rng).to(run.device)
        z0, masks = (
            latents[picked].to(run.device).float(),
            parts[picked].to(run.device).float() / 255,
        )
        signal = alpha_bar[timesteps]
        noisy = (
            signal.sqrt()[:, None, None, None] * z0
            + (1 - signal).sqrt()[:, None, None, None] * noise
        )
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.half):
            eps, maps = model(noisy, timesteps, text.rows)
        snr = signal / (1 - signal)
        error = (eps.float() - noise).square()
        # Faces, and eyes behind glasses, are a small part and what people look at first.
        weighted = (error * (1 + masks[:, FACE_PARTS].sum(1, keepdim=True))).mean((1, 2, 3))
        # min-SNR-5 (arXiv 2303.09556)
        loss = (weighted * snr.clamp(max=5) / snr).mean() + attention_loss(maps, masks, text)
        rate = cosine_rate(step, run.steps, run.peak, warmup=100)
        descend(model, optimizers, loss, {"muon": 0.01 * rate, "adam": 1.5e-3 * rate}, run)
        decay = min(0.9985, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        return float(error.mean())

    run_steps("diffusion", run, {"model": model, "average": average, **optimizers}, step_once)


def sd_alpha_bar() -> Tensor:
    """Stable Diffusion 1's noise schedule (scaled linear, .00085 to .012)."""
    return (
        (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)
        .cumprod(0)
        .float()
    )


def export() -> None:
    """Writes the checkpoint: the averaged diffusion weights, a byte a weight of the UNet, and the
    decoder's own training if there was one."""

    def saved(stage: str) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(
            FOLDER / f"{stage}.pt", map_location="cpu", weights_only=True
        )
        return state

    diffusion = saved("diffusion")
    autoencoder = saved("decoder" if (FOLDER / "decoder.pt").exists() else "autoencoder")
    by_part: dict[str, dict[str, Tensor]] = {
        "unet": {},
        "text": {},
        "autoencoder": autoencoder["model"],
    }
    for key, tensor in diffusion["average"].items():
        part, _, name = key.partition(".")
        by_part["unet" if part == "unet" else "text"][name] = tensor
    write_parts(
        by_part,
        {"diffusion_steps": str(diffusion["step"]), "autoencoder_steps": str(autoencoder["step"])},
        byte_parts=("unet",),
    )


def restore() -> None:
    """Checkpoints at step 0 from the shipped weights, to train on where demo/training/ is gone: the
    encoder must not change any more."""
    parts = {
        part: {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
        for part, state in read_parts().items()
    }
    FOLDER.mkdir(exist_ok=True)
    autoencoder, diffusion = Autoencoder(), ToyDiffusion(Captions().token_ids)
    autoencoder.load_state_dict(parts["autoencoder"])
    diffusion.unet.load_state_dict(parts["unet"])
    diffusion.text_encoder.load_words(parts["text"])
    for name, model in (("autoencoder", autoencoder), ("diffusion", diffusion)):
        optimizers = {
            key: optimizer.state_dict() for key, optimizer in build_optimizers(model).items()
        }
        average = {"average": model.state_dict()} if name == "diffusion" else {}
        save_atomically(
            {"step": 0, "model": model.state_dict(), **average, **optimizers}, FOLDER / f"{name}.pt"
        )
