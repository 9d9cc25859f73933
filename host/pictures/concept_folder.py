"""Reading folders of the official MagicFace format from ComfyUI's input folder.

<folder>/image/<concept>.jpg and <folder>/mask/<concept>.jpg with equal names, and optionally
config*.yaml with `ref_image_infos` (path -> reference prompt, in order), `target_prompt`,
`ref_index` (each concept's token in it, start token = 0), `mask_weights`, `ca_scale` and
`negative_prompt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...magic.concepts import Concept
from .input_folders import (
    folder_state,
    folders_with,
    input_root,
    pictures_in,
    read_image,
    read_mask,
)

NO_FOLDER = "(no concept folder in ComfyUI's input folder)"


@dataclass(frozen=True)
class ConceptFolder:
    """What a folder holds.

    concepts: in the order of its YAML file, else of their names; prompt: the target prompt, made
    from the names where the folder does not say; negative_prompt: empty where it does not say;
    ca_scale: as of MagicFace Apply, 0 where it does not say.
    """

    concepts: tuple[Concept, ...]
    prompt: str
    negative_prompt: str
    ca_scale: float


def list_folders() -> list[str]:
    """Folders that have image/ and mask/ in them."""
    return folders_with(lambda path: (path / "image").is_dir() and (path / "mask").is_dir())


def missing_message(folder: str) -> str:
    return (
        f"concept folder '{folder}' is not there: put a folder with image/ and mask/ in it into"
        f" {input_root()}"
    )


def state_of(folder: str) -> str:
    """Changes when a file in the folder does."""
    return folder_state(_resolve(folder))


def read_folder(folder: str, default_strength: float) -> ConceptFolder:
    """ValueError names the file when something is missing or does not fit."""
    root = _resolve(folder)
    images = {path.stem: path for path in pictures_in(root / "image")}
    masks = {path.stem: path for path in pictures_in(root / "mask")}
    if not images:
        raise ValueError(f"concept folder '{folder}': image/ has no pictures in it")
    if unmasked := sorted(set(images) - set(masks)):
        raise ValueError(
            f"concept folder '{folder}': image/{images[unmasked[0]].name} has no mask: expected"
            f" mask/{images[unmasked[0]].name}"
        )
    config = _read_config(root)
    if config is None:
        names = sorted(images)
        prompts, phrases, strengths = ["" for _ in names], names, [default_strength] * len(names)
        target = "a portrait with " + " and ".join(names)
    else:
        infos = config.get("ref_image_infos") or {}
        names = [PurePosixPath(str(path)).stem for path in infos]
        if unknown := [name for name in names if name not in images]:
            raise ValueError(
                f"concept folder '{folder}': the YAML file names '{unknown[0]}', but image/ has"
                f" {', '.join(sorted(images))}"
            )
        target = str(config.get("target_prompt", ""))
        null_prompts = bool(config.get("use_null_ref_prompts", False))
        prompts = [" " if null_prompts else str(prompt) for prompt in infos.values()]
        phrases = words_at(target, [int(index) for index in config.get("ref_index") or []]) or names
        strengths = [float(weight) for weight in config.get("mask_weights") or []] or [
            default_strength
        ] * len(names)
        if not len(names) == len(phrases) == len(strengths):
            raise ValueError(
                f"concept folder '{folder}': the YAML file has {len(names)} ref_image_infos,"
                f" {len(phrases)} ref_index and {len(strengths)} mask_weights: as many of each are"
                " needed"
            )
    concepts = tuple(
        Concept(phrase, read_image(images[name]), read_mask(masks[name]), prompt, strength)
        for name, prompt, phrase, strength in zip(names, prompts, phrases, strengths, strict=True)
    )
    config = config or {}
    return ConceptFolder(
        concepts, target, str(config.get("negative_prompt", "")), float(config.get("ca_scale", 0.0))
    )


def words_at(prompt: str, indices: list[int]) -> list[str]:
    """The words that token indices mean (start token = 0). ValueError when an index is past the
    prompt."""
    from comfy.sd1_clip import SD1Tokenizer

    # Its parts are attributes whose names the host makes up.
    tokenizer = vars(SD1Tokenizer())["clip_l"].tokenizer
    owners: list[str] = []
    for word in prompt.split():
        bare = word.strip(",.;:!?")
        owners += [bare] * (len(tokenizer(word)["input_ids"]) - 2)
    for index in indices:
        if not 1 <= index <= len(owners):
            raise ValueError(
                f"ref_index {index} is not in the target prompt '{prompt}', which has the tokens 1"
                f" to {len(owners)}"
            )
    return [owners[index - 1] for index in indices]


def _resolve(folder: str) -> Path:
    if folder not in list_folders():
        raise ValueError(missing_message(folder))
    return input_root() / folder


def _read_config(root: Path) -> dict[str, Any] | None:
    import yaml

    files = sorted([*root.glob("config*.yaml"), *root.glob("config*.yml")])
    if not files:
        return None
    config = yaml.safe_load(files[0].read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{files[0].name} is not a YAML mapping of settings")
    return config
