"""Blueprints fit together, and are what their generator writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.make_blueprints import BLUEPRINTS, ROOT, build

FILES = sorted((ROOT / "subgraphs").glob("*.json"))
SOCKETS = ("MODEL", "CLIP", "VAE", "IMAGE", "MASK")


def read(path: Any) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda blueprint: blueprint.name)
def test_the_file_is_what_the_workflow_gives(blueprint):
    workflow = read(ROOT / "workflows" / f"{blueprint.workflow}.json")
    assert read(ROOT / "subgraphs" / f"{blueprint.name}.json") == build(blueprint, workflow), (
        "run python -m bench.make_blueprints"
    )


def test_magicface_says_what_it_is_set_up_for_and_what_the_toy_needs():
    content = read(ROOT / "subgraphs" / "MagicFace.json")
    [subgraph], [node] = content["definitions"]["subgraphs"], content["nodes"]
    for text in (subgraph["description"], content["extra"]["BlueprintDescription"]):
        assert "SD1.5, 512 x 512 in 50 steps" in text and "Toy Checkpoint: 128 x 128" in text
    values = {inner["type"]: inner.get("widgets_values") for inner in subgraph["nodes"]}
    size, sampling = values["EmptyLatentImage"], values["KSampler"]
    defaults = {"width": size[0], "height": size[1], "steps": sampling[2], "cfg": sampling[3]}
    for slots in (subgraph["inputs"], node["inputs"]):
        labels = {slot["name"]: slot.get("label", "") for slot in slots}
        for name, value in defaults.items():
            assert labels[name].startswith(f"{name} (SD1.5 {value:g}, toy ")


def test_magicface_asks_for_the_prompt_first_and_then_for_what_it_is_not():
    [subgraph] = read(ROOT / "subgraphs" / "MagicFace.json")["definitions"]["subgraphs"]
    fields = [slot["name"] for slot in subgraph["inputs"] if slot["type"] not in SOCKETS]
    assert fields[:3] == ["prompt", "negative_prompt", "phrase"]


def test_a_slot_that_is_not_there_is_named():
    workflow = read(ROOT / "workflows" / f"{BLUEPRINTS[0].workflow}.json")
    workflow["nodes"] = [{**node, "inputs": [], "outputs": []} for node in workflow["nodes"]]
    with pytest.raises(KeyError, match="no slot 'model'"):
        build(BLUEPRINTS[0], {**workflow, "links": [[1, 0, 0, 0, 0, "MODEL"]]})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_link_has_two_ends_that_know_it(path):
    content = read(path)
    [subgraph], [shown] = content["definitions"]["subgraphs"], content["nodes"]
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    assert shown["type"] == subgraph["id"] and subgraph["name"] == path.stem
    assert [slot["name"] for slot in shown["inputs"]] == [
        slot["name"] for slot in subgraph["inputs"]
    ]
    assert [slot["name"] for slot in shown["outputs"]] == [
        slot["name"] for slot in subgraph["outputs"]
    ]
    for link in subgraph["links"]:
        outside = {-10: subgraph["inputs"], -20: subgraph["outputs"]}
        if link["origin_id"] in outside:
            assert link["id"] in subgraph["inputs"][link["origin_slot"]]["linkIds"]
        else:
            assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] in outside:
            assert link["id"] in subgraph["outputs"][link["target_slot"]]["linkIds"]
        else:
            assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
    known = {link["id"] for link in subgraph["links"]}
    used = [
        slot["link"]
        for node in nodes.values()
        for slot in node["inputs"]
        if slot["link"] is not None
    ]
    assert set(used) <= known and len(used) == len(set(used))
