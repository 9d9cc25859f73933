"""The layout of a running sampling, for the browser page that queued it. Where nobody looks,
nothing is computed or sent.

Events, all JSON: `magicportrait.run` once at the start, `magicportrait.layout` a few times a second
and once at the end. Pictures are base64 without a prefix: references JPEG, layouts PNG with a
palette (0 and transparent: no phrase; else the phrase's colour).
"""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...magic.concepts import Concept
from ..layout.record import LayoutStep, LayoutSteps
from ..pictures.conversion import as_base64
from ..pictures.palette import PALETTE, PATTERN_SIDE, white_places
from .listening_page import ListeningPage, listening_page, output_on_page, running_inputs
from .thumbnails import leaves_out, thumbnails

RUN_EVENT, LAYOUT_EVENT = "magicportrait.run", "magicportrait.layout"
_SECONDS_BETWEEN = 0.25


@dataclass(frozen=True, eq=False)
class LayoutView:
    """What a page is told of the node whose model is sampled. node: its id in the graph."""

    node: str | None
    phrases: tuple[str, ...]
    concepts: tuple[Concept, ...] = ()

    def open(self, steps: int) -> LiveLayout | None:
        """A sampling run of so many steps begins. None when nobody looks."""
        page = listening_page()
        return None if page is None or self.node is None else LiveLayout(page, self, steps)


def no_layout_on_page() -> Any:
    """Tells the page that the node which runs has no layout this time, as the host takes it from a
    node; None when nobody looks. The one of a run before would else stay."""
    page = listening_page()
    return None if page is None else output_on_page(page, "magic_no_layout", [True])


def _steps_on_widget(page: ListeningPage, sampler: str | None) -> int | None:
    """The steps on the widget of a KSampler, where it may make others of them: `ddim_uniform` goes
    down the 1000 noise levels in equal strides, and 12 of them need a thirteenth to arrive. None
    where the two are the same, or what was asked for is not known."""
    kind, inputs = running_inputs(page.server, sampler)
    match inputs:
        case {"steps": int(steps), "scheduler": "ddim_uniform"} if kind == "KSampler":
            return steps if inputs.get("denoise", 1.0) == 1.0 else None
    return None


class LiveLayout:
    """One sampling run, followed by a page."""

    def __init__(self, page: ListeningPage, view: LayoutView, steps: int):
        from comfy_execution.utils import get_executing_context

        self._page = page
        self._on_page: dict[int, np.ndarray] = {}
        self._last = -math.inf
        context = get_executing_context()
        sampler = None if context is None else context.node_id
        self._about = {"node": view.node, "sampler": sampler, "run": uuid.uuid4().hex}
        prompt = None if context is None else context.prompt_id
        references = [
            {"phrase": i, "image": picture, "masked": leaves_out(concept.mask)}
            for i, concept in enumerate(view.concepts)
            for picture in thumbnails(concept)
        ]
        page.send(
            RUN_EVENT,
            {
                **self._about,
                "prompt": prompt,
                "steps": steps,
                "asked": _steps_on_widget(page, sampler),
                "phrases": list(view.phrases),
                "references": references,
            },
        )

    def show(self, step: int, layout: LayoutStep) -> None:
        """Sends the layout, unless one has just been sent."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN:
            self._last = now
            self._send({step: layout}, done=False)

    def close(self, steps: LayoutSteps) -> None:
        """Sends the layouts that have not been sent."""
        unseen = {
            step: layout
            for step, layout in steps.items()
            if not np.array_equal(layout.concepts, self._on_page.get(step, ()))
        }
        self._send(unseen, done=True)

    def _send(self, layouts: LayoutSteps, done: bool) -> None:
        self._on_page.update({step: layout.concepts for step, layout in layouts.items()})
        pictures = {
            str(step): [indexed_png(concepts) for concepts in layout.concepts]
            for step, layout in layouts.items()
        }
        self._page.send(LAYOUT_EVENT, {**self._about, "layouts": pictures, "done": done})


def indexed_png(concepts: np.ndarray) -> str:
    """concepts: H W, the phrase that owns each place or -1. A PNG in base64, of that size or
    larger where a phrase has a pattern."""
    if concepts.max() >= len(PALETTE):
        concepts = concepts.repeat(PATTERN_SIDE, 0).repeat(PATTERN_SIDE, 1)
    white = len(PALETTE) + 1
    indices = np.where(concepts < 0, 0, concepts % len(PALETTE) + 1)
    indices[white_places(torch.from_numpy(concepts)).numpy()] = white
    picture = Image.fromarray(indices.astype(np.uint8), "P")
    colours = [(0, 0, 0), *(rgb for _, rgb in PALETTE), (255, 255, 255)]
    picture.putpalette([level for entry in colours for level in entry])
    return as_base64(picture, "PNG", transparency=0)
