"""The networks of a training: copies of what came in, with the words and the LoRA that are
learned."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...magic.capture_sets import StyleSet, Subject
from ..faces.identity import Identity
from .draw import training_prompts
from .lora import LoraLinear, as_lora_model
from .pictures import DifferentiableDecoder
from .settings import DTYPES, CaptureSettings
from .text import TrainableText
from .unet import TrainableUNet


@dataclass(frozen=True, eq=False)
class FaceSight:
    """How the identity loss sees a face: latents are decoded, and the network says who it is.

    identity: the face-embedding network. decode: the VAE's decoder.
    """

    identity: Identity
    decode: DifferentiableDecoder


@dataclass(frozen=True, eq=False)
class Networks:
    """What computes in a training.

    text: the text encoders, with the learned words. unet: the UNet. Both have LoRA on them.
    faces: for the identity loss; None without one.
    word_norms: for each text encoder the length towards which the learned words are pulled.
    device: where all of them are.
    """

    text: TrainableText
    unet: TrainableUNet
    faces: FaceSight | None
    word_norms: list[float]
    device: torch.device

    @property
    def text_adapters(self) -> list[LoraLinear]:
        encoders = self.text.encoders.values()
        return [adapter for encoder in encoders for adapter in encoder.adapters.values()]

    @property
    def adapters(self) -> list[LoraLinear]:
        """All LoRA, the UNet's first."""
        return [*self.unet.adapters.values(), *self.text_adapters]

    def lora(self) -> dict[str, Tensor]:
        """The host's LORA_MODEL."""
        adapters = dict(self.unet.adapters)
        for encoder in self.text.encoders.values():
            adapters.update(encoder.adapters)
        return as_lora_model(adapters)

    def identity_on_device(self) -> AbstractContextManager[None]:
        """The face network is where the others are as long as this is open."""
        return self.faces.identity.on(self.device) if self.faces else contextlib.nullcontext()

    @contextlib.contextmanager
    def strengths(self, unet: float, text: float) -> Iterator[None]:
        """The LoRA acts with these shares of its strength."""
        scales = [unet] * len(self.unet.adapters) + [text] * len(self.text_adapters)
        before = [adapter.strength for adapter in self.adapters]
        try:
            for adapter, scale in zip(self.adapters, scales, strict=True):
                adapter.strength *= scale
            yield
        finally:
            for adapter, strength in zip(self.adapters, before, strict=True):
                adapter.strength = strength


def build_networks(
    model: Any,
    clip: Any,
    vae: Any,
    subject: Subject,
    style: StyleSet,
    identity: Identity | None,
    settings: CaptureSettings,
    generator: torch.Generator,
) -> Networks:
    """Copies of a MODEL, its CLIP and, where the identity loss needs it, its VAE's decoder, ready
    to be trained. ValueError when a model is of a kind that MagiCapture does not train, or a prompt
    does not fit."""
    import comfy.model_management as management

    device = management.get_torch_device()
    text = TrainableText(clip, [subject.placeholder, style.placeholder], device)
    # Every prompt that may come up is cut into tokens now, so that a bad template is an error
    # before the training.
    for prompt in itertools.chain(*training_prompts(subject, style, settings.rules).values()):
        text.prompt(prompt)
    text.check_against(clip, style.prompt(0, subject.class_word).replace(style.placeholder, ""))
    unet = TrainableUNet(model, device, DTYPES[settings.precision], settings.gradient_checkpointing)
    rules = settings.rules
    norms = text.typical_norms([subject.class_word, style.class_word])
    text.initialise([subject.class_word, ""], norms, generator, rules.style_spread)
    if rules.word_norm is not None:
        norms = [rules.word_norm] * len(norms)
    unet.add_lora(settings.rank, generator)
    for encoder in text.encoders.values():
        encoder.add_lora(settings.rank, generator)
    faces = None
    if identity and settings.uses_identity:
        faces = FaceSight(identity, DifferentiableDecoder(vae, unet.process_out, device))
    return Networks(text, unet, faces, norms, device)
