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

Kind = Literal["subject", "style", "composed", "class"]
_Option = TypeVar("_Option")


@dataclass(frozen=True, eq=False)
class Sample:
    """One of a step's samples.

    kind: whether the prompt names a subject, the style, or, composed, both; of 'class' neither, but
    what the subject is.
    picture: what is denoised: the subject's; for style and composed one of the style; for class one
    of others like the subject.
    version: which of the picture's encoded versions.
    prompt: the text that goes with it.
    identity: D, the embedding of the face that should be there; None for style and class, and
    without an identity network.
    weight: how much it counts as one of its kind: less or more than 1 for class alone.
    """

    kind: Kind
    picture: PreparedPicture
    version: int
    prompt: Prompt
    identity: Tensor | None
    weight: float = 1.0


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
class PreparedSubject:
    """A subject as it is drawn.

    pictures: of it, as latents. class_pictures: of others like it. prompts: of each kind and
    picture, those of the style included. class_weight: how much others like it count.
    """

    pictures: list[PreparedPicture]
    class_pictures: list[PreparedPicture]
    prompts: Mapping[Kind, Mapping[CapturePicture, Sequence[str]]]
    class_weight: float = 1.0


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Pictures and prompts that batches are drawn from.

    subjects: all of them. style_pictures: as latents. text: cuts prompts into tokens.
    """

    subjects: list[PreparedSubject]
    style_pictures: list[PreparedPicture]
    text: TextSide

    @property
    def subject_pictures(self) -> list[PreparedPicture]:
        """Of all subjects."""
        return [picture for each in self.subjects for picture in each.pictures]

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
        choices = {kind: self._choices(kind, size) for kind in kinds}
        kind = _choice([kind for kind in kinds if choices[kind]], generator)
        # Subjects are alike, however many pictures they have. Of one alone nothing is drawn.
        subject, pictures = choices[kind][0]
        if len(choices[kind]) > 1:
            subject, pictures = _choice(choices[kind], generator)
        picture = _choice(pictures, generator)
        version = _choice(range(len(picture.latents)), generator)
        text = _choice(subject.prompts[kind][picture.source], generator)
        # The face that should be there: the picture's own or, in a composed sample, any picture's
        # of the subject that its prompt names.
        person = picture if kind == "subject" else None
        if kind == "composed":
            person = _choice(subject.pictures, generator)
        identity = None
        if person is not None and person.identities is not None:
            identity = person.identities[version % len(person.identities)]
        weight = subject.class_weight if kind == "class" else 1.0
        return Sample(kind, picture, version, self.text.prompt(text), identity, weight)

    def _choices(
        self, kind: Kind, size: tuple[int, int] | None
    ) -> list[tuple[PreparedSubject, list[PreparedPicture]]]:
        """The subjects of which there are pictures of a kind and size, and these."""
        # No subject is named with the style alone.
        subjects = self.subjects[:1] if kind == "style" else self.subjects
        choices = []
        for subject in subjects:
            own = {"subject": subject.pictures, "class": subject.class_pictures}
            pictures = own.get(kind, self.style_pictures)
            fitting = [picture for picture in pictures if size in (None, picture.size)]
            if fitting:
                choices.append((subject, fitting))
        return choices


Prompts = dict[Kind, dict[CapturePicture, tuple[str, ...]]]


def training_prompts(subject: Subject, style: StyleSet | None, rules: Rules) -> Prompts:
    """Every prompt that may be drawn for a subject, without those before it in a chain, by the kind
    of sample and its picture."""
    prompts: Prompts = {
        "subject": {each: subject.prompts_of(each) for each in subject.pictures},
        "class": {each: subject.class_prompts for each in subject.class_pictures},
    }
    if style is None:
        return prompts
    prompts["style"] = {each: style.prompts_of(each) for each in style.pictures}
    if rules.composes_subject_templates:
        texts = [subject.prompt(i) for i in range(len(subject.templates))]
        both = tuple(f"{text} in the style of {style.placeholder}" for text in texts)
        prompts["composed"] = {each: both for each in style.pictures}
    else:
        person = subject.person
        prompts["composed"] = {each: style.prompts_of(each, person) for each in style.pictures}
    return prompts


def all_prompts(subject: Subject, style: StyleSet | None, rules: Rules) -> list[str]:
    """Every prompt that may be drawn, of a subject and those before it."""
    return [
        text
        for each in subject.all
        for pictures in training_prompts(each, style, rules).values()
        for texts in pictures.values()
        for text in texts
    ]


def preview_prompts(subject: Subject, style: StyleSet | None) -> list[str]:
    """Each subject, in the style where there is one."""
    if style is None:
        return [each.prompt(0) for each in subject.all]
    return [style.prompt(0, each.person) for each in subject.all]


def placeholders_of(subject: Subject, style: StyleSet | None) -> list[str]:
    """The new words, those of the subjects first."""
    return [part.placeholder for part in (*subject.all, style) if part is not None]


def _choice(options: Sequence[_Option], generator: torch.Generator) -> _Option:
    return options[int(torch.randint(len(options), (), generator=generator))]
