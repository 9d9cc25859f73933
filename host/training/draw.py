"""What a step sees: samples of the subject, of the style and of both, drawn from one generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ...magic.capture_sets import StyleSet, Subject
from .pictures import PreparedPicture
from .text import Prompt, TrainableText

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
    that is face. noise: B C h w. timesteps: B, of the model's 1000.
    """

    samples: list[Sample]
    latents: Tensor
    faces: Tensor
    noise: Tensor
    timesteps: Tensor

    def is_kind(self, kind: Kind) -> Tensor:  # B
        return torch.tensor(
            [sample.kind == kind for sample in self.samples], device=self.latents.device
        )


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Pictures and prompts that batches are drawn from.

    subject, style: placeholders, class words and templates. subject_pictures, style_pictures: their
    pictures as latents. text: cuts the prompts into tokens.
    """

    subject: Subject
    style: StyleSet
    subject_pictures: list[PreparedPicture]
    style_pictures: list[PreparedPicture]
    text: TrainableText

    def draw_batch(
        self, kinds: Sequence[Kind], count: int, timesteps: int, generator: torch.Generator
    ) -> Batch:
        """`count` samples of random kinds, with noise and timesteps below `timesteps`."""
        samples: list[Sample] = []
        for _ in range(count):
            size = samples[0].picture.size if samples else None
            samples.append(self._draw_sample(kinds, size, generator))
        latents = torch.stack([sample.picture.latents[sample.version] for sample in samples])
        drawn = torch.randint(timesteps, (len(samples),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        faces = torch.stack([sample.picture.faces[sample.version] for sample in samples])
        return Batch(samples, latents, faces, noise, drawn.to(latents.device))

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
        templates = self.subject.templates if kind == "subject" else self.style.templates
        template = _choice(range(len(templates)), generator)
        identity = None
        if kind == "subject":
            text = self.subject.prompt(template)
            identity = picture.identities[version] if picture.identities is not None else None
        elif kind == "style":
            text = self.style.prompt(template)
        else:
            text = self.style.prompt(template, self.subject.person)
            other = _choice(self.subject_pictures, generator)
            if other.identities is not None:
                identity = other.identities[version % len(other.identities)]
        return Sample(kind, picture, version, self.text.prompt(text), identity)


def _choice(options: Sequence[_Option], generator: torch.Generator) -> _Option:
    return options[int(torch.randint(len(options), (), generator=generator))]
