"""What a user sees of a training while it runs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from PIL import Image
from torch import Tensor

from ...magic.capture_sets import StyleSet, Subject
from ..pictures.conversion import as_base64, as_image
from ..training.settings import CaptureSettings
from .listening_page import listening_page, running_server
from .thumbnails import masked_thumbnail

_PREVIEW_SIDE = 512
_SECONDS_BETWEEN_EVENTS = 0.3
_LORA_TO_WORDS = 2.0
"""How many times as long a step of the LoRA takes as one of the words, until it is measured."""
_FIRST_STEPS = 3
"""Of the LoRA, before they count as measured: things are set up in them."""


class TimeLeft:
    """How long the rest of a training takes, whose phases differ in speed. What was done at another
    time is not counted: it measures from the first step that it is told of.

    words, lora: the steps of the two phases.
    """

    def __init__(self, words: int, lora: int) -> None:
        self._words, self._total = words, words + lora
        self._word_began: tuple[int, float] | None = None
        self._lora_began: tuple[int, float] | None = None
        self._word_seconds: float | None = None
        """Of one step."""

    def after(self, step: int, now: float) -> float | None:
        """In seconds; None while nothing is measured. To be asked after each step and preview."""
        if step <= self._words or self._lora_began is None:
            self._lora_began = (step, now)
        if step <= self._words:
            self._word_began = self._word_began or (step, now)
            self._word_seconds = _seconds_of_step(self._word_began, step, now)
            if self._word_seconds is None:
                return None
            lora = _LORA_TO_WORDS * (self._total - self._words)
            return self._word_seconds * (self._words - step + lora)
        own = _seconds_of_step(self._lora_began, step, now)
        if self._word_seconds is not None and step - self._lora_began[0] < _FIRST_STEPS:
            own = _LORA_TO_WORDS * self._word_seconds
        return None if own is None else own * (self._total - step)


def _seconds_of_step(began: tuple[int, float], step: int, now: float) -> float | None:
    """began: after which step, and when."""
    first, then = began
    return (now - then) / (step - first) if step > first else None


class TrainingWatch:
    """Progress bar with loss and previews, and what of each picture is learned. Its methods are the
    training's callbacks; a cancel of the user is raised from them.

    A page that listens shows all of it on the node in its own way: the host's line of text and its
    preview would say the same twice, and be taken for a contradiction where they are a step apart.
    """

    def __init__(
        self, settings: CaptureSettings, subject: Subject, style: StyleSet | None, node: str | None
    ):
        import comfy.utils

        self._sets = [part for part in (*subject.all, style) if part is not None]
        self._is_masked = settings.masked
        self._has_shown_pictures = False
        pictures = sum(len(part.pictures) for part in self._sets)
        pictures += sum(len(each.class_pictures) for each in subject.all)
        # Encoding is quick beside the training: it moves the bar, so that a cancel is seen, but has
        # no share in it.
        self._total = settings.steps
        self._bar = comfy.utils.ProgressBar(self._total)
        self._encodings, self._encodings_done = pictures * settings.versions, 0
        self._node = node
        self._run = uuid.uuid4().hex
        self._average: float | None = None
        self._loss: float | None = None
        self._step = 0
        self._end: str | None = None
        self._goes_on = False
        self._time_left = TimeLeft(settings.inversion_steps, settings.lora_steps)
        self._last = 0.0
        self.previews: list[Tensor] = []

    def on_checkpoint(self, is_kept: bool) -> None:
        """Before pictures are encoded. is_kept: whether the state of this very training is there,
        from which it will go on."""
        self._goes_on = is_kept

    def on_encoding(self) -> None:
        import comfy.model_management as management

        management.throw_exception_if_processing_interrupted()
        self._encodings_done += 1
        if listening_page() is None:
            after = ", then on from where it stopped" if self._goes_on else ""
            self._say(f"encoding pictures: {self._encodings_done}/{self._encodings}{after}")
        else:
            self._tell(0, is_due=self._encodings_done == self._encodings)

    def on_resume(self, step: int) -> None:
        """It goes on after `step` steps, which were done at another time."""
        self._goes_on = True
        self._bar.update_absolute(step, self._total)
        if listening_page() is None:
            self._say(f"goes on from step {step}/{self._total}")
        else:
            self._tell(step, is_due=True)

    def on_step(self, step: int, loss: float) -> None:
        import comfy.model_management as management

        self._loss, self._step = loss, step
        self._average = loss if self._average is None else 0.95 * self._average + 0.05 * loss
        self._bar.update_absolute(step, self._total)
        if listening_page() is None and (step % 10 == 0 or step == self._total):
            self._say(f"step {step}/{self._total}, loss {self._average:.4f}")
        self._tell(step, is_due=step == self._total)
        management.throw_exception_if_processing_interrupted()

    def on_preview(self, step: int, pictures: Tensor) -> None:
        self.previews.append(pictures)
        picture = as_image(pictures[0])
        if listening_page() is None:
            self._bar.update_absolute(step, self._total, ("JPEG", picture, _PREVIEW_SIDE))
        self._tell(step, is_due=True, preview=picture)

    def on_stop(self, is_kept: bool) -> None:
        """The training has been cancelled or has failed. is_kept: whether the next one goes on from
        here."""
        if self._loss is not None:
            self._end = "kept" if is_kept else "lost"
            self._tell(self._step, is_due=True)

    def _tell(self, step: int, is_due: bool, preview: Image.Image | None = None) -> None:
        """The page that queued: whenever it is due, else a few times a second."""
        now = time.monotonic()
        left = None if self._loss is None else self._time_left.after(step, now)
        if not is_due and now - self._last < _SECONDS_BETWEEN_EVENTS:
            return
        self._last = now
        page = listening_page()
        if page is None or self._node is None:
            return
        point = {
            "node": self._node,
            "run": self._run,
            "step": step,
            "steps": self._total,
            "loss": self._loss,
            "preview": None if preview is None else as_base64(preview, "JPEG"),
            "seconds_left": left,
            "end": self._end,
            "goes_on": self._goes_on,
            "encoded": None if self._loss is not None else [self._encodings_done, self._encodings],
            "pictures": None if self._has_shown_pictures else list(self._pictures()),
        }
        page.send("magicportrait.training", point)
        self._has_shown_pictures = True

    def _pictures(self) -> Iterator[dict[str, Any]]:
        """What of each picture counts: its thumbnail and share."""
        for part in self._sets:
            for picture in part.pictures:
                face = picture.mask.float()
                mask = face if isinstance(part, Subject) else 1 - face
                if not self._is_masked:
                    mask = mask.new_ones(mask.shape)
                yield {
                    "name": f"{part.placeholder}: {picture.name}",
                    "share": mask.mean().item(),
                    "picture": masked_thumbnail(picture.image, mask),
                }

    def _say(self, text: str) -> None:
        server = running_server()
        if self._node is not None and hasattr(server, "send_progress_text"):
            server.send_progress_text(text, self._node)
