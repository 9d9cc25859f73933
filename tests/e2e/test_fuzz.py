"""Random prompts: each runs, or is refused with a sentence of ours or of the host's, and none takes
the server with it. MAGICPORTRAIT_FUZZ=2000 runs more of them, MAGICPORTRAIT_FUZZ_FROM=500 others;
a failure names the numbers of its prompts."""

from __future__ import annotations

import collections
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_server import ComfyServer, ExecutionFailed, ValidationFailed
from devkit.pack import PACK_NAME, DevError
from random_prompts import PREFIXES, RandomPrompts, defaults_of
from workflow_files import Prompt

COUNT = int(os.environ.get("MAGICPORTRAIT_FUZZ", "500"))
FIRST = int(os.environ.get("MAGICPORTRAIT_FUZZ_FROM", "0"))
SILENCE = 60.0
"""Seconds after which a prompt counts as hanging."""

KNOWN: tuple[str, ...] = ()
"""What is still to be mended, as patterns of `complaint`."""


def complaint(server: ComfyServer, info: dict[str, Any], prompt: Prompt) -> str | None:
    """What is wrong with how a prompt ended: None when it ran, or was refused with a sentence."""
    try:
        result = server.run(prompt, silence=SILENCE)
    except ValidationFailed as error:
        return complaint_about_refusal(error)
    except ExecutionFailed as error:
        return complaint_about_failure(error.details)
    except DevError as error:
        return f"the server: {str(error).splitlines()[0]}"
    return unnoticed_number(info, {node: prompt[node] for node in result.executed})


def complaint_about_refusal(error: ValidationFailed) -> str | None:
    """By /prompt, before the run."""
    if error.status not in (200, 400):
        return f"status {error.status}: {error}"
    for node in (error.body.get("node_errors") or {}).values():
        for each in node["errors"]:
            if each["type"].startswith("exception_during"):
                details = {**each["extra_info"], "node_type": node["class_type"]}
                if raw := complaint_about_failure(details):
                    return f"{raw}, in the validation"
    return None


def complaint_about_failure(details: dict[str, Any]) -> str | None:
    """By a node. A sentence is a ValueError, or an exception of a class of ours, that our code
    raised itself: the innermost call is ours, and its line is a `raise`."""
    *_, innermost = details["traceback"]
    place, *lines = innermost.strip().splitlines()
    is_raised = bool(lines) and lines[0].strip().startswith("raise ")
    kind = details["exception_type"]
    if (kind == "ValueError" or PACK_NAME in kind) and PACK_NAME in place and is_raised:
        return None
    where = re.sub(r'^File ".*?([^/\\]+)", line (\d+), in ', r"\1:\2 ", place)
    message = details["exception_message"].strip().splitlines()
    return f"{details['node_type']}: {kind}: {message[0] if message else ''} ({where})"


def unnoticed_number(info: dict[str, Any], prompt: Prompt) -> str | None:
    """A node of ours that ran with a number that is none."""
    for data in prompt.values():
        kind, inputs = data["class_type"], data["inputs"]
        for name, value in inputs.items() if kind.startswith(PREFIXES) else ():
            is_number = type_of(info, kind, name) in ("INT", "FLOAT")
            if is_number and isinstance(value, float) and not math.isfinite(value):
                return f"{kind}: ran with {name} {value}"
    return None


def type_of(info: dict[str, Any], kind: str, name: str) -> Any:
    sections = info[kind]["input"]
    declared = {**sections.get("required", {}), **sections.get("optional", {})}
    return declared[name][0] if name in declared else None


@pytest.fixture(scope="module")
def prompts(server: ComfyServer) -> RandomPrompts:
    """With files in the folders that nodes read from."""
    write_folders(server.input_dir)
    server.run(writing_files(server.object_info()))
    return RandomPrompts(server.object_info())


def write_folders(folder: Path) -> None:
    """A concept, and pictures of a person."""
    picture = Image.new("RGB", (64, 64), "teal")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (10, 10, 40, 40))
    for place in ("concept/image", "concept/mask", "person"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    picture.save(folder / "concept" / "image" / "hat.png")
    mask.save(folder / "concept" / "mask" / "hat.png")
    for number in range(2):
        picture.save(folder / "person" / f"{number}.png")


def writing_files(info: dict[str, Any]) -> Prompt:
    """A prompt that saves an inversion, two learned words and a concept."""
    toy = {"model": ["toy", 0], "clip": ["toy", 1], "vae": ["toy", 2]}
    words = {"subject": ["subject", 0], "style": ["style", 0]}
    nodes = {
        "toy": ("MagicToyCheckpoint", {}),
        "pair": ("MagicToyCapture", {"count": 1, "size": 64}),
        "invert": ("MagicStyleInvert", {**toy, "image": ["pair", 0], "steps": 2}),
        "save": ("MagicInversionSave", {"inversion": ["invert", 0]}),
        "concept": ("MagicFaceConcept", {"image": ["pair", 0], "mask": ["pair", 1]}),
        "keep": ("MagicConceptSave", {"concepts": ["concept", 0]}),
        "subject": ("MagiCaptureSubject", {"images": ["pair", 0], "faces": ["pair", 1]}),
        "style": ("MagiCaptureStyle", {"images": ["pair", 2], "faces": ["pair", 3]}),
        "train": ("MagiCaptureTrain", {**toy, **words, "inversion_steps": 1, "lora_steps": 0}),
        "write": ("MagicEmbeddingSave", {"embeddings": ["train", 1]}),
    }
    return {
        node: {"class_type": kind, "inputs": {**defaults_of(info, kind), **inputs}}
        for node, (kind, inputs) in nodes.items()
    }


def test_random_prompts_run_or_are_refused_with_a_sentence(
    server: ComfyServer, prompts: RandomPrompts
) -> None:
    numbers: dict[str, list[int]] = collections.defaultdict(list)
    for number in range(FIRST, FIRST + COUNT):
        if (raw := complaint(server, prompts.info, prompts[number])) and not any(
            re.search(pattern, raw) for pattern in KNOWN
        ):
            numbers[raw].append(number)
    assert not numbers, "\n".join(f"{raw}: {found[:5]}" for raw, found in sorted(numbers.items()))


def test_the_same_number_gives_the_same_prompt(prompts: RandomPrompts) -> None:
    assert repr(prompts[3]) == repr(prompts[3])
    kinds = {data["class_type"] for number in range(COUNT) for data in prompts[number].values()}
    assert set(prompts.ours) <= kinds, "a node of ours is never tried"
