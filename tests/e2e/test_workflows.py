from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import workflow_files
from comfy_server import ComfyServer, Picture, ValidationFailed
from magicportrait.host.layout_masks import PALETTE
from workflow_files import ids, prompt_of

STEPS = 8
SIDE = 128
LEGEND = {3: 46, 4: 60}
"""Height of the overlay's legend by its number of phrases."""
# For every workflow: what each SaveImage writes, as prefix -> (number, width, height).
EXPECTED = {
    "magicapture": {"magicapture": (4, SIDE, SIDE)},
    "magicface_one_concept": {"magicface_one_concept": (4, SIDE, SIDE)},
    "magicface_three_concepts": {
        "magicface_three_concepts": (4, SIDE, SIDE),
        "magicface_three_concepts_layout": (4, SIDE, SIDE + LEGEND[3]),
        "magicface_three_concepts_references": (1, 3 * SIDE, SIDE),
    },
    "semantic_layout": {"semantic_layout": (4, SIDE, SIDE), "semantic_layout_overlay": (4, SIDE, SIDE + LEGEND[4])},
}
FILE_INPUTS = {
    "CheckpointLoaderSimple": "ckpt_name",
    "LoraLoader": "lora_name",
    "MagicEmbeddingLoad": "file",
    "UpscaleModelLoader": "model_name",
}
RUN_AGAIN = {"KSampler", "VAEDecode", "SaveImage", "MagicLayoutMasks", "MaskPreview"}


@pytest.mark.parametrize("name", workflow_files.TOY)
def test_gives_its_pictures(server: ComfyServer, object_info: dict[str, Any], name: str) -> None:
    prompt = prompt_of(name, object_info, steps=STEPS)

    result = server.queue(prompt)

    saved = {prompt[node]["inputs"]["filename_prefix"]: result.outputs[node]["images"] for node in ids(prompt, "SaveImage")}
    pictures = {prefix: [server.fetch_image(picture) for picture in found] for prefix, found in saved.items()}
    assert {prefix: (len(images), *images[0].size) for prefix, images in pictures.items()} == EXPECTED[name]
    for image in [image for images in pictures.values() for image in images]:
        assert is_drawn(image)
    overlays = pictures.get(f"{name}_layout") or pictures.get(f"{name}_overlay") or []
    for overlay, picture in zip(overlays, pictures[name]):
        assert len(legend_colours(overlay, picture)) >= 2
    for preview in ids(prompt, "MaskPreview"):
        assert any(np.asarray(server.fetch_image(mask)).any() for mask in result.outputs[preview]["images"])


@pytest.mark.parametrize("name", workflow_files.TOY)
def test_another_seed_runs_only_the_sampler_and_what_follows(server: ComfyServer, object_info: dict[str, Any], name: str) -> None:
    server.queue(prompt_of(name, object_info, steps=2, seed=100))
    prompt = prompt_of(name, object_info, steps=2, seed=101)

    result = server.queue(prompt)

    assert {prompt[node]["class_type"] for node in result.executed} == RUN_AGAIN & {node["class_type"] for node in prompt.values()}
    sources = {
        node for kind in ("MagicToyCheckpoint", "MagicToyPortrait", "MagicFaceConcept", "MagiCaptureTrain") for node in ids(prompt, kind)
    }
    assert sources <= result.cached


def test_the_same_seed_gives_the_same_pictures(server: ComfyServer, object_info: dict[str, Any]) -> None:
    first = server.queue(prompt_of("magicface_one_concept", object_info, steps=2, seed=7))
    # Something else in between, or the answer would come from the cache.
    server.queue(prompt_of("magicface_one_concept", object_info, steps=2, seed=8))

    again = server.queue(prompt_of("magicface_one_concept", object_info, steps=2, seed=7))

    assert len(again.executed) > 0
    assert pixels(server, again.images) == pixels(server, first.images)


@pytest.mark.parametrize("name", workflow_files.NEED_FILES)
def test_lacks_nothing_but_model_files(server: ComfyServer, object_info: dict[str, Any], name: str) -> None:
    Image.new("RGB", (64, 64)).save(server.input_dir / "example.png")
    prompt = prompt_of(name, object_info)

    with pytest.raises(ValidationFailed) as refusal:
        server.queue(prompt)

    complaints = refusal.value.body["node_errors"]
    assert set(complaints) == {node for kind in FILE_INPUTS for node in ids(prompt, kind)}
    for node, found in complaints.items():
        [complaint] = found["errors"]
        name = FILE_INPUTS[prompt[node]["class_type"]]
        assert (complaint["type"], complaint["extra_info"]["input_name"]) == ("value_not_in_list", name)
        assert prompt[node]["inputs"][name] in complaint["details"]


@pytest.mark.parametrize("name", workflow_files.ALL)
def test_is_offered_as_a_template(server: ComfyServer, name: str) -> None:
    [(pack, names)] = json.loads(server.get("/workflow_templates")).items()
    assert name in names
    assert server.get(f"/api/workflow_templates/{pack}/{name}.json") == (workflow_files.FOLDER / f"{name}.json").read_bytes()
    assert server.get(f"/api/workflow_templates/{pack}/{name}.jpg").startswith(b"\xff\xd8"), "a JPEG of the same name is its thumbnail"


@pytest.mark.parametrize("name", workflow_files.ALL)
def test_holds_nothing_of_the_machine_it_was_made_on(name: str) -> None:
    workflow = workflow_files.read(name)
    assert workflow["version"] == 0.4
    assert workflow["extra"] == {}
    assert [group["title"] for group in workflow["groups"]][-2:] == ["sampling", "result"]
    assert [node["type"] for node in workflow["nodes"]].count("MarkdownNote") == 1


def is_drawn(image: Image.Image) -> bool:
    rgb = np.asarray(image.convert("RGB"))
    return bool(rgb.std() > 20) and len(np.unique((rgb // 16).reshape(-1, 3), axis=0)) > 10


def legend_colours(overlay: Image.Image, picture: Image.Image) -> set[str]:
    """The colours that cover a part of the picture, as against those that only stand in the legend below it."""
    painted, plain = (np.asarray(image.convert("RGB"), np.float32)[:SIDE] for image in (overlay, picture))
    expected = {name: 0.4 * plain + 0.6 * np.array(colour) for name, colour in PALETTE}
    return {name for name, rgb in expected.items() if (abs(painted - rgb) < 2).all(-1).mean() > 0.01}


def pixels(server: ComfyServer, pictures: list[Picture]) -> list[bytes]:
    return [server.fetch_image(picture).tobytes() for picture in pictures]
