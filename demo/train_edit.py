"""The stage of `python -m demo.train` that makes the edit variant of the transformer toy: it learns
to take garments from reference portraits in its sequence (`edit_set.py`), as a low-rank change of
the shipped weights (`low_rank.py`).
"""

from __future__ import annotations

import copy
import functools
import os
import random

import torch
from torch import Tensor

from . import transformer_checkpoint
from .attention_losses import attention_loss
from .captions import CaptionBatch
from .checkpoint import read_parts, write_parts
from .edit_set import (
    EditBatch,
    EditCaptions,
    EditSet,
    encode_references,
    reference_files,
    source_loss,
)
from .low_rank import EditAdapter, reduced
from .train_transformer import LargeSet, age_of, learning_rate, load_parts
from .training_run import FOLDER, Run, descend, run_steps
from .transformer import ToyTransformer, noised

NAME = "transformer-edit"
REFERENCES = 2400
"""Reference portraits that are rendered where there are none yet."""
REFERENCE_COUNTS = (1, 2, 2, 2, 3)
"""How many references a step has, drawn from these."""
PLAIN_SHARE = 0.08
"""Of the steps that have none: as the shipped weights were trained, to stay what they are."""

SHIPPED_RANK = 12
"""Of the change in the file, which draws as well as the one that is trained."""
EARLY_SHARE = 0.6
"""Of the pictures that have almost no signal yet."""


def build() -> tuple[ToyTransformer, EditAdapter, EditCaptions]:
    """The shipped transformer, frozen, with a new adapter on it, and its captions."""
    captions = EditCaptions()
    model = ToyTransformer(captions.token_ids)
    parts = read_parts(transformer_checkpoint.PATH)
    load_parts(model, parts["transformer"], parts["text"])
    rows = [captions.row_of_token(token) for token in captions.word_ids]
    return model, EditAdapter(model, rows), captions


def train_edit(run: Run) -> None:
    import comfy.model_management

    # The host's rotary embedding then takes a form that has a gradient.
    comfy.model_management.in_training = True
    if not reference_files(FOLDER)[1].exists():
        encode_references(FOLDER, REFERENCES, os.cpu_count() or 1)
    large = LargeSet(FOLDER)
    torch.manual_seed(0)
    model, adapter, captions = build()
    model.to(run.device)
    adapter.to(run.device)
    data = EditSet(FOLDER, captions, large.pictures, large.latents, large.parts)
    average = copy.deepcopy(adapter).requires_grad_(False)
    optimizer = torch.optim.AdamW(adapter.parameters(), betas=(0.9, 0.99), weight_decay=0)

    def step_once(step: int) -> float:
        # Every worker draws the whole batch and takes its share. With less noise a garment shows
        # its colour, and with it its reference: only before can words say which is meant.
        early = 0.9 + 0.1 * torch.rand(run.batch)
        sigma = torch.sigmoid(1.4 * torch.randn(run.batch) + 0.7)
        sigma = torch.where(torch.rand(run.batch) < EARLY_SHARE, early, sigma)[run.share]
        noise = torch.randn(run.batch, 4, 32, 32)[run.share]
        rng = random.Random(f"edit {step}")
        is_plain, references = rng.random() < PLAIN_SHARE, rng.choice(REFERENCE_COUNTS)
        rngs = [random.Random(f"edit {step} {i}") for i in range(run.batch)[run.share]]
        sigma, noise = sigma.to(run.device), noise.to(run.device)
        mixed = functools.partial(torch.autocast, run.device.type, torch.bfloat16, enabled=run.half)
        if is_plain:
            pictures, latents, masks = large.batch(run.batch, run.share)
            text = captions.draw(pictures, rngs[0])
            known = (latents.to(run.device), masks.to(run.device), text.to(run.device))
            with mixed():
                loss, squared = _plain_loss(model, captions, known, sigma, noise)
        else:
            batch = data.batch(references, rngs).to(run.device)
            with mixed():
                loss, squared = _edit_loss(model, captions, batch, sigma, noise)
        age = age_of(optimizer)
        rate = 2e-3 * run.peak * learning_rate(step, run.steps, age)
        descend(adapter, {"adam": optimizer}, loss, {"adam": rate}, run)
        decay = min(0.995, 1 - 4 / (age + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(adapter.parameters()), 1 - decay)
        return squared

    run_steps(NAME, run, {"adapter": adapter, "average": average, "adam": optimizer}, step_once)


def _edit_loss(
    model: ToyTransformer, captions: EditCaptions, batch: EditBatch, sigma: Tensor, noise: Tensor
) -> tuple[Tensor, float]:
    velocity, maps, reference_maps = model.forward_with_references(
        noised(batch.latents, sigma, noise),
        sigma,
        batch.text.rows,
        captions.end_row,
        batch.references,
    )
    squared = (velocity.float() - (noise - batch.latents)).square()
    # What comes from references counts five times as much as the rest.
    cells = batch.looked_at.sum(1).clamp(max=1).unflatten(1, batch.masks.shape[-2:])
    large = cells.repeat_interleave(2, 1).repeat_interleave(2, 2)
    weighed = (squared * (1 + 4 * large[:, None])).mean()
    loss = (
        weighed
        + attention_loss(maps, batch.masks, batch.text)
        + 0.2 * source_loss(reference_maps, batch)
    )
    return loss, weighed.item()


def _plain_loss(
    model: ToyTransformer,
    captions: EditCaptions,
    known: tuple[Tensor, Tensor, CaptionBatch],
    sigma: Tensor,
    noise: Tensor,
) -> tuple[Tensor, float]:
    latents, masks, text = known
    x = noised(latents, sigma, noise)
    velocity, maps = model(x, sigma, text.rows, captions.end_row)
    squared = (velocity.float() - (noise - latents)).square().mean()
    return squared + attention_loss(maps, masks, text), squared.item()


def export() -> None:
    """Writes the edit variant's file from the averaged change, at SHIPPED_RANK, a byte a weight."""
    _, average, captions = build()
    saved = torch.load(FOLDER / f"{NAME}.pt", map_location="cpu", weights_only=True)
    average.load_state_dict(saved["average"])
    change = reduced(average.tensors(), SHIPPED_RANK)
    change["word_ids"] = torch.tensor(captions.word_ids)
    write_parts(
        {"edit": change},
        {"transformer_edit_steps": str(saved["step"])},
        transformer_checkpoint.EDIT_PATH,
        byte_parts=("edit",),
    )
