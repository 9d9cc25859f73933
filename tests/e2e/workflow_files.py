"""The pack's workflow files, as prompts for the server."""

from __future__ import annotations

import json
from typing import Any

from devkit.pack import ROOT
from devkit.workflow_format import to_api_prompt

Prompt = dict[str, Any]

FOLDER = ROOT / "workflows"
ALL = sorted(path.stem for path in FOLDER.glob("*.json"))
OF_USERS = ("SD1.5", "SDXL", "Flux", "Qwen-Image", "Z-Image")
"""In the names of workflows that need files which cannot come with the pack."""
NEED_FILES = [name for name in ALL if any(model in name for model in OF_USERS)]
QUICK_TRAINING = {"inversion_steps": 2, "lora_steps": 3, "preview_every": 5, "versions": 1}
TOY = [name for name in ALL if name not in NEED_FILES]
STEPPING = ("KSampler", "MagicStyleInvert", "MagicStyleSampler", "MagicDetailPass")
"""Nodes that decide how many steps a workflow takes."""


def read(name: str) -> dict[str, Any]:
    workflow: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return workflow


def prompt_of(
    name: str, object_info: dict[str, Any], *, outputs: set[str] | None = None, **sampler: Any
) -> Prompt:
    """`sampler` replaces values of the nodes that sample or invert, as far as they have such an
    input, and trainings are cut short; of the nodes that show or save pictures only those of the
    types `outputs` stay."""
    prompt = to_api_prompt(read(name), object_info)
    for node in [node for kind in STEPPING for node in ids(prompt, kind)]:
        inputs = prompt[node]["inputs"]
        inputs.update({name: value for name, value in sampler.items() if name in inputs})
    for node in ids(prompt, "MagiCaptureTrain"):
        prompt[node]["inputs"].update(QUICK_TRAINING)
    dropped = {
        node
        for node, data in prompt.items()
        if outputs and object_info[data["class_type"]]["output_node"]
    }
    dropped -= {node for kind in outputs or () for node in ids(prompt, kind)}
    return {node: data for node, data in prompt.items() if node not in dropped}


def ids(prompt: Prompt, kind: str) -> list[str]:
    return [node for node, data in prompt.items() if data["class_type"] == kind]


def the(prompt: Prompt, kind: str) -> dict[str, Any]:
    """The prompt's only node of a type."""
    [node] = ids(prompt, kind)
    data: dict[str, Any] = prompt[node]
    return data
