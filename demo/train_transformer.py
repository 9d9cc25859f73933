"""Stages of `python -m demo.train` that train the transformer toy (`transformer.py`).

A fifth of its pictures are scenes of two people; half of the captions name the tone of the skin.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from . import transformer_checkpoint
from .attention_losses import attention_loss
from .captions import Line, TransformerCaptions
from .checkpoint import read_parts, write_parts
from .dataset import SCENE_PARTS, as_bytes, latent_files
from .portraits import Portrait, Scene, sample_portrait, sample_scene
from .training_run import FOLDER, Run, build_optimizers, descend, run_steps
from .transformer import ToyTransformer, in_host_names, noised
from .transformer_quality import decode, report, sample

WEIGHTS = FOLDER / "transformer_average.safetensors"
"""The averaged weights alone, in half precision: written beside the checkpoint, and enough to train
on from where that is gone."""
SCENE_SHARE = 0.2


def initial_weights(model: ToyTransformer, weights: Path | None) -> int:
    """Fills a model from a file of weights and returns the step that they are from. Without a file:
    the text encoder from the shipped one, the rest as it was built, step 0."""
    if weights is None:
        model.text_encoder.load_words(read_parts()["text"])
        return 0
    with safe_open(weights, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        step = int((file.metadata() or {}).get("step", 0))
    # Files from before the stage was part of the project call it so.
    state = {key.replace("net.", "transformer.", 1): value for key, value in state.items()}
    text = {
        key.removeprefix("text_encoder."): value
        for key, value in state.items()
        if key.startswith("text_encoder.")
    }
    transformer = {
        key.removeprefix("transformer."): value
        for key, value in state.items()
        if key.startswith("transformer.")
    }
    load_parts(model, transformer, text)
    return step


def load_parts(
    model: ToyTransformer, transformer: dict[str, Tensor], text: dict[str, Tensor]
) -> None:
    weights = {name: value.float() for name, value in transformer.items()}
    model.transformer.load_state_dict(in_host_names(weights))
    model.text_encoder.load_words(text)


def learning_rate(step: int, steps: int, age: int) -> float:
    """Rises over the first 100 steps of the optimizers (`age`), stays, and falls to a fiftieth in
    the last third: a run can be made longer before that without a break."""
    return min(1.0, (age + 1) / 100) * min(1.0, max(0.02, (steps - step) / (steps / 3)))


def age_of(optimizer: torch.optim.Optimizer) -> int:
    """Steps that an AdamW has taken, in all runs that went on from each other's checkpoints."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)


class LargeSet:
    """The encoded pictures of both kinds."""

    def __init__(self, folder: Path) -> None:
        files = {kind: latent_files(folder, kind) for kind in ("portraits", "scenes")}
        self.latents, self.parts = (
            {kind: torch.from_numpy(np.load(paths[i])) for kind, paths in files.items()}
            for i in range(2)
        )
        self.pictures: dict[str, list[Portrait | Scene]] = {
            "portraits": [sample_portrait(seed) for seed in range(len(self.parts["portraits"]))],
            "scenes": [sample_scene(seed) for seed in range(len(self.parts["scenes"]))],
        }

    def batch(self, count: int, share: slice) -> tuple[list[Portrait | Scene], Tensor, Tensor]:
        """A share of `count` pictures, drawn anew: attributes, latents B 4 32 32, masks B 13 16 16
        in the order of SCENE_PARTS."""
        is_scene = torch.rand(count) < SCENE_SHARE
        place = torch.rand(count)
        rows = [
            (kind, int(position * len(self.pictures[kind])))
            for kind, position in (
                ("scenes" if scene else "portraits", float(p))
                for scene, p in zip(is_scene[share], place[share], strict=True)
            )
        ]
        latents = torch.stack([self.latents[kind][i] for kind, i in rows]).float()
        masks = torch.zeros(len(rows), len(SCENE_PARTS), *self.parts["scenes"].shape[-2:])
        for b, (kind, i) in enumerate(rows):
            parts = self.parts[kind][i]
            masks[b, : len(parts)] = parts.float() / 255
        return [self.pictures[kind][i] for kind, i in rows], latents, masks


def train_transformer(run: Run) -> None:
    import comfy.model_management

    # The host's rotary embedding then takes a form that has a gradient.
    comfy.model_management.in_training = True
    data, captions = LargeSet(FOLDER), TransformerCaptions()
    torch.manual_seed(0)
    model = ToyTransformer(captions.token_ids)
    start = initial_weights(model, WEIGHTS if WEIGHTS.exists() else None)
    model.to(run.device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = build_optimizers(model)

    def step_once(step: int) -> float:
        # Every worker draws the whole batch and takes its share: what is drawn does not depend on
        # their number.
        pictures, latents, masks = data.batch(run.batch, run.share)
        slices = (torch.arange(run.batch) + torch.rand(run.batch)) / run.batch
        uniform = slices[torch.randperm(run.batch)][run.share]
        noise = torch.randn(run.batch, *latents.shape[1:])[run.share].to(run.device)
        # Between uniform and logit-normal: the middle of the schedule is the hardest.
        gaussian = torch.special.ndtri(uniform.clamp(0.001, 0.999))
        sigma = torch.sigmoid(1.4 * gaussian).to(run.device)
        latents, masks = latents.to(run.device), masks.to(run.device)
        text = captions.draw(pictures, random.Random(step * run.workers + run.rank)).to(run.device)
        x = noised(latents, sigma, noise)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.half):
            velocity, maps = model(x, sigma, text.rows, captions.end_row)
        squared = F.mse_loss(velocity.float(), noise - latents)
        loss = squared + attention_loss(maps, masks, text)
        age = age_of(optimizers["adam"])
        rate = run.peak * learning_rate(step, run.steps, age)
        descend(model, optimizers, loss, {"muon": 0.01 * rate, "adam": 1.5e-3 * rate}, run)
        # Over the last quarter of the steps, in the long run over 700.
        decay = min(0.9985, 1 - 4 / (age + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        return squared.item()

    run_steps(
        "transformer",
        run,
        {"model": model, "average": average, **optimizers},
        step_once,
        start,
        lambda step: write_weights(average, step, WEIGHTS),
    )


SHEET_PROMPTS = (
    "a man with black hair wearing a green hat, a white scarf and a blue shirt, pink background,"
    " cartoon style",
    "a smiling woman with dark skin and red hair wearing a yellow striped sun hat and a purple"
    " shirt, blue background, cartoon style",
    "a woman with blonde hair wearing glasses and an orange dotted scarf, green background",
    "a man with gray hair and a beard wearing a red top hat, orange background, sketch style",
    "a frowning woman with brown hair wearing sunglasses and a white shirt, purple background,"
    " neon style",
    "a man with red hair and a blue hat, a woman with black hair and a green scarf, pink"
    " background",
    "a woman with blonde hair and a red shirt, a woman with brown hair and a yellow shirt, blue"
    " background",
    "a man with dark skin and a white hat, a man with pale skin and glasses, green background,"
    " pastel style",
)


def averaged(captions: TransformerCaptions, device: torch.device) -> tuple[ToyTransformer, int]:
    """The averaged weights, ready to sample, and the step that they are from."""
    import comfy.model_management

    comfy.model_management.in_training = True
    model = ToyTransformer(captions.token_ids).requires_grad_(False)
    step = initial_weights(model, WEIGHTS)
    return model.to(device), step


def draw_sheet(device: torch.device) -> None:
    """Samples of SHEET_PROMPTS by the averaged weights, as transformer_STEP.png: what a loss does
    not tell."""
    from PIL import Image

    captions = TransformerCaptions()
    model, step = averaged(captions, device)
    lines: list[Line] = [[(prompt, None)] for prompt in SHEET_PROMPTS]
    latents, _ = sample(model, captions, captions.encode(lines).rows, range(len(lines)))
    pictures = decode(latents)
    rows = [torch.cat(list(pictures[i : i + 4]), 1) for i in (0, 4)]
    sheet = as_bytes(torch.cat(rows, 0).numpy())
    Image.fromarray(sheet).save(FOLDER / f"transformer_{step}.png")


def measure(device: torch.device, count: int) -> None:
    """Prints the figures of `transformer_quality.report`."""
    captions = TransformerCaptions()
    model, step = averaged(captions, device)
    print(f"step {step}", *report(model, captions, count), sep="\n", flush=True)


def export() -> None:
    """Writes the checkpoint from the averaged weights, a byte a weight: half the file, and pictures
    that the eye does not tell apart."""
    captions = TransformerCaptions()
    model = ToyTransformer(captions.token_ids)
    step = initial_weights(model, WEIGHTS)
    write_parts(
        {
            "transformer": model.transformer.state_dict(),
            "text": model.text_encoder.state_dict(),
        },
        {"transformer_steps": str(step)},
        transformer_checkpoint.PATH,
        byte_parts=("transformer",),
    )


def restore() -> None:
    """Makes a starting point of the shipped checkpoint: the weights from which the training goes on
    where its own are gone."""
    parts = read_parts(transformer_checkpoint.PATH)
    with safe_open(transformer_checkpoint.PATH, "pt") as file:
        step = int(file.metadata()["transformer_steps"])
    model = ToyTransformer(TransformerCaptions().token_ids)
    load_parts(model, parts["transformer"], parts["text"])
    write_weights(model, step, WEIGHTS)


def write_weights(model: ToyTransformer, step: int, path: Path) -> None:
    """The weights alone in half precision, with the step that they are from."""
    from safetensors.torch import save_file

    state = {
        key: value.cpu().half().contiguous() if value.is_floating_point() else value.cpu()
        for key, value in model.state_dict().items()
    }
    partial = path.with_suffix(".tmp")
    save_file(state, partial, {"step": str(step)})
    partial.replace(path)
