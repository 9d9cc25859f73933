"""What a page that listens is sent while MagiCapture trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from magicportrait.host.page import training_watch
from magicportrait.host.page.training_watch import TrainingWatch
from magicportrait.host.training.settings import CaptureSettings


class Page:
    def __init__(self) -> None:
        self.points: list[dict[str, Any]] = []

    def send(self, event: str, data: dict[str, Any]) -> None:
        assert event == "magicportrait.training"
        self.points.append(data)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    listening = Page()
    monkeypatch.setattr(training_watch, "listening_page", lambda: listening)
    return listening


def watch(steps: int) -> TrainingWatch:
    return TrainingWatch(CaptureSettings(inversion_steps=steps, lora_steps=0), pictures=1, node="7")


def test_a_preview_has_the_loss_of_its_step(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_watch, "_SECONDS_BETWEEN_EVENTS", 0.0)
    watched = watch(3)
    for step, loss in enumerate([1.0, 0.5, 0.25], 1):
        watched.stepped(step, loss)
        if step == 2:
            watched.previewed(step, torch.zeros(1, 8, 8, 3))

    assert [(point["step"], point["loss"], bool(point["preview"])) for point in page.points] == [
        (1, 1.0, False),
        (2, 0.5, False),
        (2, 0.5, True),
        (3, 0.25, False),
    ]


def test_a_training_that_is_taken_up_again_counts_only_its_own_time(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(1000, 2000, 10))
    monkeypatch.setattr(training_watch, "time", SimpleNamespace(monotonic=lambda: next(now)))
    watched = watch(500)
    for step in (401, 402, 403):
        watched.stepped(step, 1.0)

    assert [point["seconds_left"] for point in page.points] == [None, 980.0, 970.0]
