from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

import workflow_files
from comfy_server import ComfyServer, Picture, ValidationFailed
from magicportrait.host.pictures.palette import PALETTE
from workflow_files import ids, prompt_of

STEPS = 8
FEWER = {"MagicStyle-7-transformer-step-by-step": 4, "MagicStyle-9-edit-by-words": 4}
"""Steps where an inversion takes most of the time."""
SIDE = 128
SMALL = 96
"""Side of a person in the picture of several."""
LEGEND = {3: 46, 4: 60}
"""Height of the overlay's legend by its number of phrases."""
# For every workflow: what each SaveImage writes, as prefix -> (number, width, height); the pictures
# first.
EXPECTED = {
    "MagicFace-4-mask-to-comparison": {
        "concept_to_comparison": (4, SIDE, SIDE),
        "concept_to_comparison_grid": (1,),
    },
    "MagiCapture-1-learn-person-and-style": {"magicapture": (4, SIDE, SIDE)},
    "MagiCapture-2-on-a-transformer": {"magicapture_transformer": (2, 2 * SIDE, 2 * SIDE)},
    "MagicFace-3-where-it-looks": {
        "magicface_correspondence": (3, SIDE, SIDE),
        "magicface_correspondence_heat": (3 * 3, SIDE, SIDE),
    },
    "MagicFace-1-one-concept": {"magicface_one_concept": (4, SIDE, SIDE)},
    "MagicFace-2-three-concepts": {
        "magicface_three_concepts": (4, SIDE, SIDE),
        "magicface_three_concepts_layout": (4, SIDE, SIDE + LEGEND[3]),
    },
    "MagicFace-5-on-a-transformer": {
        "magicface_transformer": (4, 2 * SIDE, 2 * SIDE),
        "magicface_transformer_layout": (4, 2 * SIDE, 2 * SIDE + LEGEND[3]),
    },
    "MagicFace-6-two-people": {"magicface_two_people": (4, 2 * SIDE, SIDE)},
    "MagicFace-7-detail-pass": {
        "magicface_detail_pass": (1, 2 * SIDE, 2 * SIDE),
        "magicface_detail_pass_before": (1, 2 * SIDE, 2 * SIDE),
    },
    "MagicFace-8-on-an-edit-model": {
        "edit_regions": (1, 2 * SIDE, 2 * SIDE),
        "edit_regions_layout": (1, 2 * SIDE, 2 * SIDE + LEGEND[3]),
    },
    "MagicStyle-1-style-transfer": {"magicstyle_one_node": (1, SIDE, SIDE)},
    "MagicStyle-2-step-by-step": {"magicstyle_portrait": (1, SIDE, SIDE)},
    "MagicStyle-5-small-face": {
        "magicstyle_small_face": (1, 3 * SMALL, SMALL),
        "magicstyle_small_face_cutout": (1, 3 * SIDE, SIDE),
    },
    "MagicStyle-6-on-a-transformer": {"magicstyle_transformer": (1, 2 * SIDE, 2 * SIDE)},
    "MagicStyle-7-transformer-step-by-step": {
        "magicstyle_transformer_portrait": (1, 2 * SIDE, 2 * SIDE)
    },
    "MagicStyle-8-new-picture": {"magicstyle_new_picture": (1, SIDE, SIDE)},
    "MagicStyle-9-edit-by-words": {"magicstyle_edit": (1, 2 * SIDE, 2 * SIDE)},
    "MagicStyle-4-how-much-style": {"magicstyle_sweep": (1, 4 * SIDE, SIDE)},
    "MagicStyle-3-two-styles": {"magicstyle_two_styles": (1, SIDE, SIDE)},
    "Semantic-Layout": {
        "semantic_layout": (4, SIDE, SIDE),
        "semantic_layout_overlay": (4, SIDE, SIDE + LEGEND[4]),
    },
}
SEEDED = [name for name in workflow_files.TOY if not name.startswith("MagicStyle")]
"""MagicStyle has none, but for new pictures: what it draws follows from what goes in."""
RUN_AGAIN = {
    "KSampler",
    "VAEDecode",
    "SaveImage",
    "MagicLayoutMasks",
    "MaskPreview",
    "MagicPortraitMetrics",
    "MagicCompareGrid",
    "MagicCorrespondenceMap",
    "MagicDetailPass",
}
FILE_INPUTS = {
    "CheckpointLoaderSimple": "ckpt_name",
    "LoraLoader": "lora_name",
    "MagicEmbeddingLoad": "file",
    "MagicConceptLora": "lora",
    "MagicConceptMask": "sam",
    "UpscaleModelLoader": "model_name",
    "UNETLoader": "unet_name",
    "CLIPLoader": "clip_name",
    "DualCLIPLoader": "clip_name1 clip_name2",
    "VAELoader": "vae_name",
}


@pytest.mark.parametrize("name", workflow_files.TOY)
def test_gives_its_pictures(server: ComfyServer, object_info: dict[str, Any], name: str) -> None:
    steps = FEWER.get(name, STEPS)
    prompt = prompt_of(name, object_info, steps=steps)

    result = server.queue(prompt)

    saved = {
        prompt[node]["inputs"]["filename_prefix"]: result.outputs[node]["images"]
        for node in ids(prompt, "SaveImage")
    }
    pictures = {
        prefix: [server.fetch_image(picture) for picture in found]
        for prefix, found in saved.items()
    }
    assert pictures.keys() == EXPECTED[name].keys()
    for prefix, expected in EXPECTED[name].items():
        # The size of a grid depends on its letters.
        assert (len(pictures[prefix]), *pictures[prefix][0].size)[: len(expected)] == expected
    for image in [image for images in pictures.values() for image in images]:
        assert is_drawn(image)
    [plain, *_] = EXPECTED[name]
    overlays = pictures.get(f"{plain}_layout") or pictures.get(f"{plain}_overlay") or []
    for overlay, picture in zip(overlays, pictures[plain]):
        assert len(legend_colours(overlay, picture)) >= 2
    for preview in ids(prompt, "MaskPreview"):
        assert any(
            np.asarray(server.fetch_image(mask)).any() for mask in result.outputs[preview]["images"]
        )
    for shown in ids(prompt, "PreviewAny"):
        [report] = result.outputs[shown]["text"]
        assert f"fixed-point, {steps} steps" in report
        assert "to what the VAE alone gives" in report
    if name in LOOKS:
        [shown] = [
            server.fetch_image(picture)
            for node in ids(prompt, "PreviewImage")
            for picture in result.outputs[node]["images"]
        ]
        LOOKS[name](shown, pictures)


@pytest.mark.parametrize("name", SEEDED)
def test_another_seed_runs_only_the_sampler_and_what_follows(
    server: ComfyServer, object_info: dict[str, Any], name: str
) -> None:
    server.queue(prompt_of(name, object_info, steps=2, seed=100))
    prompt = prompt_of(name, object_info, steps=2, seed=101)

    result = server.queue(prompt)

    expected = RUN_AGAIN & {node["class_type"] for node in prompt.values()}
    assert {prompt[node]["class_type"] for node in result.executed} == expected
    sources = {
        node
        for kind in (
            "MagicToyCheckpoint",
            "MagicToyPortrait",
            "MagicFaceConcept",
            "MagiCaptureTrain",
        )
        for node in ids(prompt, kind)
    }
    assert sources <= result.cached


def test_the_same_seed_gives_the_same_pictures(
    server: ComfyServer, object_info: dict[str, Any]
) -> None:
    first = server.queue(prompt_of("MagicFace-1-one-concept", object_info, steps=2, seed=7))
    # Something else in between, or the answer would come from the cache.
    server.queue(prompt_of("MagicFace-1-one-concept", object_info, steps=2, seed=8))

    again = server.queue(prompt_of("MagicFace-1-one-concept", object_info, steps=2, seed=7))

    assert len(again.executed) > 0
    assert pixels(server, again.images) == pixels(server, first.images)


@pytest.mark.parametrize("name", workflow_files.NEED_FILES)
def test_lacks_nothing_but_model_files(
    server: ComfyServer, object_info: dict[str, Any], name: str
) -> None:
    Image.new("RGB", (64, 64)).save(server.input_dir / "example.png")
    prompt = prompt_of(name, object_info)
    # Names that no other test has saved a file under.
    for node, file in (
        (n, f)
        for kind, files in FILE_INPUTS.items()
        for n in ids(prompt, kind)
        for f in files.split()
    ):
        prompt[node]["inputs"][file] = f"absent-{prompt[node]['inputs'][file]}"

    with pytest.raises(ValidationFailed) as refusal:
        server.queue(prompt)

    complaints = refusal.value.body["node_errors"]
    # Concept Mask looks at what its target needs, when it runs.
    assert set(complaints) == {
        node for kind in FILE_INPUTS if kind != "MagicConceptMask" for node in ids(prompt, kind)
    }
    for node, complaint in [
        (node, error) for node, found in complaints.items() for error in found["errors"]
    ]:
        names = FILE_INPUTS[prompt[node]["class_type"]].split()
        name = complaint["extra_info"]["input_name"]
        assert complaint["type"] == "value_not_in_list" and name in names
        assert prompt[node]["inputs"][name] in complaint["details"]


@pytest.mark.parametrize("name", workflow_files.ALL)
def test_is_offered_as_a_template(server: ComfyServer, name: str) -> None:
    [(pack, names)] = json.loads(server.get("/workflow_templates")).items()
    assert name in names
    assert (
        server.get(f"/api/workflow_templates/{pack}/{name}.json")
        == (workflow_files.FOLDER / f"{name}.json").read_bytes()
    )
    assert server.get(f"/api/workflow_templates/{pack}/{name}.jpg").startswith(b"\xff\xd8"), (
        "a JPEG of the same name is its thumbnail"
    )


@pytest.mark.parametrize("name", workflow_files.ALL)
def test_holds_nothing_of_the_machine_it_was_made_on(name: str) -> None:
    workflow = workflow_files.read(name)
    assert workflow["version"] == 0.4
    assert workflow["extra"] == {}
    assert [group["title"] for group in workflow["groups"]][-2:] == ["sampling", "result"]
    [note] = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert len(note["widgets_values"][0].split("\n\n")) == 3, (
        "what it does, what to change or do first, which files"
    )


# ---- what a stylised picture must look like ----


def takes_the_style(grid: Image.Image, pictures: dict[str, list[Image.Image]]) -> None:
    content, style = tiles(grid)
    [[picture]] = pictures.values()
    assert colour_distance(picture, style) < 0.8 * colour_distance(content, style)
    assert likeness(picture, content) > 0.4


def each_half_takes_its_own_style(
    shown: Image.Image, pictures: dict[str, list[Image.Image]]
) -> None:
    content, *styles = tiles(shown)
    [[picture]] = pictures.values()
    for style, box in zip(
        styles, ((0, 0, SIDE // 2, SIDE), (SIDE // 2, 0, SIDE, SIDE)), strict=True
    ):
        assert colour_distance(picture.crop(box), style) < 0.9 * colour_distance(
            content.crop(box), style
        )
    assert likeness(picture, content) > 0.3


def more_beta_is_more_style(grid: Image.Image, pictures: dict[str, list[Image.Image]]) -> None:
    content, style = tiles(grid)
    [[picture]] = pictures.values()
    first, *_, last = tiles(picture)
    assert colour_distance(first, style) < colour_distance(content, style)
    assert likeness(first, content) > likeness(last, content)
    assert likeness(first, style) < likeness(last, style)


def only_the_person_in_the_middle_changes(
    shown: Image.Image, pictures: dict[str, list[Image.Image]]
) -> None:
    picture, cut_outs = (
        pictures["magicstyle_small_face"][0],
        pictures["magicstyle_small_face_cutout"][0],
    )
    before, after = (np.asarray(image.convert("RGB"), np.int16) for image in (shown, picture))
    changed = abs(after - before).max(-1) > 0
    assert not changed[:, :SMALL].any() and not changed[:, 2 * SMALL :].any()
    assert changed[:, SMALL : 2 * SMALL].mean() > 0.3
    assert not changed[:, SMALL : SMALL + 4].any(), "the background stays, also beside the person"
    takes_the_style(
        cut_outs.crop((0, 0, 2 * SIDE, SIDE)), {"": [cut_outs.crop((2 * SIDE, 0, 3 * SIDE, SIDE))]}
    )


def takes_the_look(grid: Image.Image, pictures: dict[str, list[Image.Image]]) -> None:
    plain, style = tiles(grid)
    [[picture]] = pictures.values()
    assert colour_distance(picture, style) < 0.8 * colour_distance(plain, style)


def only_the_hat_changes(grid: Image.Image, pictures: dict[str, list[Image.Image]]) -> None:
    [[picture]] = pictures.values()
    before, after = (np.asarray(image.convert("RGB"), np.int16) for image in (grid, picture))
    changed = abs(after - before).mean(-1)
    middle = len(changed) // 2
    assert (changed[:middle] > 60).mean() > 0.05
    # What the autoencoder alone changes.
    assert (changed[middle:] > 60).mean() < 0.02


LOOKS: dict[str, Callable[[Image.Image, dict[str, list[Image.Image]]], None]] = {
    "MagicStyle-1-style-transfer": takes_the_style,
    "MagicStyle-2-step-by-step": takes_the_style,
    "MagicStyle-6-on-a-transformer": takes_the_style,
    "MagicStyle-7-transformer-step-by-step": takes_the_style,
    "MagicStyle-8-new-picture": takes_the_look,
    "MagicStyle-9-edit-by-words": only_the_hat_changes,
    "MagicStyle-5-small-face": only_the_person_in_the_middle_changes,
    "MagicStyle-4-how-much-style": more_beta_is_more_style,
    "MagicStyle-3-two-styles": each_half_takes_its_own_style,
}
"""What goes in, side by side, and what comes out."""


def tiles(strip: Image.Image) -> list[Image.Image]:
    """Squares."""
    side = strip.height
    return [strip.crop((left, 0, left + side, side)) for left in range(0, strip.width, side)]


def colour_distance(image: Image.Image, other: Image.Image) -> float:
    """Between mean and deviation of the colours."""
    found = [
        np.asarray(picture.convert("RGB"), np.float64).reshape(-1, 3) for picture in (image, other)
    ]
    a, b = (np.concatenate([rgb.mean(0), rgb.std(0)]) for rgb in found)
    return float(np.linalg.norm(a - b))


def likeness(image: Image.Image, other: Image.Image) -> float:
    """Correlation of the brightness's gradients: whether edges lie in the same places."""
    found = [
        np.hypot(*np.gradient(np.asarray(picture.convert("L"), np.float64)))
        for picture in (image, other)
    ]
    return float(np.corrcoef(*(edges.ravel() for edges in found))[0, 1])


def is_drawn(image: Image.Image) -> bool:
    rgb = np.asarray(image.convert("RGB"))
    return bool(rgb.std() > 20) and len(np.unique((rgb // 16).reshape(-1, 3), axis=0)) > 10


def legend_colours(overlay: Image.Image, picture: Image.Image) -> set[str]:
    """The colours that cover a part of the picture, as against those that only stand in the legend
    below it."""
    painted, plain = (
        np.asarray(image.convert("RGB"), np.float32)[: picture.height]
        for image in (overlay, picture)
    )
    expected = {name: 0.4 * plain + 0.6 * np.array(colour) for name, colour in PALETTE}
    return {
        name for name, rgb in expected.items() if (abs(painted - rgb) < 2).all(-1).mean() > 0.01
    }


def pixels(server: ComfyServer, pictures: list[Picture]) -> list[bytes]:
    return [server.fetch_image(picture).tobytes() for picture in pictures]
