"""What a training remembers of its steps, and how it went, in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .draw import TrainingData
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


def training_report(
    settings: CaptureSettings, data: TrainingData, side: int, device: str, history: History
) -> str:
    """What was trained, how long it took, and how the terms of the loss went. side: of the training
    pictures in pixels."""
    lines = [
        f"subject '{data.subject.placeholder}' ({len(data.subject_pictures)} pictures), style"
        f" '{data.style.placeholder}' ({len(data.style_pictures)} pictures), {side} px,"
        f" {settings.precision} on {device}"
    ]
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
