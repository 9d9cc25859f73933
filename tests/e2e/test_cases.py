"""Graphs that went wrong once, silently or with a message that did not help. Each is a prompt in
cases/; some need stub_pack, the nodes of which do what other packs do."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from comfy_server import ComfyServer, ExecutionFailed, ValidationFailed
from workflow_files import Prompt, ids, the

CASES = Path(__file__).parent / "cases"
ALL = sorted(path.stem for path in CASES.glob("*.json"))
SAME = 0.004
"""The root mean square of what two pictures (0..1) differ by that shall be the same: one step of
eight bits, which is what sums in another order may do."""

PENDING: dict[str, str] = {}
"""Cases that are wrong still, and why: a case that is mended must go from here."""

REFUSALS = {
    "context_windows": r"context window",
    "loadimage_mask_without_alpha": r"mask .*empty.*(paint|MaskEditor)",
    "magicstyle_add_noise": r"add_noise",
    "magicstyle_noise_mask": r"noise mask",
    "mask_boxes_without_height": r"box.*height",
    "mask_inf_box": r"box",
    "mask_missing_detector": r"Required input is missing.*detector",
    "missing_start": r"Required input is missing.*start",
    "own_calls": r"another node calls the model .* uuids",
    "placeholder_is_class_word": r"'woman'.*template",
    "refine_feather_nan": r"feather",
    "silent_halves": r"another node runs a part of the batch at a time",
    "strength_nan": r"strength",
}
"""What is refused, and what the sentence that helps must say."""


def stub(prompt: Prompt) -> str:
    [kind] = {
        data["class_type"] for data in prompt.values() if data["class_type"].startswith("Stub")
    }
    return kind


def without(prompt: Prompt, kind: str) -> Prompt:
    """The prompt without the nodes of a type: what they give is what comes in as `model`."""
    dropped = {node: prompt[node]["inputs"]["model"] for node in ids(prompt, kind)}
    kept = {node: copy.deepcopy(data) for node, data in prompt.items() if node not in dropped}
    for data in kept.values():
        for name, value in data["inputs"].items():
            while isinstance(value, list) and value[0] in dropped:
                value = data["inputs"][name] = dropped[value[0]]
    return kept


def read(name: str) -> Prompt:
    prompt: Prompt = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))
    return prompt


class Runner:
    """Runs prompts; what the same prompt gave is remembered."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self._pictures: dict[str, dict[str, np.ndarray]] = {}

    def pictures(self, prompt: Prompt) -> dict[str, np.ndarray]:
        """All pictures by the node that shows them, batch x height x width x 3 in 0..1."""
        key = json.dumps(prompt, sort_keys=True)
        if key not in self._pictures:
            self._pictures[key] = {
                node: np.stack(
                    [np.asarray(self.server.fetch_image(each)) / 255 for each in shown["images"]]
                )
                for node, shown in self.server.queue(prompt).outputs.items()
                if "images" in shown
            }
        return self._pictures[key]

    def refusal(self, prompt: Prompt) -> str:
        """The message with which a prompt is refused, by /prompt or before anything is sampled."""
        try:
            self.server.queue(prompt)
        except ValidationFailed as error:
            return str(error)
        except ExecutionFailed as error:
            assert error.details["exception_type"] == "ValueError", error
            assert not error.result.steps_of[error.details["node_id"]], "it was sampled for nothing"
            return str(error.details["exception_message"])
        pytest.fail("it ran without a word")


@pytest.fixture(scope="module")
def runner(server: ComfyServer) -> Iterator[Runner]:
    yield Runner(server)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    assert first.shape == second.shape
    return float(np.sqrt(np.mean((first - second) ** 2)))


# ---- what the right picture is ----


def is_as_without_the_stub(runner: Runner, prompt: Prompt) -> None:
    expected = runner.pictures(without(prompt, stub(prompt)))
    for node, pictures in runner.pictures(prompt).items():
        assert difference(pictures, expected[node]) < SAME, node


def is_as_zeros_of_a_plain_encoder(runner: Runner, prompt: Prompt) -> None:
    plain = copy.deepcopy(prompt)
    plain["plain"] = {
        "class_type": "CLIPTextEncode",
        "inputs": {"clip": ["toy", 1], "text": the(prompt, "MagicFaceApply")["inputs"]["prompt"]},
    }
    plain["z"]["inputs"]["conditioning"] = ["plain", 0]
    assert difference(runner.pictures(prompt)["show"], runner.pictures(plain)["show"]) < SAME


def is_the_same_in_two_stages(runner: Runner, prompt: Prompt) -> None:
    pictures = runner.pictures(prompt)
    assert difference(pictures["show"], pictures["show2"]) < SAME


def is_as_with_the_lora_loaded(runner: Runner, prompt: Prompt) -> None:
    write_lora(runner.server.base / "models" / "loras" / "toy.safetensors")
    loaded = copy.deepcopy(prompt)
    loaded["lora"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["toy", 0], "lora_name": "toy.safetensors", "strength_model": 1.0},
    }
    loaded["apply"]["inputs"]["model"] = ["lora", 0]
    loaded["sampler"]["inputs"].update(positive=["apply", 1], negative=["neg", 0])
    for node in ("hk", "p"):
        del loaded[node]
    plain = copy.deepcopy(loaded)
    plain["apply"]["inputs"]["model"] = ["toy", 0]
    expected = runner.pictures(loaded)["show"]
    assert difference(runner.pictures(plain)["show"], expected) > 10 * SAME, "the LoRA does nothing"
    assert difference(runner.pictures(prompt)["show"], expected) < SAME


def write_lora(path: Path) -> None:
    """A LoRA of some attention layers of the toy's UNet, from fixed random numbers."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for block in range(4):
        for layer in ("attn1", "attn2"):
            transformer = f"diffusion_model.output_blocks.{block}.1.transformer_blocks.0"
            name = f"{transformer}.{layer}.to_out.0"
            weights[f"{name}.lora_up.weight"] = torch.randn(128, 4, generator=generator) / 6
            weights[f"{name}.lora_down.weight"] = torch.randn(4, 128, generator=generator) / 6
    path.parent.mkdir(exist_ok=True)
    save_file(weights, path)


def is_of_the_pictures_that_were_picked(runner: Runner, prompt: Prompt) -> None:
    everything = copy.deepcopy(prompt)
    everything["decode"]["inputs"]["samples"] = ["sampler", 0]
    everything["masks"]["inputs"].update(samples=["sampler", 0], image=["decode", 0])
    expected = runner.pictures(everything)["show2"][2:4]
    assert difference(runner.pictures(prompt)["show2"], expected) < SAME


def is_laid_out_as_at_a_cfg_slightly_above_1(runner: Runner, prompt: Prompt) -> None:
    above = copy.deepcopy(prompt)
    the(above, "KSampler")["inputs"]["cfg"] = 1.01
    expected, actual = (runner.pictures(each) for each in (above, prompt))
    masks = [each["m"][..., 0] > 0.5 for each in (expected, actual)]
    overlaps = (masks[0] & masks[1]).sum((1, 2)) / (masks[0] | masks[1]).sum((1, 2))
    assert overlaps.min() > 0.5, overlaps
    assert np.mean((expected["fg"] > 0.5) == (actual["fg"] > 0.5)) > 0.7


def is_guided_by_what_the_function_gives(runner: Runner, prompt: Prompt) -> None:
    """The first picture is guided with CFG 2, the second with the sampler's 4."""
    plain = without(prompt, "VideoLinearCFGGuidance")
    the(plain, "KSampler")["inputs"]["cfg"] = 2.0
    pictures, expected = (runner.pictures(each)["img"] for each in (prompt, plain))
    assert difference(pictures[0], expected[0]) < SAME


def is_as_with_the_hosts_guider(runner: Runner, prompt: Prompt) -> None:
    usual = copy.deepcopy(prompt)
    the(usual, "StubListCfgGuider")["class_type"] = "CFGGuider"
    assert difference(runner.pictures(prompt)["img"], runner.pictures(usual)["img"]) < SAME


def is_as_with_euler(runner: Runner, prompt: Prompt) -> None:
    usual = copy.deepcopy(prompt)
    own = the(usual, "StubPictureByPicture")
    own.update(class_type="KSamplerSelect", inputs={"sampler_name": "euler"})
    expected = runner.pictures(usual)["img"]
    assert difference(runner.pictures(prompt)["img"], expected) < SAME


def has_references_on_the_way_back_too(runner: Runner, prompt: Prompt) -> None:
    """Further from the plain model's picture than with references on the way there only, and with a
    layout of a step behind the way back."""
    pictures = runner.pictures(prompt)
    plain, early = copy.deepcopy(prompt), copy.deepcopy(prompt)
    apply = the(plain, "MagicFaceApply")["inputs"]
    apply.update(start=1.0)
    the(early, "MagicFaceApply")["inputs"].update(end=0.3)
    distances = [
        difference(pictures["img"], runner.pictures(other)["img"]) for other in (plain, early)
    ]
    assert min(distances) > 10 * SAME, distances
    assert np.isfinite(pictures["lay"]).all()


def is_laid_out_as_the_smaller_picture(runner: Runner, prompt: Prompt) -> None:
    """A second run on the enlarged latent, with masks of its own size."""
    pictures = runner.pictures(prompt)
    small, large = (pictures[name][..., 0] > 0.5 for name in ("showfg", "showfg2"))
    assert large.shape[1:] == pictures["img2"].shape[1:3] == (192, 192)
    rows = np.arange(192) * 128 // 192
    enlarged = small[:, rows][:, :, rows]
    assert (enlarged & large).sum() / (enlarged | large).sum() > 0.7


def is_the_same_with_kept_features(runner: Runner, prompt: Prompt) -> None:
    """The first run computes the features of the references, the second takes them from memory."""
    first = copy.deepcopy(prompt)
    [again] = ids(first, "LatentMultiply")
    latent = first.pop(again)["inputs"]["samples"]
    the(first, "KSampler")["inputs"]["latent_image"] = latent
    expected = runner.pictures(first)
    for node, pictures in runner.pictures(prompt).items():
        assert np.isfinite(pictures).all()
        assert difference(pictures, expected[node]) < SAME, node


def is_inverted_or_refused_by_name(runner: Runner, prompt: Prompt) -> None:
    try:
        runner.server.queue(prompt)
    except ExecutionFailed as error:
        assert error.details["exception_type"] == "ValueError", error
        assert "EasyCache" in error.details["exception_message"]


def has_references_or_is_refused_by_name(runner: Runner, prompt: Prompt) -> None:
    expected = runner.pictures(without(prompt, stub(prompt)))
    try:
        pictures = runner.pictures(prompt)
    except ExecutionFailed as error:
        assert error.details["exception_type"] == "ValueError", error
        message = error.details["exception_message"]
        assert re.search(r"another node .*(model call|calls the model)", message), message
    else:
        assert difference(pictures["img"], expected["img"]) < SAME


EXPECTATIONS: dict[str, Callable[[Runner, Prompt], None]] = {
    "cfg1_face": is_laid_out_as_at_a_cfg_slightly_above_1,
    "couple": is_as_without_the_stub,
    "deepcopy_face": is_as_without_the_stub,
    "deepcopy_style": is_as_without_the_stub,
    "halves": is_as_without_the_stub,
    "invert_easy_cache": is_inverted_or_refused_by_name,
    "larger_in_a_second_run": is_laid_out_as_the_smaller_picture,
    "latent_from_batch_layout_masks": is_of_the_pictures_that_were_picked,
    "linear_cfg": is_guided_by_what_the_function_gives,
    "list_cfg_guider": is_as_with_the_hosts_guider,
    "long_keys": is_as_without_the_stub,
    "lora_hook_on_conditioning": is_as_with_the_lora_loaded,
    "no_cond_scale": is_as_without_the_stub,
    "no_precision": is_as_without_the_stub,
    "own_options": has_references_or_is_refused_by_name,
    "picture_by_picture": is_as_with_euler,
    "restart": has_references_on_the_way_back_too,
    "run_twice": is_as_without_the_stub,
    "step_cache": is_the_same_with_kept_features,
    "two_stages_vs_one": is_the_same_in_two_stages,
    "zero_out_as_negative": is_as_zeros_of_a_plain_encoder,
}


def test_every_case_has_its_expectation() -> None:
    assert sorted([*EXPECTATIONS, *REFUSALS]) == ALL
    assert set(PENDING) <= set(ALL)


def cases(names: Any) -> list[Any]:
    """The cases by name; those that are wrong still must fail."""
    return [
        pytest.param(
            name,
            marks=pytest.mark.xfail(reason=PENDING[name], strict=True) if name in PENDING else (),
        )
        for name in sorted(names)
    ]


@pytest.mark.parametrize("name", cases(EXPECTATIONS))
def test_the_picture_is_right(runner: Runner, name: str) -> None:
    EXPECTATIONS[name](runner, read(name))


@pytest.mark.parametrize("name", cases(REFUSALS))
def test_what_cannot_be_is_refused_with_the_sentence_that_helps(runner: Runner, name: str) -> None:
    message = runner.refusal(read(name))
    assert re.search(REFUSALS[name], message, re.IGNORECASE | re.DOTALL), message
