"""The networks of a training: copies of what came in, with the words and the LoRA that are
learned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...magic.capture_sets import StyleSet, Subject
from ...magic.messages import shown
from ..faces.identity import Identity
from ..sampling.backbone import backbone_of
from ..sampling.backbone.unet import UNet
from ..text.clip import NAMES, loaded_encoders
from ..text.context import ContextTokens
from .denoiser import Denoiser, TextSide
from .draw import all_prompts, placeholders_of, preview_prompts
from .encoded_text import EncodedText
from .flow import TrainableTransformer, check_gradients
from .learned_text import LearnedText
from .lora import Adapter, as_lora_model
from .pictures import DifferentiableDecoder
from .settings import DTYPES, FP8, WORDS, CaptureSettings
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

    text: what prompts become. denoiser: the network that is trained. Both may have LoRA on them.
    faces: for the identity loss; None without one.
    word_norms: for each text encoder the length towards which the learned words are pulled.
    device: where all of them are.
    """

    text: TextSide
    denoiser: Denoiser
    faces: FaceSight | None
    word_norms: list[float]
    device: torch.device

    @property
    def text_adapters(self) -> list[Adapter]:
        return list(self.text.adapters.values())

    @property
    def adapters(self) -> list[Adapter]:
        """All LoRA, the denoiser's first."""
        return [*self.denoiser.adapters.values(), *self.text_adapters]

    def condition(self, prompts: Sequence[Any], size: tuple[int, int]) -> Any:
        """What the denoiser is told with these prompts. size: of the latent, rows and columns."""
        return self.denoiser.condition(self.text.encode(prompts), prompts, size)

    def lora(self) -> dict[str, Tensor]:
        """The host's LORA_MODEL."""
        return as_lora_model({**self.denoiser.adapters, **self.text.adapters})

    def identity_on_device(self) -> AbstractContextManager[None]:
        """The face network is where the others are as long as this is open."""
        return self.faces.identity.on(self.device) if self.faces else contextlib.nullcontext()

    @property
    def learned(self) -> list[nn.Parameter]:
        """Everything that the second phase trains: the words of each text encoder, and the LoRA."""
        return [*self.text.rows, *(each for adapter in self.adapters for each in adapter.learned)]

    @contextlib.contextmanager
    def strengths(self, denoiser: float, text: float) -> Iterator[None]:
        """The LoRA acts with these shares of its strength."""
        scales = [denoiser] * len(self.denoiser.adapters) + [text] * len(self.text_adapters)
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
    style: StyleSet | None,
    identity: Identity | None,
    settings: CaptureSettings,
    generator: torch.Generator,
    before_loading: Callable[[TextSide], None] = lambda _: None,
) -> Networks:
    """Copies of a MODEL, its CLIP and, where the identity loss needs it, its VAE's decoder, ready
    to be trained. before_loading: called when the text is there and nothing else. ValueError when a
    model is of a kind that MagiCapture does not train, or a prompt does not fit."""
    import comfy.model_management as management

    device = management.get_torch_device()
    prompts = all_prompts(subject, style, settings.rules)
    text: EncodedText | LearnedText | TrainableText
    norms: list[float] = []
    if is_transformer(model):
        if learns_words(model, clip, settings):
            text, norms = _learned_text(model, clip, subject, style, settings, generator, device)
        else:
            text = EncodedText(clip, placeholders_of(subject, style), _context_of(model))
        # All that may come up, previews included: the host's text encoder is not needed again.
        for prompt in (*prompts, "", *preview_prompts(subject, style)):
            text.prompt(prompt)
        before_loading(text)
        management.unload_all_models()
        denoiser = build_denoiser(model, settings, generator)
    else:
        text, norms = _trainable_text(clip, subject, style, settings, prompts, generator, device)
        before_loading(text)
        denoiser = build_denoiser(model, settings, generator)
        for encoder in text.encoders.values():
            encoder.add_lora(settings.rank, generator, settings.adapter)
    faces = None
    if identity and settings.uses_identity:
        faces = FaceSight(identity, DifferentiableDecoder(vae, denoiser.process_out, device))
    return Networks(text, denoiser, faces, norms, device)


def is_transformer(model: Any) -> bool:
    """Whether a MODEL is one that predicts a flow. ValueError for one that cannot be trained."""
    check_gradients(model)
    return not isinstance(backbone_of(model), UNet)


def learns_words(model: Any, clip: Any, settings: CaptureSettings) -> bool:
    """Whether the placeholders become vectors that are learned. ValueError for a model that cannot
    be trained."""
    if not is_transformer(model) or settings.words == WORDS[1]:
        return True
    return settings.words == WORDS[0] and {*loaded_encoders(clip)} <= {*NAMES}


def settings_for(model: Any, clip: Any, settings: CaptureSettings) -> CaptureSettings:
    """The settings as far as they are of a MODEL with its CLIP. ValueError when they leave no
    steps, or are for transformers."""
    if settings.precision == FP8 and not is_transformer(model):
        raise ValueError(
            f"precision {FP8} is for transformers, whose weights take many GB: of a UNet take bf16"
        )
    return settings if learns_words(model, clip, settings) else settings.of_trigger_words()


def build_denoiser(
    model: Any, settings: CaptureSettings, generator: torch.Generator, is_filled: bool = True
) -> TrainableUNet | TrainableTransformer:
    """A copy of a MODEL's network with LoRA. is_filled: with its weights, without them only the
    shapes are right. ValueError for lora_blocks that it has not."""
    import comfy.model_management as management

    parts = (
        model,
        management.get_torch_device(),
        DTYPES[settings.precision],
        settings.gradient_checkpointing,
        is_filled,
    )
    if is_transformer(model):
        transformer = TrainableTransformer(*parts, in_float8=settings.precision == FP8)
        transformer.add_lora(
            settings.rank, generator, settings.lora_blocks, settings.lora_mlp, settings.adapter
        )
        return transformer
    if settings.lora_blocks.strip() not in ("", "all"):
        raise ValueError(
            f"lora_blocks is '{shown(settings.lora_blocks)}', which is for transformers: a UNet's"
            " LoRA is in all of its attentions. Write all"
        )
    unet = TrainableUNet(*parts)
    unet.add_lora(settings.rank, generator, settings.adapter)
    return unet


def _context_of(model: Any) -> ContextTokens:
    return backbone_of(model).context or ContextTokens()


def _learned_text(
    model: Any,
    clip: Any,
    subject: Subject,
    style: StyleSet | None,
    settings: CaptureSettings,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[LearnedText, list[float]]:
    """A transformer's text encoders with the new words, and the length towards which the words are
    pulled in each encoder."""
    words = placeholders_of(subject, style)
    text = LearnedText(clip, words, _context_of(model), device, DTYPES[settings.precision])
    text.check_against(_plain_prompt(subject, style))
    norms = text.typical_norms(_class_words(subject, style))
    text.initialise(_first_words(subject, style), norms, generator)
    return text, norms


def _trainable_text(
    clip: Any,
    subject: Subject,
    style: StyleSet | None,
    settings: CaptureSettings,
    prompts: Sequence[str],
    generator: torch.Generator,
    device: torch.device,
) -> tuple[TrainableText, list[float]]:
    """A UNet's text encoders with the new words, and the length towards which the words are pulled
    in each encoder."""
    text = TrainableText(clip, placeholders_of(subject, style), device)
    # Every prompt that may come up is cut into tokens now, so that a bad template is an error
    # before the training.
    for prompt in prompts:
        text.prompt(prompt)
    text.check_against(clip, _plain_prompt(subject, style))
    rules = settings.rules
    norms = text.typical_norms(_class_words(subject, style))
    text.initialise(_first_words(subject, style), norms, generator, rules.style_spread)
    if rules.word_norm is not None:
        norms = [rules.word_norm] * len(norms)
    return text, norms


def _plain_prompt(subject: Subject, style: StyleSet | None) -> str:
    """A prompt without the new words."""
    plain = style.prompt(0, subject.class_word) if style else subject.prompt(0)
    for word in placeholders_of(subject, style):
        plain = plain.replace(word, "")
    return plain


def _class_words(subject: Subject, style: StyleSet | None) -> list[str]:
    return [part.class_word for part in (*subject.all, style) if part is not None]


def _first_words(subject: Subject, style: StyleSet | None) -> list[str]:
    """As what the new words start. The style's means nothing at first."""
    return [*(each.class_word for each in subject.all), *([""] if style else [])]
