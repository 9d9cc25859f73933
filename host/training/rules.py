"""Small rules in which this training and the official code differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """What no input of its own turns; docs/fidelity.md says why ours are as they are.

    composes_subject_templates: composed prompts are the subject's templates with ' in the style of
    {style}' behind; else the style's, with the subject in the person's place.
    word_decay: weight decay of the words in the second phase.
    clips_words: whether the words' gradients count in the clipping of the second phase, and are
    clipped.
    word_norm: length towards which the words are pulled in the first phase; None for the typical
    one of each text encoder, which is .4 in CLIP-L.
    style_spread: standard deviation of the noise that the style's word starts as; None for noise of
    the typical length.
    first_decay: steps that the rates have decayed by at a phase's first step.
    mask_mode: how torch's interpolate scales face masks down to latent pixels.
    """

    composes_subject_templates: bool
    word_decay: float
    clips_words: bool
    word_norm: float | None
    style_spread: float | None
    first_decay: int
    mask_mode: str


OURS = Rules(
    composes_subject_templates=False,
    word_decay=0.0,
    clips_words=False,
    word_norm=None,
    style_spread=None,
    first_decay=0,
    mask_mode="area",
)
OFFICIAL = Rules(
    composes_subject_templates=True,
    word_decay=1e-3,
    clips_words=True,
    word_norm=0.4,
    style_spread=0.017,
    first_decay=1,
    mask_mode="nearest",
)
