"""LoRAs that MagiCapture trains for other benches: a subject without a style, a trigger word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import toy
from .magicapture_effect import TRANSFORMER_SETTINGS

# ruff: isort: split
import torch
from torch import Tensor

from magicportrait.demo.portraits import Portrait, Rendering, render
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.run import CaptureTraining
from magicportrait.magic.capture_sets import Subject, capture_pictures

TRIGGER = "sks"
"""A word that the toy does not know."""


def mask_of(rendering: Rendering, parts: Sequence[str]) -> Tensor:
    """Of all the parts together: 1 H W."""
    return torch.stack([toy.part_mask(rendering, part) for part in parts]).sum(0)


def train_capture_lora(
    checkpoint: toy.Toy,
    portraits: Sequence[Portrait],
    parts: Sequence[str],
    class_word: str,
    template: str,
    steps: int,
) -> dict[str, Tensor]:
    """The LORA_MODEL of the parts of some portraits. template: the prompt, in which {person} is the
    trigger word and the class word."""
    drawn = [render(portrait, checkpoint.side) for portrait in portraits]
    pictures = capture_pictures(
        [torch.from_numpy(each.image) for each in drawn],
        [mask_of(each, parts)[0] for each in drawn],
        [f"portrait {i}" for i in range(len(drawn))],
    )
    subject = Subject(pictures, TRIGGER, class_word, (template,))
    settings = replace(TRANSFORMER_SETTINGS, lora_steps=steps, side=checkpoint.side)
    # What comes out of inference mode cannot be trained with.
    with torch.inference_mode(False), training_mode():
        training = CaptureTraining(
            checkpoint.model, checkpoint.clip, checkpoint.vae, subject, None, None, settings
        )
        while training.step < steps:
            training.train_step()
        return training.networks.lora()
