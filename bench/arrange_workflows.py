"""Gives the nodes of the workflows in workflows/ their places: `python -m bench.arrange_workflows`

A workflow is a row of groups, a group a row of columns, a column a stack of nodes. The note stands
above, or in a column where a node is as high as the screen. Sizes are those that the host's two
ways of drawing need at least, and room is left below nodes that grow when they run. So every
template fits on a screen at a zoom at which the classic mode still draws text
(tests/unit/test_workflow_layout.py).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .command_line import bench_parser

FOLDER = Path(__file__).resolve().parent.parent / "workflows"

GAP, COLUMN_GAP, GROUP_GAP = 18, 24, 24
TITLE, PADDING, GROUP_TITLE = 30, 16, 40
NOTE_WIDTH, LETTERS_A_PIXEL, LINE, PARAGRAPH_GAP = 1300, 0.15, 18, 5
COLOURS = {"sampling": "#8a8", "result": "#b58b2a"}
OTHER_COLOURS = ("#3f789e", "#88a", "#8aa")

HEIGHTS = {
    "BasicScheduler": 118,
    "CLIPTextEncode": 130,
    "CLIPLoader": 154,
    "CheckpointLoaderSimple": 130,
    "ConditioningZeroOut": 54,
    "DualCLIPLoader": 214,
    "EmptyLatentImage": 118,
    "EmptySD3LatentImage": 118,
    "ImageScale": 146,
    "ImageStitch": 150,
    "InvertMask": 34,
    "KSampler": 262,
    "KSamplerAdvanced": 334,
    "LoadImage": 354,
    "LoraLoader": 166,
    "LossGraphNode": 326,
    "MagiCaptureApply": 176,
    "MagiCaptureStyle": 210,
    "MagiCaptureSubject": 234,
    "MagiCaptureTrain": 440,
    "MagicAttentionHeatmap": 126,
    "MagicAttentionMap": 240,
    "MagicCompareGrid": 452,
    "MagicConceptLora": 316,
    "MagicConceptMask": 412,
    "MagicCorrespondence": 152,
    "MagicCorrespondenceMap": 146,
    "MagicDetailPass": 650,
    "MagicEmbeddingLoad": 150,
    "MagicEmbeddingSave": 94,
    "MagicEditReference": 180,
    "MagicEditRegions": 380,
    "MagicFaceApply": 300,
    "MagicFaceConcept": 316,
    "MagicIdentityLoader": 86,
    "MagicLayoutConditioning": 340,
    "MagicLayoutMasks": 146,
    "MagicMaskRefine": 222,
    "MagicPortraitCrop": 178,
    "MagicPortraitMetrics": 300,
    "MagicPortraitPaste": 264,
    "MagicPortraitRestore": 236,
    "MagicSemanticLayout": 260,
    "MagicStyleApply": 160,
    "MagicStyleEdit": 240,
    "MagicStyleInvert": 280,
    "MagicStyleNewPicture": 250,
    "MagicStyleReference": 150,
    "MagicStyleSampler": 236,
    "MagicToyCapture": 270,
    "MagicToyCheckpoint": 126,
    "MagicToyPortrait": 210,
    "MaskComposite": 138,
    "MaskPreview": 260,
    "ModelSamplingAuraFlow": 86,
    "PreviewAny": 170,
    "PreviewImage": 266,
    "PrimitiveStringMultiline": 130,
    "ReferenceLatent": 54,
    "SAM3_Detect": 218,
    "SamplerCustom": 232,
    "SaveImage": 340,
    "SolidMask": 118,
    "TextEncodeQwenImageEditPlus": 200,
    "UNETLoader": 130,
    "UpscaleModelLoader": 90,
    "VAEDecode": 54,
    "VAEEncode": 54,
    "VAELoader": 106,
}
"""What a node of a type is as high as in the file, without its title: in pixels, at the width that
it has here. Loaders have room for what the page says when their file is missing."""

CLASSIC = {
    "MagicDetailPass": 694,
    "MagicFaceApply": 514,
    "MagicPortraitMetrics": 360,
    "MagicStyleApply": 416,
    "MagicStyleInvert": 368,
    "MagicStyleNewPicture": 336,
    "MagiCaptureTrain": 832,
}
"""What the classic mode makes of it, which shows the inputs that Nodes 2.0 hides."""

GROWTH = {
    "MagiCaptureApply": 60,
    "MagiCaptureStyle": 286,
    "MagiCaptureSubject": 286,
    "MagiCaptureTrain": 428,
    "MagicCorrespondenceMap": 470,
    "MagicEditRegions": 356,
    "MagicFaceApply": 330,
    "MagicFaceConcept": 268,
    "MagicSemanticLayout": 244,
}
"""How much a node grows by what the page shows on it."""


@dataclass(frozen=True)
class Column:
    """nodes: ids from top to bottom; width: of all of them, in pixels; heights: of single nodes, in
    place of what their type needs; growth: of single nodes, likewise."""

    width: int
    nodes: tuple[int, ...]
    heights: dict[int, int] = field(default_factory=dict)
    growth: dict[int, int] = field(default_factory=dict)


Groups = dict[str, tuple[Column, ...]]

_MEASURED = 300
"""How much MagicStyle Invert grows when it measures and shows its reconstruction."""
_OWN_REFERENCES = (Column(270, (3,)), Column(270, (5,)), Column(270, (7,)))
_WITH_MODELS = (Column(270, (3, 8)), Column(270, (5, 17)), Column(270, (7, 18)))
_TOY_REFERENCES = (Column(256, (2, 3)), Column(256, (4, 5)), Column(256, (6, 7)))

_WITHOUT_PROMPT = 300
"""Of Edit Regions whose prompt comes from another node."""
_ALL_SETTINGS = 522
"""Of a MagicStyle Apply that shows its advanced inputs in Nodes 2.0."""

_STYLE_AND_SHIFT: Groups = {
    "pictures": (Column(260, (2, 3)), Column(260, (4, 5))),
    "inversion": (
        Column(290, (6, 17, 7), growth={7: _MEASURED}),
        Column(290, (15, 16, 8), growth={8: _MEASURED}),
    ),
    "sampling": (Column(280, (9, 10)), Column(270, (11, 12))),
    "result": (Column(480, (13, 14), {13: 540}),),
}
"""Of MagicStyle on a flow model that is told its shift."""

LAYOUTS: dict[str, Groups] = {
    "MagicFace-1-one-concept": {
        "reference": (Column(300, (2, 3)),),
        "sampling": (Column(430, (6,)), Column(320, (5, 7, 8, 9, 10))),
        "result": (Column(560, (11,), {11: 540}),),
    },
    "MagicFace-2-three-concepts": {
        "references": _TOY_REFERENCES,
        "sampling": (Column(420, (12,)), Column(300, (11, 13, 14, 15, 16))),
        "result": (Column(520, (17, 18, 19), {17: 470, 19: 340}),),
    },
    "MagicFace-3-where-it-looks": {
        "references": _TOY_REFERENCES,
        "sampling": (Column(400, (12,)), Column(280, (11, 13, 14, 18, 15))),
        "result": (Column(540, (20,)), Column(228, (16, 17, 19))),
    },
    "MagicFace-4-mask-to-comparison": {
        "mask from a word": (
            Column(240, (2, 3, 4, 5)),
            Column(280, (6, 9, 10, 13)),
            Column(270, (11, 14)),
        ),
        "sampling": (Column(380, (15, 20, 21)), Column(270, (16, 17, 18, 19))),
        "result": (Column(290, (22, 23)), Column(420, (25, 24), {25: 540})),
    },
    "MagicFace-5-on-a-transformer": {
        "references": _TOY_REFERENCES,
        "sampling": (Column(420, (12,)), Column(300, (11, 13, 14, 15, 16))),
        "result": (Column(520, (17, 18, 19), {17: 470, 19: 340}),),
    },
    "MagicFace-6-two-people": {
        "who is where": (Column(210, (2, 3, 4, 5)), Column(330, (6, 7))),
        "sampling": (Column(430, (9,)), Column(300, (8, 10, 11, 12, 13))),
        "result": (Column(760, (14,), {14: 560}),),
    },
    "MagicFace-SDXL-two-people": {
        "who is where": (Column(210, (2, 3, 4, 5)), Column(330, (6, 7))),
        "sampling": (Column(430, (9,)), Column(300, (8, 10, 11, 12, 13))),
        "result": (Column(700, (14,), {14: 560}),),
    },
    "MagicFace-7-detail-pass": {
        "references": (Column(256, (2, 3)), Column(256, (4, 5))),
        "two people": (Column(320, (7,)), Column(270, (6, 8, 9, 10, 11))),
        "sampling": (Column(390, (12,)),),
        "result": (Column(560, (13, 14), {13: 420, 14: 340}),),
    },
    "MagicFace-8-on-an-edit-model": {
        "references": (
            Column(256, (2, 25, 3, 4, 5)),
            Column(256, (6, 26, 7, 8, 9)),
            Column(256, (10, 27, 11, 12, 13)),
        ),
        "model and words": (Column(290, (14, 15, 16, 17, 18)),),
        "sampling": (Column(380, (19, 20), {19: _WITHOUT_PROMPT}),),
        "result": (Column(520, (21, 22, 23, 24), {22: 440, 24: 340}),),
    },
    "MagicFace-SD1.5-three-concepts": {
        "references": _OWN_REFERENCES,
        "sampling": (Column(420, (9,)), Column(300, (8, 10, 11, 12, 13))),
        "result": (Column(520, (14, 15, 16), {14: 470, 16: 340}),),
    },
    "MagicFace-SD1.5-a-LoRA-for-each-phrase": {
        "LoRAs": (Column(300, (3, 5)),),
        "sampling": (Column(420, (9,)), Column(300, (8, 10, 11, 12, 13))),
        "result": (Column(580, (14, 15, 16), {14: 490, 16: 340}),),
    },
    "MagicFace-SDXL-three-concepts": {
        "references": _OWN_REFERENCES,
        "sampling": (Column(420, (9,)), Column(300, (8, 10, 11, 12, 13))),
        "result": (Column(520, (14, 15, 16), {14: 470, 16: 340}),),
    },
    "MagicFace-Flux-three-concepts": {
        "references and models": _WITH_MODELS,
        "sampling": (Column(420, (9,)), Column(300, (10, 11, 12, 13))),
        "result": (Column(520, (14, 15, 16), {14: 470, 16: 340}),),
    },
    "MagicFace-Qwen-Image-three-concepts": {
        "references and models": _WITH_MODELS,
        "sampling": (Column(420, (9,)), Column(300, (19, 10, 11, 12, 13))),
        "result": (Column(520, (14, 15, 16), {14: 470, 16: 340}),),
    },
    "MagicFace-Qwen-Image-Edit-regions": {
        "references": (Column(250, (2, 5)), Column(250, (3, 6)), Column(250, (4, 7))),
        "models": (Column(270, (8, 9, 10, 11, 16)),),
        "sampling": (Column(310, (12, 13, 15, 18)), Column(380, (14, 17), {14: _WITHOUT_PROMPT})),
        "result": (Column(460, (19, 20, 21), {19: 420, 21: 340}),),
    },
    "MagicFace-Z-Image-three-concepts": {
        "references and models": _WITH_MODELS,
        "sampling": (Column(420, (9,)), Column(300, (19, 10, 11, 12, 13))),
        "result": (Column(520, (14, 15, 16), {14: 470, 16: 340}),),
    },
    "MagicFace-SD1.5-mask-by-word-SAM": {
        "mask from a word": (Column(270, (2, 4, 6)), Column(280, (3, 5))),
        "sampling": (
            Column(270, (8, 7)),
            Column(390, (9,)),
            Column(270, (10, 11, 12, 13)),
        ),
        "result": (Column(270, (14, 15)), Column(400, (17, 16), {17: 500})),
    },
    "MagicFace-SD1.5-mask-by-word-SAM3": {
        "mask from a word": (Column(270, (2, 3, 4)), Column(280, (5, 6, 7))),
        "sampling": (
            Column(270, (9, 8)),
            Column(390, (10,)),
            Column(270, (11, 12, 13, 14)),
        ),
        "result": (Column(270, (15, 16)), Column(400, (18, 17), {18: 500})),
    },
    "MagicStyle-1-style-transfer": {
        "pictures": (Column(300, (2, 3)), Column(300, (4, 5), {5: 270})),
        "sampling": (Column(340, (6, 7)),),
        "result": (Column(440, (9,), {9: 480}),),
    },
    "MagicStyle-2-step-by-step": {
        "pictures": (Column(280, (2, 3, 4, 5)),),
        "inversion": (
            Column(310, (6, 7), growth={7: _MEASURED}),
            Column(310, (8,), growth={8: _MEASURED}),
        ),
        "sampling": (Column(300, (9, 10)), Column(280, (11, 12))),
        "result": (Column(440, (13, 14), {13: 480}),),
    },
    "MagicStyle-3-two-styles": {
        "pictures": (Column(250, (2, 3, 4)), Column(260, (5, 6, 7))),
        "masks": (Column(230, (9, 10, 11, 12)),),
        "inversion": (
            Column(280, (8, 13), growth={13: _MEASURED}),
            Column(280, (14, 15)),
        ),
        "sampling": (Column(290, (16, 17, 18, 19)),),
        "result": (Column(440, (20, 21), {21: 480}),),
    },
    "MagicStyle-4-how-much-style": {
        "pictures": (Column(260, (2, 3, 4, 5)),),
        "inversion": (Column(290, (6, 8, 9)),),
        "sampling": (
            Column(262, (7, 10, 11, 12), {10: _ALL_SETTINGS}),
            Column(262, (13, 14, 15), {13: _ALL_SETTINGS}),
            Column(262, (17, 18, 19), {17: _ALL_SETTINGS}),
            Column(262, (21, 22, 23), {21: _ALL_SETTINGS}),
        ),
        "result": (Column(440, (16, 20, 24, 25), {25: 304}),),
    },
    "MagicStyle-5-small-face": {
        "pictures": (Column(240, (2, 3, 4)), Column(250, (5, 6, 7, 8), {8: 266})),
        "cut out": (Column(260, (13, 9, 10, 11, 12)),),
        "inversion": (Column(280, (14, 15, 16)),),
        "sampling": (Column(280, (17, 18, 19)),),
        "result": (Column(230, (20, 21, 22)), Column(540, (23, 24), {23: 320, 24: 320})),
    },
    "MagicStyle-6-on-a-transformer": {
        "pictures": (Column(300, (2, 3)), Column(300, (4, 5), {5: 270})),
        "sampling": (Column(340, (6, 7)),),
        "result": (Column(540, (9,), {9: 580}),),
    },
    "MagicStyle-7-transformer-step-by-step": {
        "pictures": (Column(280, (2, 3, 4, 5)),),
        "inversion": (
            Column(310, (6, 7), growth={7: _MEASURED}),
            Column(310, (8,), growth={8: _MEASURED}),
        ),
        "sampling": (Column(300, (9, 10)), Column(280, (11, 12))),
        "result": (Column(540, (13, 14), {13: 580}),),
    },
    "MagicStyle-8-new-picture": {
        "style": (Column(280, (2, 3)),),
        "sampling": (Column(320, (7, 4, 5)), Column(290, (6, 8, 9, 10, 13))),
        "result": (Column(290, (11, 12)), Column(440, (14,), {14: 480})),
    },
    "MagicStyle-9-edit-by-words": {
        "picture": (Column(280, (4, 2, 3)),),
        "inversion": (Column(320, (5,), {5: 236}, growth={5: 320}), Column(310, (6,))),
        "sampling": (Column(320, (9, 7, 8)), Column(270, (10, 11))),
        "result": (Column(540, (12,), {12: 580}),),
    },
    "MagicStyle-Flux-style-transfer": {
        "pictures": (Column(260, (2, 3)), Column(260, (4, 5))),
        "inversion": (
            Column(290, (6, 7), growth={7: _MEASURED}),
            Column(290, (15, 16, 8), growth={8: _MEASURED}),
        ),
        "sampling": (Column(280, (9, 10)), Column(270, (11, 12))),
        "result": (Column(480, (13, 14), {13: 540}),),
    },
    "MagicStyle-Qwen-Image-style-transfer": _STYLE_AND_SHIFT,
    "MagicStyle-Z-Image-style-transfer": _STYLE_AND_SHIFT,
    "MagicStyle-SD1.5-style-transfer": {
        "pictures": (Column(260, (2, 3)), Column(260, (4, 5))),
        "inversion": (
            Column(290, (6, 7), growth={7: _MEASURED}),
            Column(290, (8,), growth={8: _MEASURED}),
        ),
        "sampling": (Column(280, (9, 10)), Column(270, (11, 12))),
        "result": (Column(480, (13, 14), {13: 540}),),
    },
    "MagiCapture-1-learn-person-and-style": {
        "pictures and training": (
            Column(280, (1, 5, 6, 2)),
            Column(290, (3, 4)),
            Column(390, (7,)),
        ),
        "sampling": (Column(330, (8, 9, 10, 11, 12, 13)),),
        "result": (Column(560, (14, 15), {14: 540, 15: 300}), Column(290, (16,))),
    },
    "MagiCapture-2-on-a-transformer": {
        "pictures and training": (
            Column(280, (1, 5, 2)),
            Column(300, (3, 4)),
            Column(390, (6,)),
        ),
        "sampling": (Column(330, (7, 8, 9, 10, 11)),),
        "result": (Column(560, (12, 13, 14, 15), {13: 480}),),
    },
    "MagiCapture-SD1.5-1-train": {
        "pictures": (Column(280, (1, 2, 3)), Column(280, (4, 5))),
        "training": (Column(390, (7,)), Column(270, (6, 9, 10))),
        "sampling": (Column(320, (11, 12, 13, 14, 15, 16)),),
        "result": (Column(560, (17,), {17: 620}),),
    },
    "MagiCapture-Z-Image-train": {
        "pictures": (Column(280, (1, 2, 3)), Column(280, (4, 5))),
        "training": (Column(390, (7,)), Column(270, (6, 9, 18, 10))),
        "sampling": (Column(320, (11, 19, 12, 13, 14, 15)),),
        "result": (Column(540, (16, 17), {17: 600}),),
    },
    "MagiCapture-Flux-train": {
        "pictures": (Column(280, (1, 2, 3)), Column(280, (4, 5))),
        "training": (Column(390, (7,)), Column(270, (6, 9, 18, 10))),
        "sampling": (Column(320, (11, 12, 13, 14, 15)),),
        "result": (Column(540, (16, 17), {17: 600}),),
    },
    "MagiCapture-SD1.5-2-use": {
        "what was trained": (Column(320, (2, 3, 4, 5)),),
        "sampling": (Column(340, (6, 7, 8, 9, 10)),),
        "result": (Column(640, (11, 12), {12: 700}),),
    },
    "Portrait-Restore-SD1.5": {
        "models": (Column(300, (2, 3, 4)),),
        "sampling": (Column(400, (5,)), Column(300, (6, 7, 8, 9))),
        "result": (Column(300, (10, 11)), Column(600, (12,), {12: 640})),
    },
    "Semantic-Layout": {
        "sampling": (Column(430, (2, 3)), Column(320, (4, 5, 6, 7))),
        "result": (
            Column(310, (9, 11), {11: 320}),
            Column(540, (8, 10), {8: 420, 10: 420}),
        ),
    },
}


def arrange(workflow: dict[str, Any], groups: Groups) -> None:
    """Places and sizes of all nodes and groups, in the workflow itself."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    [note] = [node for node in nodes.values() if node["type"] == "MarkdownNote"]
    placed: set[int] = set()
    boxes = []
    left = 0
    for title, columns in groups.items():
        x = left + PADDING
        bottom = 0
        for column in columns:
            y = GROUP_TITLE + TITLE
            for node_id in column.nodes:
                node = nodes[node_id]
                if node is note:
                    height = _note_height(note["widgets_values"][0], column.width)
                else:
                    height = column.heights.get(node_id, HEIGHTS[node["type"]])
                growth = column.growth.get(node_id, GROWTH.get(node["type"], 0))
                node |= {"pos": [x, y], "size": [column.width, height]}
                placed.add(node_id)
                y += max(height, CLASSIC.get(node["type"], 0)) + growth + GAP + TITLE
            bottom = max(bottom, y - GAP - TITLE)
            x += column.width + COLUMN_GAP
        width = x - COLUMN_GAP + PADDING - left
        boxes.append((title, [left, 0, width, bottom + PADDING]))
        left += width + GROUP_GAP
    if missing := sorted(nodes.keys() - placed - {note["id"]}):
        raise ValueError(f"no place for the nodes {missing}")
    if note["id"] not in placed:
        width = min(NOTE_WIDTH, left - GROUP_GAP)
        height = _note_height(note["widgets_values"][0], width)
        note |= {"pos": [0, -height - GROUP_GAP], "size": [width, height]}
    workflow["groups"] = [
        {"id": i, "title": title, "bounding": box, "color": _colour(title, i), "flags": {}}
        for i, (title, box) in enumerate(boxes, 1)
    ]


def _note_height(text: str, width: int) -> int:
    paragraphs = text.split("\n\n")
    lines = sum(math.ceil(len(part) / (width * LETTERS_A_PIXEL)) for part in paragraphs)
    return lines * LINE + (len(paragraphs) + 1) * PARAGRAPH_GAP


def _colour(title: str, index: int) -> str:
    return COLOURS.get(title) or OTHER_COLOURS[(index - 1) % len(OTHER_COLOURS)]


def main() -> None:
    bench_parser(__doc__).parse_args()
    for name, groups in LAYOUTS.items():
        path = FOLDER / f"{name}.json"
        workflow = json.loads(path.read_text(encoding="utf-8"))
        arrange(workflow, groups)
        path.write_text(json.dumps(workflow, indent=2) + "\n", encoding="utf-8")
        print(f"arranged {path.name}")


if __name__ == "__main__":
    main()
