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


def test_a_page_that_listens_is_told_all_of_it_and_the_host_nothing_twice(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_watch, "_SECONDS_BETWEEN_EVENTS", 0.0)
    said: list[str] = []
    monkeypatch.setattr(TrainingWatch, "_say", lambda self, text: said.append(text))
    bars: list[tuple[Any, ...]] = []
    watched = TrainingWatch(
        CaptureSettings(inversion_steps=10, lora_steps=0, versions=2), pictures=1, node="7"
    )
    monkeypatch.setattr(watched._bar, "update_absolute", lambda *state: bars.append(state))
    for _ in range(2):
        watched.encoded()
    watched.stepped(10, 0.5)
    watched.previewed(10, torch.zeros(1, 8, 8, 3))

    assert [point["encoded"] for point in page.points] == [[1, 2], [2, 2], None, None]
    assert said == [] and bars == [(10, 10)]

    monkeypatch.setattr(training_watch, "listening_page", lambda: None)
    watched.encoded()
    watched.stepped(10, 0.5)
    watched.previewed(10, torch.zeros(1, 8, 8, 3))
    assert said == ["encoding pictures: 3/2", "step 10/10, loss 0.5000"]
    assert [len(state) for state in bars] == [2, 2, 3]
