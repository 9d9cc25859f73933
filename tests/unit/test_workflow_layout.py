"""Templates as a newcomer sees them first: whole, readable, and under names for people."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from bench.arrange_workflows import CLASSIC, FOLDER, GROWTH, LAYOUTS, TITLE, arrange
from devkit.pack import ROOT

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
SCREEN = (1920, 1080)
# ComfyUI fits a workflow into three quarters of its window, with this much around it.
SHARE, MARGIN = 0.75, 10
# Below this zoom the classic mode draws no text: letters of 14 pixels would be smaller than 8.
LEGIBLE = 8 / 14
Box = tuple[float, float, float, float]


def read(name: str) -> dict[str, Any]:
    workflow: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return workflow


def boxes_of_nodes(workflow: dict[str, Any], *, grown: bool = False) -> dict[str, Box]:
    """Left, top, right, bottom with the title, in the classic mode. grown: when they have run."""
    boxes = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        height = max(height, CLASSIC.get(node["type"], 0))
        more = GROWTH.get(node["type"], 0) if grown else 0
        boxes[f"{node['id']} {node['type']}"] = (x, y - TITLE, x + width, y + height + more)
    return boxes


def boxes_of_groups(workflow: dict[str, Any]) -> list[Box]:
    return [
        (x, y, x + width, y + height)
        for x, y, width, height in (group["bounding"] for group in workflow["groups"])
    ]


@pytest.mark.parametrize("name", NAMES)
def test_places_are_those_that_the_script_gives(name: str) -> None:
    workflow = read(name)
    arranged = copy.deepcopy(workflow)
    arrange(arranged, LAYOUTS[name])
    assert workflow == arranged, "run python -m bench.arrange_workflows"


def fit(boxes: list[Box]) -> tuple[float, float]:
    """The zoom at which ComfyUI shows what is in these boxes, and the height that it puts into the
    middle of the screen."""
    left, top, right, bottom = (
        function(side) for function, side in zip((min, min, max, max), zip(*boxes))
    )
    size = (right - left + 2 * MARGIN, bottom - top + 2 * MARGIN)
    zoom = min(SHARE * whole / part for whole, part in zip(SCREEN, size))
    return zoom, (top + bottom) / 2


@pytest.mark.parametrize("name", NAMES)
def test_a_template_fits_on_a_screen_with_its_text(name: str) -> None:
    workflow = read(name)
    zoom, _ = fit([*boxes_of_nodes(workflow).values(), *boxes_of_groups(workflow)])
    assert zoom >= 0.58 > LEGIBLE


@pytest.mark.parametrize("name", NAMES)
def test_what_a_node_shows_when_it_has_run_is_on_the_screen_too(name: str) -> None:
    """The page fits the nodes as they are when the template opens, without the groups."""
    workflow = read(name)
    zoom, middle = fit([*boxes_of_nodes(workflow).values()])
    for node, (*_, bottom) in boxes_of_nodes(workflow, grown=True).items():
        assert SCREEN[1] / 2 + zoom * (bottom - middle) <= SCREEN[1] - 20, node


@pytest.mark.parametrize("name", NAMES)
def test_no_node_lies_over_another_or_outside_of_its_group_also_when_it_has_run(name: str) -> None:
    workflow = read(name)
    boxes, groups = boxes_of_nodes(workflow, grown=True), boxes_of_groups(workflow)
    for first, (left, top, right, bottom) in boxes.items():
        for second, other in boxes.items():
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert first == second or apart, f"{first} and {second}"
        if not first.endswith("MarkdownNote"):
            assert any(
                group[0] <= left and group[1] <= top and right <= group[2] and bottom <= group[3]
                for group in groups
            ), first


@pytest.mark.parametrize("name", [name for name in NAMES if "-1-" in name and "SD1.5" not in name])
def test_the_first_templates_lead_to_the_one_for_own_pictures(name: str) -> None:
    [note] = [node for node in read(name)["nodes"] if node["type"] == "MarkdownNote"]
    [text] = note["widgets_values"]
    [other] = re.findall(r"For your own pictures: (\S+)\.$", text)
    assert other in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_name_can_stand_in_a_link(name: str) -> None:
    """The page opens `?template=` with no other letters, and names are what its gallery shows and
    searches."""
    assert re.fullmatch(r"[a-zA-Z0-9_.-]+", name)
    assert name.split("-")[0] in ("MagicFace", "MagicStyle", "MagiCapture", "Portrait", "Semantic")


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_says_nothing_of_a_concept_that_its_picture_shows(name: str) -> None:
    """'a green hat' with a red one for a reference makes both fight."""
    nodes = read(name)["nodes"]
    phrases = [node["widgets_values"][0] for node in nodes if node["type"] == "MagicFaceConcept"]
    for node in nodes:
        if node["type"] == "MagicFaceApply":
            assert all(f" a {phrase}" in node["widgets_values"][0] for phrase in phrases)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("MagicFace-SD")])
def test_templates_for_real_models_inject_where_the_paper_does(name: str) -> None:
    """RBA from step 21 of 50 on; what readers are told is the same."""
    [values] = [
        node["widgets_values"] for node in read(name)["nodes"] if node["type"] == "MagicFaceApply"
    ]
    assert values[1] == 0.42
    for file in ("docs/magicface.md", "nodes/magicface_apply.py", "js/docs/MagicFaceApply.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.findall(r"[Tt]he paper(?:'s|:) 0?(\.4\d*)", text) == [".42"], file


def test_a_file_that_is_missing_can_be_fetched_under_the_name_that_its_loader_has() -> None:
    files = 0
    for name in NAMES:
        for node in read(name)["nodes"]:
            for model in node.get("properties", {}).get("models", ()):
                assert model["name"] in node["widgets_values"], f"{name}: {node['type']}"
                assert model["url"].rpartition("/")[2] == model["name"], f"{name}: {node['type']}"
                files += 1
    assert files


def values_of(name: str, kind: str) -> list[Any]:
    [values] = [node["widgets_values"] for node in read(name)["nodes"] if node["type"] == kind]
    return list(values)


def test_a_training_saves_its_lora_under_the_name_that_the_next_template_loads() -> None:
    """Save LoRA writes steps into its names that nobody keeps in step with the training's."""
    trainings = [name for name in NAMES if name.endswith("-train")]
    assert trainings
    for name in trainings:
        assert "SaveLoRA" not in [node["type"] for node in read(name)["nodes"]]
        assert values_of(name, "MagiCaptureTrain")[-4].startswith("magicapture"), name
    prefix = values_of("MagiCapture-SD1.5-1-train", "MagiCaptureTrain")[-4]
    assert values_of("MagiCapture-SD1.5-2-use", "LoraLoader")[0] == f"{prefix}_00001_.safetensors"
