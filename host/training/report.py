"""What a training remembers of its steps, and how it went, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .lora import ADAPTERS
from .pictures import PreparedPicture
from .settings import CaptureSettings, Phase

_PHASE_NAMES = {Phase.INVERSION: "textual inversion", Phase.LORA: "LoRA"}


@dataclass
class History:
    """Grows by a step at a time.

    losses: the total loss of every step. terms: of each phase and term ('1 refocusing') its value
    in every step that had it. seconds: spent in the steps of each phase.
    """

    losses: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=lambda: [0.0 for _ in Phase])

    def add(self, phase: Phase, loss: Tensor, terms: dict[str, Tensor]) -> None:
        self.losses.append(loss.item())
        for name, term in terms.items():
            self.terms.setdefault(f"{phase:d} {name}", []).append(term.item())


@dataclass(frozen=True, eq=False)
class PictureSet:
    """placeholder: the word for the subject or the style. pictures: what it was learned from.
    others: how many pictures of others of the subject's class there were beside."""

    placeholder: str
    pictures: Sequence[PreparedPicture]
    others: int = 0

    def in_words(self, kind: str) -> str:
        """In words. kind: subject or style."""
        others = f" and {self.others} of others of the class" if self.others else ""
        return f"{kind} '{self.placeholder}' ({len(self.pictures)} pictures{others})"


def training_report(
    settings: CaptureSettings,
    subjects: Sequence[PictureSet],
    style: PictureSet | None,
    side: int,
    device: str,
    history: History,
    learns_words: bool = True,
    memory: str = "",
) -> str:
    """What was trained, how long it took, and how the terms of the loss went. side: of the training
    pictures in pixels. memory: what it needed, in words."""
    sets = [subject.in_words("subject") for subject in subjects]
    if style is not None:
        sets.append(style.in_words("style"))
    lines = [f"{', '.join(sets)}, {side} px, {settings.precision} on {device}"]
    if settings.is_official:
        lines.append("rules of the official code (preset)")
    if settings.adapter != ADAPTERS[0]:
        lines.append(f"{settings.adapter} in place of LoRA")
    if settings.ema:
        lines.append(f"what is given is the average of the last steps (ema {settings.ema:g})")
    if memory:
        lines.append(f"memory: {memory}")
    if not learns_words:
        words = " and ".join(
            f"'{part.placeholder}'" for part in (*subjects, style) if part is not None
        )
        lines.append(f"no words are learned of this model: write {words} as trigger words")
    if style is not None:
        lines += _notes_on_masks(settings, style)
    for phase, name in _PHASE_NAMES.items():
        steps = settings.steps_of(phase)
        if not steps:
            continue
        lines.append(f"{name}: {steps} steps, {history.seconds[phase] / steps:.3f} s a step")
        for term, values in history.terms.items():
            if term.startswith(f"{phase:d}"):
                tenth = max(1, len(values) // 10)
                first, last = (sum(part) / tenth for part in (values[:tenth], values[-tenth:]))
                lines.append(f"  {term[2:]}: {first:.4f} at first, {last:.4f} at last")
    return "\n".join(lines)


def _notes_on_masks(settings: CaptureSettings, style: PictureSet) -> list[str]:
    whole = [picture.name for picture in style.pictures if picture.is_all_face]
    if not whole or not (settings.lora_steps and settings.composed and settings.refocus_weight):
        return []
    return [
        f"{len(whole)} of {len(style.pictures)} style pictures have no face mask"
        f" ({', '.join(whole[:3])}{', ...' if len(whole) > 3 else ''}): prompts with both words"
        " train on them without refocusing"
    ]
