"""Writes the blueprints that are cut out of example workflows: `python -m bench.make_blueprints`

A blueprint is a subgraph that ComfyUI lists in its node library. This cuts some nodes out of a
workflow in workflows/, with the links between them; what comes from outside and what leads outside
becomes a slot, in the order given here.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .command_line import bench_parser

ROOT = Path(__file__).resolve().parent.parent
_INPUTS, _OUTPUTS = -10, -20
"""What the frontend calls the two sides of a subgraph."""

Slot = tuple[int, str]
"""A node's id and the name of its input, output or widget."""


@dataclass(frozen=True)
class Blueprint:
    """One subgraph.

    name: its title and its file's name; description: in the node library; aliases: words that it is
    looked for by; workflow: in workflows/; nodes: their places in the subgraph, by id; inputs:
    label -> all that it feeds, links first and then widgets, in the order on the node; outputs:
    label -> whose; notes: by label, what stands beside it on the node.
    """

    name: str
    description: str
    aliases: tuple[str, ...]
    workflow: str
    nodes: dict[int, tuple[int, int]]
    inputs: dict[str, tuple[Slot, ...]]
    outputs: dict[str, Slot]
    notes: Mapping[str, str] = field(default_factory=dict)


def _magicface() -> Blueprint:
    concept, apply, negative, latent, sampler, decode = 7, 9, 10, 11, 12, 13
    return Blueprint(
        "MagicFace",
        "One concept of a reference image in a new portrait: MagicFace from the reference to the"
        " picture. Unpack it to chain more concepts. Set up for SD1.5, 512 x 512 in 50 steps. With"
        " the Toy Checkpoint: 128 x 128, 25 steps, cfg 4, and a prompt such as 'a smiling woman"
        " with red hair wearing a hat, pink background, cartoon style'.",
        ("face", "identity", "personalize", "reference", "character", "outfit", "try on"),
        "MagicFace-SD1.5-mask-by-word-SAM",
        {
            concept: (0, 0),
            apply: (340, 0),
            negative: (780, 0),
            latent: (780, 190),
            sampler: (780, 370),
            decode: (1140, 0),
        },
        {
            "model": ((apply, "model"),),
            "clip": ((apply, "clip"), (negative, "clip")),
            "vae": ((apply, "vae"), (decode, "vae")),
            "reference": ((concept, "image"),),
            "mask": ((concept, "mask"),),
            "prompt": ((apply, "prompt"),),
            "negative prompt": ((negative, "text"),),
            "phrase": ((concept, "phrase"),),
            "strength": ((concept, "strength"),),
            "width": ((latent, "width"),),
            "height": ((latent, "height"),),
            "pictures": ((latent, "batch_size"),),
            "seed": ((sampler, "seed"),),
            "steps": ((sampler, "steps"),),
            "cfg": ((sampler, "cfg"),),
        },
        {"IMAGE": (decode, "IMAGE"), "layout": (apply, "layout"), "LATENT": (sampler, "LATENT")},
        {
            "width": "SD1.5 512, toy 128",
            "height": "SD1.5 512, toy 128",
            "steps": "SD1.5 50, toy 25",
            "cfg": "SD1.5 7.5, toy 4",
        },
    )


def _magicstyle() -> Blueprint:
    portrait, style, reference, apply, sampler, decode = 7, 8, 9, 10, 11, 12
    return Blueprint(
        "MagicStyle",
        "A portrait in the style of another picture: both are inverted, fused and sampled.",
        ("style transfer", "stylize", "inversion"),
        "MagicStyle-SD1.5-style-transfer",
        {
            portrait: (0, 0),
            style: (0, 480),
            reference: (400, 480),
            apply: (740, 240),
            sampler: (1120, 0),
            decode: (1460, 0),
        },
        {
            "model": ((portrait, "model"), (style, "model"), (apply, "model")),
            "portrait": ((portrait, "image"),),
            "style": ((style, "image"),),
            "vae": ((portrait, "vae"), (style, "vae"), (decode, "vae")),
            "clip": ((portrait, "clip"), (style, "clip")),
            "preset": ((apply, "preset"),),
            "steps": ((portrait, "steps"), (style, "steps")),
        },
        {"IMAGE": (decode, "IMAGE")},
    )


def _magicapture() -> Blueprint:
    subject, style, train, apply = 3, 5, 7, 11
    return Blueprint(
        "MagiCapture learn person and style",
        "A person and a style, learned from a handful of pictures of each: a model and a text"
        " encoder that know both new words. Connect pictures, or choose folders of ComfyUI's input"
        " folder.",
        ("train", "dreambooth", "train lora", "lora training", "textual inversion", "character"),
        "MagiCapture-SD1.5-1-train",
        {subject: (0, 0), style: (0, 400), train: (400, 0), apply: (900, 0)},
        {
            "model": ((train, "model"), (apply, "model")),
            "clip": ((train, "clip"), (apply, "clip")),
            "vae": ((train, "vae"),),
            "identity": ((train, "identity"),),
            "subject images": ((subject, "images"),),
            "subject faces": ((subject, "faces"),),
            "style images": ((style, "images"),),
            "style faces": ((style, "faces"),),
            "subject folder": ((subject, "folder"),),
            "subject word": ((subject, "placeholder"),),
            "subject class": ((subject, "class_word"),),
            "style folder": ((style, "folder"),),
            "style word": ((style, "placeholder"),),
            "style class": ((style, "class_word"),),
            "steps for the words": ((train, "inversion_steps"),),
            "steps for the LoRA": ((train, "lora_steps"),),
            "seed": ((train, "seed"),),
            "preview every": ((train, "preview_every"),),
            "model strength": ((apply, "strength_model"),),
            "clip strength": ((apply, "strength_clip"),),
        },
        {
            "MODEL": (apply, "MODEL"),
            "CLIP": (apply, "CLIP"),
            "lora": (train, "lora"),
            "embeddings": (train, "embeddings"),
        },
    )


BLUEPRINTS = (_magicface(), _magicstyle(), _magicapture())


def build(blueprint: Blueprint, workflow: dict[str, Any]) -> dict[str, Any]:
    """The content of the blueprint's file. KeyError names a slot that a node of the workflow does
    not have."""
    nodes = {
        node["id"]: copy.deepcopy(node)
        for node in workflow["nodes"]
        if node["id"] in blueprint.nodes
    }
    links = [_Link(*link) for link in workflow["links"] if link[1] in nodes and link[3] in nodes]
    for order, (node_id, node) in enumerate(sorted(nodes.items())):
        node |= {"pos": [*blueprint.nodes[node_id]], "order": order}
        for slot in node["inputs"]:
            slot |= {"localized_name": slot["name"], "link": None}
        for slot in node["outputs"]:
            slot |= {"localized_name": slot["name"], "links": []}
    number = max(link[0] for link in workflow["links"])
    inputs, outputs = [], []
    for i, (label, targets) in enumerate(blueprint.inputs.items()):
        slots = [(node_id, _index(nodes[node_id]["inputs"], name)) for node_id, name in targets]
        first = nodes[slots[0][0]]["inputs"][slots[0][1]]
        numbers = range(number + 1, number + 1 + len(slots))
        links += [
            _Link(n, _INPUTS, i, node_id, slot, first["type"])
            for n, (node_id, slot) in zip(numbers, slots, strict=True)
        ]
        number += len(slots)
        inputs.append(_slot(blueprint, "input", i, label, first, list(numbers)))
    for i, (label, (node_id, name)) in enumerate(blueprint.outputs.items()):
        slot = _index(nodes[node_id]["outputs"], name)
        number += 1
        first = nodes[node_id]["outputs"][slot]
        links.append(_Link(number, node_id, slot, _OUTPUTS, i, first["type"]))
        outputs.append(_slot(blueprint, "output", i, label, first, [number]))
    for link in links:
        if link.target_id in nodes:
            nodes[link.target_id]["inputs"][link.target_slot]["link"] = link.id
        if link.origin_id in nodes:
            nodes[link.origin_id]["outputs"][link.origin_slot]["links"].append(link.id)
    own = max(nodes) + 1
    subgraph = {
        "id": _uuid(blueprint, "subgraph"),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": own, "lastLinkId": number, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": _INPUTS, "bounding": [-188, 0, 128, 40 + 20 * len(inputs)]},
        "outputNode": {"id": _OUTPUTS, "bounding": [1300, 0, 128, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": [nodes[node_id] for node_id in sorted(nodes)],
        "groups": [],
        "links": [vars(link) for link in links],
        "extra": {},
        "description": blueprint.description,
        "category": "MagicPortrait",
    }
    node = {
        "id": own,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [340, 560],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            _outside(slot, nodes, targets[0])
            for slot, targets in zip(inputs, blueprint.inputs.values(), strict=True)
        ],
        "outputs": [{**_names(slot), "links": []} for slot in outputs],
        "title": blueprint.name,
        "properties": {},
    }
    return {
        "revision": 0,
        "last_node_id": own,
        "last_link_id": number,
        "nodes": [node],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {
            "BlueprintDescription": blueprint.description,
            "BlueprintSearchAliases": [*blueprint.aliases],
        },
        "version": 0.4,
        "id": _uuid(blueprint, "workflow"),
    }


@dataclass(frozen=True)
class _Link:
    """As a subgraph's file names its parts: from an output (slot) of one node to an input of
    another, _INPUTS and _OUTPUTS among them; type: the socket's."""

    id: int
    origin_id: int
    origin_slot: int
    target_id: int
    target_slot: int
    type: str


def _index(slots: list[dict[str, Any]], name: str) -> int:
    names = [slot["name"] for slot in slots]
    if name not in names:
        raise KeyError(f"no slot '{name}' among {', '.join(names)}")
    return names.index(name)


def _slot(
    blueprint: Blueprint, side: str, index: int, label: str, inner: dict[str, Any], links: list[int]
) -> dict[str, Any]:
    # Names are unique, labels are what is read: several nodes have an input 'folder'.
    name = label.replace(" ", "_")
    slot = {
        "id": _uuid(blueprint, f"{side} {label}"),
        "name": name,
        "type": inner["type"],
        "linkIds": links,
        "localized_name": name,
    }
    slot |= {"shape": inner["shape"]} if "shape" in inner else {}
    note = blueprint.notes.get(label)
    text = f"{label} ({note})" if note else label
    slot |= {"label": text} if text != name else {}
    return {**slot, "pos": [51 if side == "input" else 24, 24 + 20 * index]}


def _outside(
    slot: dict[str, Any], nodes: dict[int, dict[str, Any]], target: Slot
) -> dict[str, Any]:
    node_id, name = target
    is_widget = "widget" in nodes[node_id]["inputs"][_index(nodes[node_id]["inputs"], name)]
    return {
        **_names(slot),
        **({"widget": {"name": slot["name"]}} if is_widget else {}),
        "link": None,
    }


def _names(slot: dict[str, Any]) -> dict[str, Any]:
    return {
        name: slot[name]
        for name in ("localized_name", "name", "shape", "type", "label")
        if name in slot
    }


def _uuid(blueprint: Blueprint, what: str) -> str:
    """The same in every run, so that a blueprint drawn anew stays the same one."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"magicportrait/{blueprint.name}/{what}"))


def main() -> None:
    bench_parser(__doc__).parse_args()
    for blueprint in BLUEPRINTS:
        workflow = json.loads(
            (ROOT / "workflows" / f"{blueprint.workflow}.json").read_text(encoding="utf-8")
        )
        path = ROOT / "subgraphs" / f"{blueprint.name}.json"
        path.write_text(
            json.dumps(build(blueprint, workflow), indent=2, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
