"""What a page that listens is sent while MagiCapture trains."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from magicportrait.host.page import training_watch
from magicportrait.host.page.training_watch import TimeLeft, TrainingWatch
from magicportrait.host.training.settings import CaptureSettings
from magicportrait.magic.capture_sets import StyleSet, Subject, capture_pictures


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


def subject_of(mask: torch.Tensor) -> Subject:
    pictures = capture_pictures([torch.ones(*mask.shape, 3)], [mask], ["one.png"])
    return Subject(pictures, "<anna>", "woman", ("a {person}",))


WHOLE = torch.ones(16, 16)


def watch(steps: int, **settings: Any) -> TrainingWatch:
    settings = {"inversion_steps": steps, "lora_steps": 0, **settings}
    return TrainingWatch(CaptureSettings(**settings), subject_of(WHOLE), None, node="7")


def test_a_preview_has_the_loss_of_its_step(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_watch, "_SECONDS_BETWEEN_EVENTS", 0.0)
    watched = watch(3)
    for step, loss in enumerate([1.0, 0.5, 0.25], 1):
        watched.on_step(step, loss)
        if step == 2:
            watched.on_preview(step, torch.zeros(1, 8, 8, 3))

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
        watched.on_step(step, 1.0)

    assert [point["seconds_left"] for point in page.points] == [None, 980.0, 970.0]


def test_the_time_left_knows_that_the_steps_of_the_lora_are_slower() -> None:
    left = TimeLeft(words=200, lora=300)
    # One second a step, then three; a preview behind the last step of the words takes a minute.
    told = {step: left.after(step, step) for step in range(1, 201)}
    assert (told[1], told[100]) == (None, 100 + 2 * 300)
    left.after(200, 260)
    told = {200 + step: left.after(200 + step, 260 + 3 * step) for step in range(1, 301)}

    # Until they are measured, twice what those of the words took, with the preview.
    assert told[201] == pytest.approx(2 * 259 / 199 * 299)
    assert [told[step] for step in (203, 400, 500)] == [3 * 297, 300, 0]


def test_the_time_left_without_words_is_measured_from_the_first_step_on() -> None:
    for left in (TimeLeft(words=0, lora=300), TimeLeft(words=200, lora=100)):
        # The second goes on behind its words.
        assert [left.after(step, 3 * step) for step in (250, 251)] == [None, 3 * 49]


def test_a_page_that_listens_is_told_all_of_it_and_the_host_nothing_twice(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_watch, "_SECONDS_BETWEEN_EVENTS", 0.0)
    said: list[str] = []
    monkeypatch.setattr(TrainingWatch, "_say", lambda self, text: said.append(text))
    bars: list[tuple[Any, ...]] = []
    watched = watch(10, versions=2)
    monkeypatch.setattr(watched._bar, "update_absolute", lambda *state: bars.append(state))
    for _ in range(2):
        watched.on_encoding()
    watched.on_step(10, 0.5)
    watched.on_preview(10, torch.zeros(1, 8, 8, 3))

    assert [point["encoded"] for point in page.points] == [[1, 2], [2, 2], None, None]
    assert said == [] and bars == [(10, 10)]

    monkeypatch.setattr(training_watch, "listening_page", lambda: None)
    watched.on_encoding()
    watched.on_step(10, 0.5)
    watched.on_preview(10, torch.zeros(1, 8, 8, 3))
    assert said == ["encoding pictures: 3/2", "step 10/10, loss 0.5000"]
    assert [len(state) for state in bars] == [2, 2, 3]


@pytest.mark.parametrize("masked", [True, False])
def test_what_of_each_picture_counts_is_told_once(
    page: Page, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    """Inside the face of a subject, outside that of a style: a mask that is not used is seen."""
    monkeypatch.setattr(training_watch, "_SECONDS_BETWEEN_EVENTS", 0.0)
    mask = torch.zeros(32, 16)
    mask[:8] = 1
    subject = subject_of(mask)
    style = StyleSet(subject.pictures, "<ink>", "woman", ("a {person} in {style}",))
    watched = TrainingWatch(CaptureSettings(masked=masked), subject, style, node="7")
    watched.on_step(1, 1.0)
    watched.on_step(2, 1.0)

    first, second = (point["pictures"] for point in page.points)
    assert second is None
    assert [(each["name"], each["share"]) for each in first] == [
        ("<anna>: one.png", 0.25 if masked else 1.0),
        ("<ink>: one.png", 0.75 if masked else 1.0),
    ]
    for each, is_lit in zip(first, ((1, 0), (0, 1)) if masked else ((1, 1), (1, 1))):
        shown = Image.open(BytesIO(b64decode(each["picture"]))).convert("L")
        assert shown.size == (16, 32)
        assert [shown.getpixel((8, y)) > 128 for y in (2, 28)] == [*map(bool, is_lit)]


def test_a_training_that_goes_on_says_so_from_the_first_picture_on(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_watch, "_SECONDS_BETWEEN_EVENTS", 0.0)
    watched = watch(9, versions=1)
    watched.on_checkpoint(True)
    watched.on_encoding()
    watched.on_resume(4)
    watched.on_step(5, 0.5)
    assert [(point["step"], point["loss"], point["goes_on"]) for point in page.points] == [
        (0, None, True),
        (4, None, True),
        (5, 0.5, True),
    ]

    said: list[str] = []
    monkeypatch.setattr(TrainingWatch, "_say", lambda self, text: said.append(text))
    monkeypatch.setattr(training_watch, "listening_page", lambda: None)
    watched.on_encoding()
    watched.on_resume(4)
    assert said == [
        "encoding pictures: 2/1, then on from where it stopped",
        "goes on from step 4/9",
    ]


@pytest.mark.parametrize(("is_kept", "end"), [(True, "kept"), (False, "lost")])
def test_a_training_that_stops_says_at_which_step(page: Page, is_kept: bool, end: str) -> None:
    watched = watch(9)
    # Before the first step there is nothing to go on from.
    watched.on_stop(is_kept)
    assert page.points == []
    for step in range(1, 4):
        watched.on_step(step, 0.5)
    watched.on_stop(is_kept)
    assert [point["end"] for point in page.points] == [None] * (len(page.points) - 1) + [end]
    assert page.points[-1]["step"] == 3
