"""Trains the toy checkpoint from nothing: `python -m demo.train all`. Every stage checkpoints and
resumes by itself.

    render       the training set (20,000 portraits, 5 minutes on two cores)
    autoencoder  encoder and decoder together (25 minutes on one core)
    encode       the training set as latents
    diffusion    UNet and text encoder (as long as you have; figures in MODEL_CARD.md)
    decoder      the decoder alone, on the frozen encoder
    export       writes demo/checkpoint/*.safetensors
    restore      the other way round: a starting point from the shipped weights

Everything lies in demo/training/ (not committed) and is small enough to copy to a GPU machine and
go on there.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from devkit.comfyui import use_host

from .autoencoder import Autoencoder
from .checkpoint import read_parts, write_parts
from .dataset import render_training_set
from .muon import Muon, split_parameters
from .networks import TextEncoder, attention_recorder, build_unet
from .portraits import (
    BACKGROUND_COLOURS,
    EXPRESSIONS,
    GARMENT_COLOURS,
    HAIR_COLOURS,
    HAT_KINDS,
    PARTS,
    PATTERNS,
    STYLES,
    Portrait,
    caption_phrases,
    sample_portrait,
)

FOLDER = Path(__file__).parent / "training"
GRAMMAR = (
    "a an , and with wearing style woman man hair beard hat glasses sunglasses scarf shirt"
    " background"
)
START_TOKEN, END_TOKEN, UNKNOWN_TOKEN = 49406, 49407, -1


def cosine_rate(
    step: int, steps: int, peak: float, warmup: int = 100, floor: float = 0.01
) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (
        floor
        + (1 - floor)
        * 0.5
        * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
    )


def save_atomically(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


@dataclass(frozen=True)
class Run:
    """How a stage is run: on what, for how long, and which of `workers` processes this is (they
    share every batch)."""

    device: torch.device
    steps: int
    batch: int
    minutes: float = 0
    rank: int = 0
    workers: int = 1
    peak: float = 1.0
    """Factor on the learning rates."""

    @property
    def share(self) -> slice:
        return slice(self.rank, self.batch, self.workers)


def build_optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    matrices, others = split_parameters(model)
    return {
        "muon": Muon(matrices),
        "adam": torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0),
    }


def descend(
    model: nn.Module,
    optimizers: dict[str, torch.optim.Optimizer],
    loss: Tensor,
    rates: dict[str, float],
    run: Run,
) -> None:
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if run.workers > 1:
        average_gradients(model)
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = rates[name]
        optimizer.step()


def train_autoencoder(run: Run, decoder_only: bool = False) -> None:
    images, parts = (
        np.load(FOLDER / "images.npy", mmap_mode="r"),
        np.load(FOLDER / "parts.npy", mmap_mode="r"),
    )
    face_parts = [PARTS.index("face"), PARTS.index("glasses")]
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
                parts[picked][:, face_parts].sum(1, keepdims=True, dtype=np.float32)
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


def run_steps(
    name: str,
    run: Run,
    state: dict[str, nn.Module | torch.optim.Optimizer],
    step_once: Callable[[int], float],
) -> None:
    """Calls `step_once(step)` -> loss from the checkpoint's step on, saving every two minutes and
    at the end. Stops early, at a checkpoint, when the run's minutes are over.
    """
    path, start = FOLDER / f"{name}.pt", 0
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        start = saved["step"]
        for key, part in state.items():
            part.load_state_dict(saved[key])
        if run.rank == 0:
            print(f"{name}: resuming at step {start}", flush=True)
    began = saved_at = time.time()
    mean_loss = 0.0
    for step in range(start, run.steps):
        # A resumed run sees other batches than the first one did at step 0, and the same ones each
        # time it is resumed.
        torch.manual_seed(step)
        loss = step_once(step)
        mean_loss = loss if step == start else 0.98 * mean_loss + 0.02 * loss
        if run.rank > 0:
            continue
        now = time.time()
        out_of_time = bool(run.minutes) and now - began > run.minutes * 60
        if step % 50 == 0:
            print(
                f"{name} {step}/{run.steps} loss {mean_loss:.5f}"
                f" {(now - began) / (step - start + 1):.3f} s/step",
                flush=True,
            )
        if now - saved_at > 120 or step == run.steps - 1 or out_of_time:
            saved_at = now
            save_atomically(
                {"step": step + 1, **{key: part.state_dict() for key, part in state.items()}}, path
            )
        if out_of_time:
            break


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


class Captions:
    """Tokenises captions phrase by phrase, so that it is known which tokens name which part."""

    MAX_NAMED = 32

    def __init__(self):
        from comfy.sd1_clip import SD1Tokenizer

        self._tokenizer = SD1Tokenizer().clip_l.tokenizer
        self._ids: dict[str, list[int]] = {}
        words = [
            *STYLES,
            *PATTERNS,
            *HAT_KINDS,
            *EXPRESSIONS,
            *GARMENT_COLOURS,
            *BACKGROUND_COLOURS,
            *HAIR_COLOURS,
        ]
        words += [GRAMMAR]
        ids = sorted({i for word in words for i in self.ids(word)} | {START_TOKEN, END_TOKEN})
        self.token_ids = ids
        self._row = {token: row for row, token in enumerate(ids, start=1)}

    def ids(self, words: str) -> list[int]:
        if words not in self._ids:
            self._ids[words] = self._tokenizer(words)["input_ids"][1:-1]
        return self._ids[words]

    def batch(
        self, portraits: list[Portrait], rng: random.Random
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows B 77; and of the tokens that name a part: token index, part index, weight, each B
        MAX_NAMED."""
        rows = torch.full((len(portraits), 77), self._row[END_TOKEN])
        named = torch.zeros(3, len(portraits), self.MAX_NAMED)
        for b, portrait in enumerate(portraits):
            if rng.random() < 0.1:
                rows[b, 0] = self._row[START_TOKEN]
                continue
            mention = frozenset(part for part in PARTS if rng.random() > 0.08)
            line, count = [START_TOKEN], 0
            for words, part in caption_phrases(portrait, mention):
                if part is None and rng.random() < 0.01:
                    line.append(UNKNOWN_TOKEN)
                ids = self.ids(words)
                for i, token in enumerate(ids):
                    if part and count < self.MAX_NAMED:
                        # The noun comes last; its adjectives are tied to the same part, more
                        # loosely.
                        named[:, b, count] = torch.tensor(
                            [len(line), PARTS.index(part), 1.0 if i == len(ids) - 1 else 0.5]
                        )
                        count += 1
                    line.append(token)
            line = line[:76]
            rows[b, : len(line)] = torch.tensor([self._row.get(token, 0) for token in line])
        return rows, named[0].long().clamp(max=76), named[1].long(), named[2]


class ToyDiffusion(nn.Module):
    def __init__(self, token_ids: list[int]):
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


def localisation_loss(
    maps: list[Tensor], masks: Tensor, tokens: Tensor, parts: Tensor, weights: Tensor
) -> Tensor:
    """Cross-entropy between where a named token is attended to and where its part is, averaged over
    tokens and layers.

    maps: B N 77 each; masks: B P H W coverage; tokens, parts, weights: B T. Parts that are not
    visible do not count.
    """
    losses = []
    for attention in maps:
        side = math.isqrt(attention.shape[1])
        target = F.adaptive_avg_pool2d(masks, side).flatten(2)  # B P N
        target = target.gather(1, parts[..., None].expand(-1, -1, target.shape[-1]))
        area = target.sum(-1)
        seen = attention.transpose(1, 2).gather(
            1, tokens[..., None].expand(-1, -1, attention.shape[1])
        )  # B T N
        log_share = (seen + 1e-6).log() - (seen.sum(-1, keepdim=True) + 1e-5).log()
        cross_entropy = -(target * log_share).sum(-1) / area.clamp(min=1e-3)
        weight = weights * (area > 0.05)
        losses.append((cross_entropy * weight).sum() / weight.sum().clamp(min=1))
    return torch.stack(losses).mean()


def ownership_loss(
    maps: list[Tensor], masks: Tensor, tokens: Tensor, parts: Tensor, sharpness: float = 4.0
) -> Tensor:
    """Cross-entropy between the part that owns each place in a semantic layout and the part that is
    there, averaged over layers.

    As in the layout, each token's map is divided by its mean and the largest owns the place; here a
    softmax of `sharpness` stands in for the argmax. Arguments as in `localisation_loss`. Places of
    parts that the caption does not name do not count.
    """
    named = torch.zeros(*masks.shape[:2], maps[0].shape[-1], device=masks.device)  # B P 77
    rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
    # Token 0 is the start token: unused entries point there.
    named[rows[tokens > 0], parts[tokens > 0], tokens[tokens > 0]] = 1
    losses = []
    for attention in maps:
        side = math.isqrt(attention.shape[1])
        there = F.adaptive_avg_pool2d(masks, side).flatten(2) * (
            named.sum(-1, keepdim=True) > 0
        )  # B P N
        relative = (attention + 1e-6).log() - (attention.mean(1, keepdim=True) + 1e-6).log()
        share = (sharpness * relative).softmax(-1)  # B N 77
        owned = torch.einsum("bnt,bpt->bpn", share, named)
        losses.append(-(there * (owned + 1e-4).log()).sum() / there.sum().clamp(min=1))
    return torch.stack(losses).mean()


def foreground_loss(
    maps: list[Tensor], background: Tensor, is_empty: Tensor, sharpness: float = 4.0
) -> Tensor:
    """Cross-entropy between the background and where, under an empty prompt, the start token is
    looked at more than all others together, each relative to its mean: what the layout takes the
    foreground from. background: B H W coverage; is_empty: B.
    """
    losses = [maps[0].new_zeros(())]
    for attention in (m[is_empty] for m in maps if is_empty.any()):
        side = math.isqrt(attention.shape[1])
        there = F.adaptive_avg_pool2d(background[is_empty], side).flatten(1)
        start = attention[..., 0]
        first, rest = (
            (x + 1e-6).log() - (x.mean(1, keepdim=True) + 1e-6).log() for x in (start, 1 - start)
        )
        losses.append(F.binary_cross_entropy_with_logits(sharpness * (first - rest), there))
    return torch.stack(losses).mean()


def average_gradients(model: nn.Module) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def train_diffusion(run: Run) -> None:
    use_host()
    latents = torch.from_numpy(np.load(FOLDER / "latents.npy"))
    parts = torch.from_numpy(np.load(FOLDER / "parts.npy"))
    portraits = [sample_portrait(seed) for seed in range(len(latents))]
    captions = Captions()
    torch.manual_seed(0)
    model = ToyDiffusion(captions.token_ids).to(run.device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = build_optimizers(model)
    alpha_bar = sd_alpha_bar().to(run.device)

    def step_once(step: int) -> float:
        # Every worker draws the whole batch and takes its share: the result does not depend on
        # their number.
        picked = torch.randint(len(latents), (run.batch,))[run.share]
        # One timestep from each of `batch` equal slices: the loss of a step is less noisy than with
        # independent draws.
        timesteps = (
            ((torch.arange(run.batch) + torch.rand(run.batch)) * (1000 / run.batch))
            .long()[run.share]
            .to(run.device)
        )
        noise = torch.randn(run.batch, *latents.shape[1:])[run.share].to(run.device)
        rng = random.Random(step * run.workers + run.rank)
        rows, tokens, named_parts, weights = (
            t.to(run.device) for t in captions.batch([portraits[i] for i in picked.tolist()], rng)
        )
        z0, masks = (
            latents[picked].to(run.device).float(),
            parts[picked].to(run.device).float() / 255,
        )
        signal = alpha_bar[timesteps]
        noisy = (
            signal.sqrt()[:, None, None, None] * z0
            + (1 - signal).sqrt()[:, None, None, None] * noise
        )
        eps, maps = model(noisy, timesteps, rows)
        snr = signal / (1 - signal)
        squared = (eps - noise).square().mean((1, 2, 3))
        # min-SNR-5 (arXiv 2303.09556)
        loss = (squared * snr.clamp(max=5) / snr).mean() + 0.03 * localisation_loss(
            maps, masks, tokens, named_parts, weights
        )
        loss = loss + 0.03 * ownership_loss(maps, masks, tokens, named_parts)
        is_empty = weights.sum(1) == 0
        loss = loss + 0.03 * foreground_loss(maps, masks[:, PARTS.index("background")], is_empty)
        rate = cosine_rate(step, run.steps, run.peak, warmup=100)
        descend(model, optimizers, loss, {"muon": 0.01 * rate, "adam": 1.5e-3 * rate}, run)
        decay = min(0.9985, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        return squared.mean().item()

    run_steps("diffusion", run, {"model": model, "average": average, **optimizers}, step_once)


def sd_alpha_bar() -> Tensor:
    """Stable Diffusion 1's noise schedule (scaled linear, .00085 to .012)."""
    return (
        (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)
        .cumprod(0)
        .float()
    )


def export() -> None:
    """Writes the checkpoint: the averaged diffusion weights, and the decoder's own training if
    there was one."""

    def saved(stage: str) -> dict[str, dict[str, Tensor]]:
        return torch.load(FOLDER / f"{stage}.pt", map_location="cpu", weights_only=True)

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
    use_host()
    autoencoder, diffusion = Autoencoder(), ToyDiffusion(parts["text"]["token_ids"].tolist())
    autoencoder.load_state_dict(parts["autoencoder"])
    diffusion.unet.load_state_dict(parts["unet"])
    diffusion.text_encoder.load_state_dict(parts["text"])
    for name, model in (("autoencoder", autoencoder), ("diffusion", diffusion)):
        optimizers = {
            key: optimizer.state_dict() for key, optimizer in build_optimizers(model).items()
        }
        average = {"average": model.state_dict()} if name == "diffusion" else {}
        save_atomically(
            {"step": 0, "model": model.state_dict(), **average, **optimizers}, FOLDER / f"{name}.pt"
        )


TRAININGS: dict[str, Callable[[Run], None]] = {
    "autoencoder": train_autoencoder,
    "diffusion": train_diffusion,
    "decoder": functools.partial(train_autoencoder, decoder_only=True),
}
DEFAULT_STEPS, DEFAULT_BATCH = (
    {"autoencoder": 3000, "diffusion": 8000, "decoder": 2000},
    {"autoencoder": 6, "diffusion": 16, "decoder": 6},
)


def worker(rank: int, stage: str, run: Run) -> None:
    """One of several processes that share every batch: on a CPU this scales where more threads do
    not."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{FOLDER / 'rendezvous'}", rank=rank, world_size=run.workers
    )
    TRAININGS[stage](replace(run, rank=rank))


def train(stage: str, run: Run) -> None:
    if run.workers == 1:
        TRAININGS[stage](run)
        return
    (FOLDER / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(worker, (stage, run), run.workers)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stage",
        choices=(
            "all",
            "render",
            "autoencoder",
            "encode",
            "diffusion",
            "decoder",
            "export",
            "restore",
        ),
    )
    parser.add_argument("--count", type=int, default=20_000, help="portraits in the training set")
    parser.add_argument(
        "--steps", type=int, help="steps of this stage (its learning rate schedule follows)"
    )
    parser.add_argument("--batch", type=int, help="batch size of this stage")
    parser.add_argument(
        "--minutes", type=float, default=0, help="stop at a checkpoint after this long"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share each batch (CPU only)"
    )
    parser.add_argument(
        "--peak",
        type=float,
        default=1.0,
        help="factor on the learning rates: .5 to train on from `restore`",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    stages = (
        ("render", "autoencoder", "encode", "diffusion", "decoder", "export")
        if args.stage == "all"
        else (args.stage,)
    )
    for stage in stages:
        if stage == "render":
            render_training_set(FOLDER, args.count, os.cpu_count() or 1)
        elif stage == "encode":
            encode_training_set(device)
        elif stage == "export":
            export()
        elif stage == "restore":
            restore()
        else:
            run = Run(
                device,
                args.steps or DEFAULT_STEPS[stage],
                args.batch or DEFAULT_BATCH[stage],
                args.minutes,
                workers=args.workers,
                peak=args.peak,
            )
            train(stage, run)


if __name__ == "__main__":
    main()
