"""What a user is told when something is wrong: before the execution where the host can see it,
before the first sampling step elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_server import ComfyServer, ExecutionFailed, ValidationFailed
from workflow_files import Prompt, ids, prompt_of, the


@pytest.fixture
def prompt(object_info: dict[str, Any]) -> Prompt:
    """One concept in two steps. It has one output, so that ComfyUI cannot run a part of it when
    another part is invalid."""
    return prompt_of("MagicFace-1-one-concept", object_info, outputs={"SaveImage"}, steps=2)


@pytest.fixture
def stylise(server: ComfyServer, object_info: dict[str, Any]) -> Prompt:
    """A portrait in a style, in two steps. Both pictures are inverted already, so that what still
    counts steps is sampling."""
    found = prompt_of(
        "MagicStyle-2-step-by-step", object_info, outputs={"SaveImage"}, steps=2, measure=False
    )
    server.queue(found)
    return found


def refusal(server: ComfyServer, prompt: Prompt) -> str:
    """All complaints about a prompt that ComfyUI must refuse."""
    with pytest.raises(ValidationFailed) as refused:
        server.queue(prompt)
    assert refused.value.status == 400
    nodes = refused.value.body["node_errors"].values()
    return "\n".join(
        f"{node['class_type']}: {error['details']}" for node in nodes for error in node["errors"]
    )


def failure(server: ComfyServer, prompt: Prompt, node_type: str) -> str:
    """The message of the node of type `node_type`, in which the execution must end before anything
    was sampled."""
    with pytest.raises(ExecutionFailed) as failed:
        server.queue(prompt)
    assert failed.value.result.steps == 0
    details: dict[str, Any] = failed.value.details
    assert (details["node_type"], details["exception_type"]) == (node_type, "ValueError")
    message: str = details["exception_message"]
    return message


def empty_mask(side: int) -> dict[str, Any]:
    return {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": side, "height": side}}


# ---- refused by /prompt ----


def test_unknown_folder(server: ComfyServer, prompt: Prompt) -> None:
    prompt["folder"] = {"class_type": "MagicFaceConceptFolder", "inputs": {"folder": "nowhere"}}
    the(prompt, "MagicFaceApply")["inputs"]["concepts"] = ["folder", 0]
    complaint = refusal(server, prompt)
    assert (
        "concept folder 'nowhere' is not there: put a folder with image/ and mask/ in it into"
        in complaint
    )
    assert str(server.input_dir) in complaint


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("MagicFaceConcept", "strength", 99.0), ("MagicFaceApply", "inject_at", 1.5)],
)
def test_value_out_of_range(
    server: ComfyServer, prompt: Prompt, kind: str, name: str, value: float
) -> None:
    the(prompt, kind)["inputs"][name] = value
    assert f"{kind}: {name}" in refusal(server, prompt)


def test_missing_link(server: ComfyServer, prompt: Prompt) -> None:
    del the(prompt, "MagicFaceApply")["inputs"]["clip"]
    assert "MagicFaceApply: clip" in refusal(server, prompt)


@pytest.mark.parametrize(
    ("kind", "name", "source", "value"),
    [
        ("MagicFaceConcept", "phrase", "PrimitiveString", "hat"),
        ("MagicFaceApply", "prompt", "PrimitiveString", "a man wearing a green top hat"),
        ("MagicFaceApply", "start", "PrimitiveFloat", 0.1),
        ("MagicFaceApply", "end", "PrimitiveFloat", 0.9),
    ],
)
def test_checked_values_may_come_from_other_nodes(
    server: ComfyServer, prompt: Prompt, kind: str, name: str, source: str, value: object
) -> None:
    prompt["source"] = {"class_type": source, "inputs": {"value": value}}
    the(prompt, kind)["inputs"][name] = ["source", 0]
    assert server.queue(prompt).images


@pytest.mark.parametrize("file", ["nowhere.safetensors", "../nowhere.safetensors", ""])
def test_missing_inversion_file(server: ComfyServer, stylise: Prompt, file: str) -> None:
    [toy] = ids(stylise, "MagicToyCheckpoint")
    stylise["load"] = {
        "class_type": "MagicInversionLoad",
        "inputs": {"model": [toy, 0], "file": file},
    }
    the(stylise, "MagicStyleApply")["inputs"]["content"] = ["load", 0]
    assert f"inversion file '{file}' is not there: save one with Save Inversion" in refusal(
        server, stylise
    )


# ---- seen during the execution ----


@pytest.mark.parametrize("phrase", ["", "  "])
def test_empty_phrase(server: ComfyServer, prompt: Prompt, phrase: str) -> None:
    the(prompt, "MagicFaceConcept")["inputs"]["phrase"] = phrase
    message = failure(server, prompt, "MagicFaceConcept")
    assert "phrase is empty: write the words of the target prompt" in message


def test_start_after_end(server: ComfyServer, prompt: Prompt) -> None:
    the(prompt, "MagicFaceApply")["inputs"].update(start=0.8, end=0.2)
    assert "start (0.8) is after end (0.2)" in failure(server, prompt, "MagicFaceApply")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"alpha": 0.9, "beta": 0.5}, "alpha (0.9) and beta (0.5) add up to more than 1"),
        ({"start": 0.8, "end": 0.2}, "start (0.8) is after end (0.2)"),
    ],
)
def test_values_that_do_not_fit_together(
    server: ComfyServer, stylise: Prompt, changes: dict[str, Any], complaint: str
) -> None:
    the(stylise, "MagicStyleApply")["inputs"].update(preset="custom", **changes)
    assert complaint in failure(server, stylise, "MagicStyleApply")


def test_phrase_not_in_the_prompt(server: ComfyServer, prompt: Prompt) -> None:
    the(prompt, "MagicFaceConcept")["inputs"]["phrase"] = "umbrella"
    the(prompt, "MagicFaceApply")["inputs"]["prompt"] = "a man wearing a green hat, cartoon style"
    message = failure(server, prompt, "MagicFaceApply")
    assert "phrase 'umbrella' is not in the prompt" in message
    assert "a, man, wearing, green, hat, cartoon, style" in message


def test_empty_mask(server: ComfyServer, prompt: Prompt) -> None:
    prompt["nothing"] = empty_mask(128)
    the(prompt, "MagicFaceConcept")["inputs"]["mask"] = ["nothing", 0]
    assert (
        "mask of concept 'top hat' is empty: paint over the part of the image to take"
        in failure(server, prompt, "MagicFaceConcept")
    )


def test_mask_of_a_few_pixels(server: ComfyServer, prompt: Prompt) -> None:
    for name, value, side in (("nothing", 0.0, 128), ("dot", 1.0, 1)):
        prompt[name] = {
            "class_type": "SolidMask",
            "inputs": {"value": value, "width": side, "height": side},
        }
    pasted = {
        "destination": ["nothing", 0],
        "source": ["dot", 0],
        "x": 64,
        "y": 64,
        "operation": "add",
    }
    prompt["mask"] = {"class_type": "MaskComposite", "inputs": pasted}
    the(prompt, "MagicFaceConcept")["inputs"]["mask"] = ["mask", 0]
    message = failure(server, prompt, "MagicFaceApply")
    assert "mask of concept 'top hat' is empty after scaling to" in message
    assert "paint a larger region, or crop the image closer" in message


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        (
            "finest",
            (
                "layers: 'finest' is not understood: expected 'fine', 'decoder', 'all', 'down',"
                " 'mid', 'up' or blocks"
                " such as"
            ),
        ),
        ("o77", "layers: 'o77' has no self-attention in this model: it has i1,i3,i5,m0,o0-5"),
    ],
)
def test_unknown_layers(server: ComfyServer, prompt: Prompt, layers: str, complaint: str) -> None:
    the(prompt, "MagicFaceApply")["inputs"]["layers"] = layers
    assert complaint in failure(server, prompt, "MagicFaceApply")


def test_conditioning_of_another_node(server: ComfyServer, prompt: Prompt) -> None:
    the(prompt, "KSampler")["inputs"]["positive"] = [ids(prompt, "CLIPTextEncode")[0], 0]
    message = failure(server, prompt, "KSampler")
    assert (
        "the sampler's positive input does not come from the node that patched this MODEL"
        in message
    )
    assert "connect the output positive of that node to the sampler" in message


def test_the_server_works_on_after_a_failure(server: ComfyServer, prompt: Prompt) -> None:
    broken = {node: {**data, "inputs": dict(data["inputs"])} for node, data in prompt.items()}
    the(broken, "MagicFaceApply")["inputs"]["layers"] = "nonsense"
    failure(server, broken, "MagicFaceApply")
    assert server.queue(prompt).images


# ---- MagicStyle, during the execution ----


def content_inversion(prompt: Prompt) -> dict[str, Any]:
    """The inputs of the node that inverts the portrait."""
    inputs: dict[str, Any] = prompt[the(prompt, "MagicStyleApply")["inputs"]["content"][0]][
        "inputs"
    ]
    return inputs


def another_model(prompt: Prompt) -> list[Any]:
    """The toy checkpoint, told that it predicts v."""
    [toy] = ids(prompt, "MagicToyCheckpoint")
    prompt["other"] = {
        "class_type": "ModelSamplingDiscrete",
        "inputs": {"model": [toy, 0], "sampling": "v_prediction", "zsnr": False},
    }
    return ["other", 0]


def test_image_without_vae(server: ComfyServer, stylise: Prompt) -> None:
    del content_inversion(stylise)["vae"]
    message = failure(server, stylise, "MagicStyleInvert")
    assert message.strip() == "there is nothing to invert: connect latent, or both image and vae"


def test_inversion_of_an_empty_latent(server: ComfyServer, stylise: Prompt) -> None:
    stylise["empty"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 128, "height": 128, "batch_size": 1},
    }
    content_inversion(stylise)["latent"] = ["empty", 0]
    assert "connect a picture (VAE Encode), not an Empty Latent Image" in failure(
        server, stylise, "MagicStyleInvert"
    )


def test_rising_sigmas(server: ComfyServer, stylise: Prompt) -> None:
    inversion = the(stylise, "MagicStyleApply")["inputs"]["content"][0]
    stylise["rising"] = {"class_type": "FlipSigmas", "inputs": {"sigmas": [inversion, 2]}}
    stylise["again"] = {
        "class_type": "MagicStyleInvert",
        "inputs": {**content_inversion(stylise), "sigmas": ["rising", 0]},
    }
    the(stylise, "MagicStyleApply")["inputs"]["content"] = ["again", 0]
    message = failure(server, stylise, "MagicStyleInvert")
    assert "sigmas must fall to 0 in two steps or more, got [0.0, " in message


def test_inversion_of_another_model(server: ComfyServer, stylise: Prompt) -> None:
    the(stylise, "MagicStyleApply")["inputs"]["model"] = another_model(stylise)
    message = failure(server, stylise, "MagicStyleApply")
    assert "the content was inverted with another model: its weights and LoRAs are" in message
    assert "Connect the same model, with the same LoRAs, to both nodes" in message


def test_inversion_file_of_another_model(server: ComfyServer, stylise: Prompt) -> None:
    inversion = the(stylise, "MagicStyleApply")["inputs"]["content"]
    stylise["write"] = {
        "class_type": "MagicInversionSave",
        "inputs": {"inversion": inversion, "name": "portrait"},
    }
    server.queue(stylise)
    del stylise["write"]
    [toy] = ids(stylise, "MagicToyCheckpoint")
    load = {
        "class_type": "MagicInversionLoad",
        "inputs": {"model": [toy, 0], "file": "portrait_00001_.safetensors"},
    }
    the(stylise, "MagicStyleApply")["inputs"]["content"] = ["load", 0]
    assert server.queue({**stylise, "load": load}).images

    load["inputs"]["model"] = another_model(stylise)

    message = failure(server, {**stylise, "load": load}, "MagicInversionLoad")
    assert "'portrait_00001_.safetensors' was inverted with another model" in message


def test_other_sigmas_than_the_inversion_has(server: ComfyServer, stylise: Prompt) -> None:
    [toy] = ids(stylise, "MagicToyCheckpoint")
    scheduler = {"model": [toy, 0], "scheduler": "karras", "steps": 4, "denoise": 1}
    stylise["sigmas"] = {"class_type": "BasicScheduler", "inputs": scheduler}
    the(stylise, "SamplerCustom")["inputs"]["sigmas"] = ["sigmas", 0]
    message = failure(server, stylise, "SamplerCustom")
    assert "the content was inverted over 2 steps from sigma" in message
    assert "the sampler runs 4 steps" in message
    assert "connect the SIGMAS output of MagicStyle Invert to SamplerCustom" in message


def test_another_size_than_the_inversion_has(server: ComfyServer, stylise: Prompt) -> None:
    stylise["empty"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 192, "height": 128, "batch_size": 1},
    }
    the(stylise, "SamplerCustom")["inputs"]["latent_image"] = ["empty", 0]
    message = failure(server, stylise, "SamplerCustom")
    assert "the content was inverted at 128x128, the sampler runs at 192x128" in message
    assert "connect the LATENT output of MagicStyle Apply to the sampler" in message


def test_empty_mask_of_a_style(server: ComfyServer, stylise: Prompt) -> None:
    stylise["nothing"] = {
        "class_type": "SolidMask",
        "inputs": {"value": 0.0, "width": 128, "height": 128},
    }
    the(stylise, "MagicStyleReference")["inputs"]["mask"] = ["nothing", 0]
    assert "the mask of a style is empty: paint where it acts" in failure(
        server, stylise, "MagicStyleReference"
    )


def test_unknown_layers_of_a_style(server: ComfyServer, stylise: Prompt) -> None:
    the(stylise, "MagicStyleApply")["inputs"]["layers"] = "o77"
    assert "layers: 'o77' has no self-attention in this model" in failure(
        server, stylise, "MagicStyleApply"
    )


# ---- cropping, during the execution ----


@pytest.fixture
def crop() -> Prompt:
    """A portrait's hat, cut out and put back."""
    drawn = {"seed": 549, "part": "hat", "style": "cartoon", "size": 64}
    pasted = {"image": ["portrait", 0], "patch": ["crop", 0], "crop": ["crop", 2], "feather": 0.1}
    return {
        "portrait": {"class_type": "MagicToyPortrait", "inputs": drawn},
        "crop": {
            "class_type": "MagicPortraitCrop",
            "inputs": {
                "image": ["portrait", 0],
                "mask": ["portrait", 1],
                "margin": 0.3,
                "size": 64,
                "square": True,
            },
        },
        "paste": {"class_type": "MagicPortraitPaste", "inputs": pasted},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["paste", 0]}},
    }


def test_nothing_to_cut_out(server: ComfyServer, crop: Prompt) -> None:
    crop["nothing"] = empty_mask(64)
    crop["crop"]["inputs"]["mask"] = ["nothing", 0]
    message = failure(server, crop, "MagicPortraitCrop")
    assert message.startswith(
        "the mask is empty: paint over the part of the picture to cut out, or connect a face mask"
    )


def test_paste_into_another_picture(server: ComfyServer, crop: Prompt) -> None:
    larger = {**crop["portrait"]["inputs"], "size": 128}
    crop["larger"] = {"class_type": "MagicToyPortrait", "inputs": larger}
    crop["paste"]["inputs"]["image"] = ["larger", 0]
    message = failure(server, crop, "MagicPortraitPaste")
    assert "the crop was cut from a picture of 64x64, this one is 128x128" in message
    assert "connect the picture that went into Portrait Crop" in message
