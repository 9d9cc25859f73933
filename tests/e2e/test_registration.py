"""What the host knows of the pack. Saved workflows hold node ids, input names and outputs'
positions: these are forever."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from comfy_server import ComfyServer
from devkit.pack import PACK_NAME

SNAPSHOT = Path(__file__).with_name("object_info_snapshot.json")
UPDATE = "MAGICPORTRAIT_UPDATE_SNAPSHOT"
RULE = f"""
The nodes differ from {SNAPSHOT.name}. Saved workflows of users hold node ids, input names and the
order of widgets and outputs, so: never rename or remove an id, an input or an output, never change
a type, append new inputs and outputs at the end of their section. If this change keeps every saved
workflow working, record it: run the test once with {UPDATE}=1 and commit the file.
"""
IDS = {
    "MagicAttentionHeatmap",
    "MagicAttentionMap",
    "MagicBestOfBatch",
    "MagicCompareGrid",
    "MagicConceptLoad",
    "MagicConceptLora",
    "MagicConceptMask",
    "MagicConceptOptions",
    "MagicConceptSave",
    "MagicDetailPass",
    "MagicCorrespondence",
    "MagicCorrespondenceMap",
    "MagicEditReference",
    "MagicEditRegions",
    "MagicFaceApply",
    "MagicFaceConcept",
    "MagicFaceConceptFolder",
    "MagicInversionLoad",
    "MagicInversionSave",
    "MagicLayoutMasks",
    "MagicPortraitCrop",
    "MagicPortraitPaste",
    "MagicMaskRefine",
    "MagicPortraitMetrics",
    "MagicSemanticLayout",
    "MagicStyleApply",
    "MagicStyleInvert",
    "MagicStyleReference",
    "MagicStyleSampler",
    "MagicToyCheckpoint",
    "MagicToyPortrait",
    "MagiCaptureApply",
    "MagiCaptureStyle",
    "MagiCaptureSubject",
    "MagiCaptureTrain",
    "MagicEmbeddingLoad",
    "MagicEmbeddingSave",
    "MagicIdentityLoader",
    "MagicPortraitRestore",
    "MagicToyCapture",
}


@pytest.fixture(scope="module")
def nodes(object_info: dict[str, Any]) -> dict[str, Any]:
    """The pack's part of /object_info."""
    return {
        node: info
        for node, info in object_info.items()
        if info["python_module"] == f"custom_nodes.{PACK_NAME}"
    }


def test_every_node_is_there(nodes: dict[str, Any]) -> None:
    assert nodes.keys() >= IDS


def test_every_input_and_output_explains_itself(nodes: dict[str, Any]) -> None:
    silent = [
        f"{node}.{name}"
        for node, info in nodes.items()
        for section in ("required", "optional")
        for name, (_, *options) in info["input"].get(section, {}).items()
        if not (options and options[0].get("tooltip"))
    ]
    for node, info in nodes.items():
        silent += [
            f"{node} -> {name}"
            for name, tooltip in zip(info["output_name"], info["output_tooltips"])
            if not tooltip
        ]
    assert silent == []


def test_every_node_can_be_found(nodes: dict[str, Any]) -> None:
    for node, info in nodes.items():
        assert info["category"].startswith("MagicPortrait"), node
        assert info["display_name"] and info["description"], node


def test_nothing_changed_for_saved_workflows(nodes: dict[str, Any]) -> None:
    found = {node: frozen_part(info) for node, info in sorted(nodes.items())}
    if os.environ.get(UPDATE) == "1":
        SNAPSHOT.write_text(as_text(found), encoding="utf-8")
    saved = SNAPSHOT.read_text(encoding="utf-8")
    changes = difflib.unified_diff(
        saved.splitlines(), as_text(found).splitlines(), "saved", "now", lineterm=""
    )
    assert as_text(found) == saved, RULE + "\n".join(changes)


def test_the_log_of_the_start_is_clean(server: ComfyServer) -> None:
    start, ready, _ = server.log.partition("To see the GUI go to")
    assert ready
    ours = [
        line
        for line in start.splitlines()
        if re.search(r"MagicPortrait|Magi(c|Capture)[A-Z]", line)
    ]
    assert any("seconds" in line and line.endswith(PACK_NAME) for line in ours), (
        "the host lists the pack among its import times"
    )
    assert [
        line
        for line in ours
        if re.search(r"warning|error|traceback|failed|cannot|^\s+File ", line, re.IGNORECASE)
    ] == []


def frozen_part(info: dict[str, Any]) -> dict[str, Any]:
    """All that a saved workflow depends on. Lists, because order counts."""
    inputs = []
    for section in ("required", "optional"):
        for name in info["input_order"].get(section, []):
            kind, *options = info["input"][section][name]
            # The choices of a combo are not recorded: some come from the user's folders.
            entry = {
                "name": name,
                "type": "COMBO" if isinstance(kind, list) else kind,
                "section": section,
            }
            if options and "default" in options[0]:
                entry["default"] = options[0]["default"]
            inputs.append(entry)
    return {
        "inputs": inputs,
        "outputs": [
            {"name": name, "type": kind} for name, kind in zip(info["output_name"], info["output"])
        ],
    }


def as_text(nodes: dict[str, Any]) -> str:
    """One line for each input and output."""
    text = json.dumps(nodes, indent=1)
    return (
        re.sub(
            r"\{\s+(\"name\"[^{}]+?)\s+\}",
            lambda entry: "{" + re.sub(r"\s*\n\s*", " ", entry[1]) + "}",
            text,
        )
        + "\n"
    )
