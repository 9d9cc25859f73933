"""What a step sees: samples of the subject, of the style and of both, drawn from one generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ...magic.capture_sets import CapturePicture, StyleSet, Subject
from .denoiser import Prompt, TextSide
from .pictures import PreparedPicture
from .rules import Rules

Kind = Literal["subject", "style", "composed"]
_Option = TypeVar("_Option")


@dataclass(frozen=True, eq=False)
class Sample:
    """One of a step's samples.

    kind: whether the prompt names the subject, the style, or, composed, both.
    picture: what is denoised: the subject's or, for the other two kinds, one of the style.
    version: which of the picture's encoded versions.
    prompt: the text that goes with it.
    identity: D, the embedding of the face that should be there; None for a style, and without an
    identity network.
    """

    kind: Kind
    picture: PreparedPicture
    version: int
    prompt: Prompt
    identity: Tensor | None


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples of one size.

    samples: what they are. latents: B C h w, clean. faces: B h w, the share of each latent pixel
    that is face. noise: B C h w. timesteps: B, times of the denoiser. identity_timesteps: B, for a
    forward of the identity loss's own; None where it has none.
    """

    samples: list[Sample]
    latents: Tensor
    faces: Tensor
    noise: Tensor
    timesteps: Tensor
    identity_timesteps: Tensor | None = None

    def is_kind(self, kind: Kind) -> Tensor:  # B
        return torch.tensor(
            [sample.kind == kind for sample in self.samples], device=self.latents.device
        )


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Pictures and prompts that batches are drawn from.

    subject_pictures, style_pictures: pictures as latents. prompts: of each kind and picture. text:
    cuts them into tokens.
    """

    subject_pictures: list[PreparedPicture]
    style_pictures: list[PreparedPicture]
    prompts: Mapping[Kind, Mapping[CapturePicture, Sequence[str]]]
    text: TextSide

    def draw_batch(
        self,
        kinds: Sequence[Kind],
        count: int,
        draw_times: Callable[[tuple[int, int]], Tensor],
        generator: torch.Generator,
        draw_identity_times: Callable[[], Tensor] | None = None,
    ) -> Batch:
        """`count` samples of random kinds, with noise. draw_times: gives their times for rows and
        columns of a latent; draw_identity_times: gives others for the identity loss."""
        samples: list[Sample] = []
        for _ in range(count):
            size = samples[0].picture.size if samples else None
            samples.append(self._draw_sample(kinds, size, generator))
        latents = torch.stack([sample.picture.latents[sample.version] for sample in samples])
        timesteps = draw_times(samples[0].picture.size)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        faces = torch.stack([sample.picture.faces[sample.version] for sample in samples])
        own = draw_identity_times() if draw_identity_times else None
        return Batch(samples, latents, faces, noise, timesteps, own)

    def _draw_sample(
        self, kinds: Sequence[Kind], size: tuple[int, int] | None, generator: torch.Generator
    ) -> Sample:
        """A batch holds latents of one size: the first sample's."""
        choices = {
            kind: [
                picture
                for picture in (self.subject_pictures if kind == "subject" else self.style_pictures)
                if size in (None, picture.size)
            ]
            for kind in kinds
        }
        kind = _choice([kind for kind in kinds if choices[kind]], generator)
        picture = _choice(choices[kind], generator)
        version = _choice(range(len(picture.latents)), generator)
        text = _choice(self.prompts[kind][picture.source], generator)
        # The face that should be there: the picture's own or, in a composed sample, any picture's
        # of the subject.
        person = picture if kind == "subject" else None
        if kind == "composed":
            person = _choice(self.subject_pictures, generator)
        identity = None
        if person is not None and person.identities is not None:
            identity = person.identities[version % len(person.identities)]
        return Sample(kind, picture, version, self.text.prompt(text), identity)


Prompts = dict[Kind, dict[CapturePicture, tuple[str, ...]]]


def training_prompts(subject: Subject, style: StyleSet | None, rules: Rules) -> Prompts:
    """Every prompt that may be drawn, by the kind of sample and its picture."""
    prompts: Prompts = {"subject": {each: subject.prompts_of(each) for each in subject.pictures}}
    if style is None:
        return prompts
    prompts["style"] = {each: style.prompts_of(each) for each in style.pictures}
    if rules.composes_subject_templates:
        texts = [subject.prompt(i) for i in range(len(subject.templates))]
        composed = tuple(f"{text} in the style of {style.placeholder}" for text in texts)
        prompts["composed"] = {each: composed for each in style.pictures}
    else:
        person = subject.person
        prompts["composed"] = {each: style.prompts_of(each, person) for each in style.pictures}
    return prompts


def preview_prompt(subject: Subject, style: StyleSet | None) -> str:
    """The subject, in the style where there is one."""
    return style.prompt(0, subject.person) if style else subject.prompt(0)


def placeholders_of(subject: Subject, style: StyleSet | None) -> list[str]:
    """The new words, the subject's first."""
    return [subject.placeholder, *([style.placeholder] if style else [])]


def _choice(options: Sequence[_Option], generator: torch.Generator) -> _Option:
    return options[int(torch.randint(len(options), (), generator=generator))]
