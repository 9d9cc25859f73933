"""What a page that listens is sent while a picture is sampled, and that nobody else is."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from PIL import Image

from magicportrait.host.page import listening_page, live_layout
from magicportrait.host.page.kept_events import KeptEvents
from magicportrait.host.page.thumbnails import leaves_out, thumbnails_on_page
from magicportrait.host.pictures.palette import PALETTE
from magicportrait.nodes.layout import MagicSemanticLayout
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.tests.host.sampling import Sampling, apply, concepts, parts, watch

Events = list[tuple[str, dict[str, Any], str]]
CLIENT = "a page"


class FakeServer:
    def __init__(self, client_id: str | None, listens: bool) -> None:
        self.client_id = client_id
        self.sockets_metadata: dict[str, dict[str, Any]] = {
            CLIENT: {"feature_flags": {}, **({"magicportrait": True} if listens else {})}
        }
        workflow = {"extra_pnginfo": {"workflow": {"id": "a workflow"}}}
        self.prompt_queue = SimpleNamespace(
            currently_running={3: (0, "a prompt", {}, workflow, [])}
        )
        self.events: Events = []

    def send_sync(self, event: str, data: dict[str, Any], client: str) -> None:
        self.events.append((event, data, client))


@pytest.fixture
def node_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy_api.latest._io import HiddenHolder

    for node in (MagicFaceApply, MagicSemanticLayout):
        monkeypatch.setattr(
            node, "hidden", HiddenHolder("7", None, None, None, "", ""), raising=False
        )


def serve(
    monkeypatch: pytest.MonkeyPatch, client_id: str | None = CLIENT, listens: bool = True
) -> FakeServer:
    server = FakeServer(client_id, listens)
    monkeypatch.setattr(listening_page, "running_server", lambda: server)
    return server


def indices(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(int) - 1


@pytest.mark.usefixtures("node_seven")
def test_a_page_gets_every_step_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(monkeypatch)
    patched, positive, record = apply(parts()[0])

    samples = Sampling(batch=2, steps=5).run(patched, positive)

    (kind, run, client), *layouts = server.events
    assert (kind, client) == (live_layout.RUN_EVENT, CLIENT)
    assert (run["node"], run["steps"], run["phrases"]) == ("7", 5, ["hat", "scarf"])
    assert [reference["phrase"] for reference in run["references"]] == [0, 1]
    assert {data["workflow"] for _, data, _ in server.events} == {"a workflow"}
    assert {kind for kind, *_ in layouts} == {live_layout.LAYOUT_EVENT}
    assert [data["done"] for _, data, _ in layouts] == [False] * (len(layouts) - 1) + [True]
    sent = {
        int(step): pictures for _, data, _ in layouts for step, pictures in data["layouts"].items()
    }
    recorded = record.run_of(samples).steps
    assert sorted(sent) == sorted(recorded) == [0, 1, 2, 3, 4]
    for step, pictures in sent.items():
        np.testing.assert_array_equal(
            np.stack([indices(png) for png in pictures]), recorded[step].concepts
        )


@pytest.mark.usefixtures("node_seven")
@pytest.mark.parametrize(
    ("kind", "changes", "asked"),
    [
        ("KSampler", {}, 12),
        ("KSampler", {"denoise": 0.5}, None),
        ("KSampler", {"scheduler": "normal"}, None),
        ("KSampler", {"steps": ["5", 0]}, None),
        ("KSamplerAdvanced", {}, None),
    ],
)
def test_a_page_is_told_the_steps_that_were_asked_for_where_others_are_made(
    monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict[str, Any], asked: int | None
) -> None:
    server = serve(monkeypatch)
    inputs = {"steps": 12, "scheduler": "ddim_uniform", "denoise": 1.0, **changes}
    nodes = {"3": {"class_type": kind, "inputs": inputs}}
    server.prompt_queue.currently_running = {3: (0, "a prompt", nodes, {}, [])}
    with CurrentNodeContext("a prompt", "3"):
        Sampling(steps=13, size=(8, 8)).run(*apply(parts()[0], chained=concepts(1))[:2])
    _, run, _ = server.events[0]
    assert (run["steps"], run["asked"], run["prompt"]) == (13, asked, "a prompt")


def test_ddim_uniform_makes_thirteen_steps_of_twelve() -> None:
    import comfy.samplers

    sampling = parts()[0].get_model_object("model_sampling")
    made = {
        steps: len(comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", steps)) - 1
        for steps in (12, 25, 50)
    }
    assert made == {12: 13, 25: 25, 50: 50}


def test_what_a_node_shows_is_kept_for_a_page_that_is_loaded_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(monkeypatch)
    kept = KeptEvents()
    monkeypatch.setattr(server, "app", {listening_page._EVENTS: kept}, raising=False)
    concept, *_ = concepts()
    with CurrentNodeContext("a prompt", "5:7"):
        shown = thumbnails_on_page(concept)
    with CurrentNodeContext("a prompt", "9"):
        nothing = live_layout.no_layout_on_page()

    assert list(shown) == ["magic_taken"] and nothing == {"magic_no_layout": [True]}
    place = {"workflow": "a workflow"}
    assert kept.of(CLIENT) == [
        ("executed", {"node": "5:7", "output": shown, **place}),
        ("executed", {"node": "9", "output": nothing, **place}),
    ]


@pytest.mark.parametrize(
    ("mask", "is_dark"),
    [(None, False), (torch.ones(1, 8, 8), False), (torch.eye(8)[None], True)],
    ids=["none", "of ones", "painted"],
)
@pytest.mark.usefixtures("node_seven")
def test_a_page_is_told_whether_anything_is_left_out(
    monkeypatch: pytest.MonkeyPatch, mask: torch.Tensor | None, is_dark: bool
) -> None:
    server = serve(monkeypatch)
    concept = replace(concepts()[0], images=torch.rand(1, 8, 8, 3), mask=mask)
    assert leaves_out(concept.mask) == is_dark
    assert [taken["masked"] for taken in thumbnails_on_page(concept)["magic_taken"]] == [is_dark]

    Sampling(steps=1).run(*apply(parts()[0], chained=(concept,))[:2])

    _, run, _ = server.events[0]
    assert [reference["masked"] for reference in run["references"]] == [is_dark]


def test_a_node_shows_nothing_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, listens=False)
    assert live_layout.no_layout_on_page() is None and thumbnails_on_page(concepts()[0]) is None


@pytest.mark.usefixtures("node_seven")
def test_layouts_are_not_sent_faster_than_they_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(monkeypatch)
    monkeypatch.setattr(live_layout, "_SECONDS_BETWEEN", 1e6)
    patched, positive, _ = apply(parts()[0])
    Sampling(steps=5).run(patched, positive)
    assert [sorted(map(int, data["layouts"])) for _, data, _ in server.events[1:]] == [
        [0],
        [1, 2, 3, 4],
    ]


@pytest.mark.usefixtures("node_seven")
@pytest.mark.parametrize(
    "extra_data", [{}, {"extra_pnginfo": None}, {"extra_pnginfo": {"workflow": {}}}]
)
def test_a_page_need_not_say_which_workflow_it_queues(
    monkeypatch: pytest.MonkeyPatch, extra_data: dict[str, Any]
) -> None:
    server = serve(monkeypatch)
    server.prompt_queue.currently_running = {3: (0, "a prompt", {}, extra_data, [], {})}
    Sampling(steps=2).run(*apply(parts()[0])[:2])
    assert {data["workflow"] for _, data, _ in server.events} == {None}


@pytest.mark.usefixtures("node_seven")
@pytest.mark.parametrize(
    ("client_id", "listens"), [(None, True), (CLIENT, False), ("closed page", True)]
)
def test_nothing_is_made_for_those_who_do_not_listen(
    monkeypatch: pytest.MonkeyPatch, client_id: str | None, listens: bool
) -> None:
    server = serve(monkeypatch, client_id, listens)
    monkeypatch.setattr(
        live_layout, "indexed_png", lambda *_: pytest.fail("a picture was made for nobody")
    )
    monkeypatch.setattr(
        live_layout, "thumbnails", lambda *_: pytest.fail("a thumbnail was made for nobody")
    )
    patched, positive, _ = apply(parts()[0])
    Sampling(steps=2).run(patched, positive)
    assert server.events == []


def test_outside_of_a_graph_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(monkeypatch)
    patched, positive, _ = apply(parts()[0])
    Sampling(steps=2).run(patched, positive)
    assert server.events == []


@pytest.mark.usefixtures("node_seven")
def test_listening_does_not_change_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    patched, positive, _ = apply(parts()[0])
    before = Sampling(batch=2, steps=2).run(patched, positive)
    serve(monkeypatch)
    assert torch.equal(Sampling(batch=2, steps=2).run(patched, positive), before)


@pytest.mark.usefixtures("node_seven")
def test_a_cancelled_run_ends_for_the_page_too(monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(monkeypatch)
    patched, positive, _ = watch(parts()[0])

    def cancel(step: int, *_: Any) -> None:
        if step == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Sampling(steps=4, callback=cancel).run(patched, positive)

    assert server.events[-1][1]["done"]
    assert {int(step) for _, data, _ in server.events[1:] for step in data["layouts"]} == {0, 1}


def test_layout_pictures_have_the_palette_and_leave_the_rest_open() -> None:
    concepts = np.array([[-1, 0], [1, 9]], np.int16)
    picture = Image.open(io.BytesIO(base64.b64decode(live_layout.indexed_png(concepts)))).convert(
        "RGBA"
    )
    colours = [PALETTE[i][1] for i in (0, 1, 9 - len(PALETTE))]
    assert [picture.getpixel(at) for at in ((1, 0), (0, 1), (1, 1))] == [
        (*colour, 255) for colour in colours
    ]
    assert picture.getpixel((0, 0))[3] == 0 and picture.size == (2, 2)


def test_layout_pictures_have_the_patterns_of_phrases_that_share_a_colour() -> None:
    count = len(PALETTE)
    concepts = np.array([[-1, 0], [count, 300]], np.int16)
    picture = Image.open(io.BytesIO(base64.b64decode(live_layout.indexed_png(concepts)))).convert(
        "RGBA"
    )
    side = picture.width // 2

    def colours(column: int, row: int) -> set[tuple[int, ...]]:
        corner = (column * side, row * side)
        tile = picture.crop((*corner, corner[0] + side, corner[1] + side))
        return {colour for _, colour in tile.getcolors()}

    white = (255, 255, 255, 255)
    assert colours(1, 0) == {(*PALETTE[0][1], 255)}
    assert colours(0, 1) == {(*PALETTE[0][1], 255), white}
    assert colours(1, 1) == {(*PALETTE[300 % count][1], 255)}
    assert {alpha for *_, alpha in colours(0, 0)} == {0}
