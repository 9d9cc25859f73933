"""Reading folders of the official MagicFace format from ComfyUI's input folder.

<folder>/image/<concept>.jpg and <folder>/mask/<concept>.jpg with equal names, and optionally
config*.yaml (see concept_config.py). Of a cut-out, with a transparent ground, no mask is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...magic.concepts import Concept
from ...magic.messages import shown
from .capture_folder import by_stem
from .concept_config import ConceptConfig, read_config
from .input_folders import (
    PictureFiles,
    files_in,
    find_folder,
    folders_that,
    input_root,
    log_others,
    some_of,
    state_of_files,
)
from .picture_files import read_mask, read_picture

NO_FOLDER = "(no concept folder in ComfyUI's input folder)"


@dataclass(frozen=True)
class ConceptFolder:
    """What a folder holds.

    concepts: in the order of its YAML file, else of their names; prompt: the target prompt, made
    from the names where there is no file; config: what the file asks for, None without one; report:
    what was read and what was not, a line each.
    """

    concepts: tuple[Concept, ...]
    prompt: str
    config: ConceptConfig | None
    report: tuple[str, ...]


def list_folders() -> list[str]:
    """Folders that have image/ and mask/ in them."""
    return folders_that(_suits)


def is_listed(folder: Any) -> bool:
    """Whether `list_folders` has it."""
    return isinstance(folder, str) and find_folder(folder, _suits) is not None


def missing_message(folder: str) -> str:
    return (
        f"concept folder '{shown(folder)}' is not there: put a folder with image/ and mask/ in it"
        f" into {input_root()}"
    )


def state_of(folder: str) -> str:
    """Changes when a file in the folder does."""
    root = _resolve(folder)
    return state_of_files([root / "image", root / "mask", *_config_files(root)])


def read_folder(folder: str, default_strength: float) -> ConceptFolder:
    """ValueError names the file when something is missing, damaged or does not fit."""
    root = _resolve(folder)
    try:
        return _read(root, folder, default_strength)
    except ValueError as error:
        raise ValueError(f"concept folder '{folder}': {error}") from error


def words_at(prompt: str, indices: Sequence[int]) -> list[str]:
    """The words that token indices mean (start token = 0). ValueError when an index is past the
    prompt."""
    if not indices:
        return []
    from comfy.sd1_clip import SD1Tokenizer

    # Its parts are attributes whose names the host makes up.
    tokenizer = vars(SD1Tokenizer())["clip_l"].tokenizer
    owners: list[str] = []
    for word in prompt.split():
        # No further than somebody asks.
        if len(owners) >= max(indices):
            break
        bare = word.strip(",.;:!?")
        owners += [bare] * (len(tokenizer(word)["input_ids"]) - 2)
    for index in indices:
        if not 1 <= index <= len(owners):
            raise ValueError(
                f"ref_index {index} is not in the target prompt '{prompt}', which has the tokens 1"
                f" to {len(owners)}"
            )
    return [owners[index - 1] for index in indices]


def _suits(path: Path) -> bool:
    return (path / "image").is_dir() and (path / "mask").is_dir()


def _resolve(folder: str) -> Path:
    root = find_folder(folder, _suits)
    if root is None:
        raise ValueError(missing_message(folder))
    return root


def _config_files(root: Path) -> list[Path]:
    files = [*root.glob("config*.yaml"), *root.glob("config*.yml")]
    return sorted(path for path in files if path.is_file())


def _read(root: Path, folder: str, default_strength: float) -> ConceptFolder:
    images, masks = files_in(root / "image"), files_in(root / "mask")
    if not images.pictures:
        raise ValueError("image/ has no pictures in it")
    pictures, mask_files = by_stem(images.pictures, "image/"), by_stem(masks.pictures, "mask/")
    configs = _config_files(root)
    config = read_config(configs[0]) if configs else None
    names = sorted(pictures) if config is None else list(config.prompts)
    if unknown := [name for name in names if name not in pictures]:
        raise ValueError(
            f"the YAML file names '{unknown[0]}', but image/ has {some_of(sorted(pictures))}"
        )
    phrases, strengths = _phrases_and_strengths(names, config, default_strength)
    concepts, lines = [], []
    for name, phrase, strength in zip(names, phrases, strengths, strict=True):
        image, mask = _picture_and_mask(pictures[name], mask_files.get(name))
        prompt = "" if config is None else config.prompts[name]
        concepts.append(Concept(phrase, image, mask, prompt, strength))
        of = shown(mask_files[name].name) if name in mask_files else "its own opacity"
        lines.append(f"- {phrase}: {shown(pictures[name].name)}, masked by {of}, {strength:g}")
    left_out = [
        *_left_out("image", images, pictures, names),
        *_left_out("mask", masks, mask_files, names),
        *(shown(path.name) for path in configs[1:]),
    ]
    log_others(folder, left_out)
    target = "a portrait with " + " and ".join(phrases) if config is None else config.target_prompt
    head = f"{folder}: {len(concepts)} concepts (phrase, image, mask, strength)"
    report = [head, *lines, *([f"not read: {some_of(left_out)}"] if left_out else [])]
    return ConceptFolder(tuple(concepts), target, config, tuple(report))


def _left_out(
    place: str, files: PictureFiles, pictures: Iterable[str], names: Sequence[str]
) -> list[str]:
    """What of a folder nobody asked for."""
    others = [shown(name) for name in sorted(pictures) if name not in names]
    return [f"{place}/{name}" for name in (*files.others, *others)]


def _phrases_and_strengths(
    names: Sequence[str], config: ConceptConfig | None, default_strength: float
) -> tuple[list[str], list[float]]:
    phrases, strengths = [shown(name) for name in names], [default_strength] * len(names)
    if config is not None:
        phrases = words_at(config.target_prompt, config.ref_index) or phrases
        strengths = list(config.mask_weights) or strengths
    if not len(names) == len(phrases) == len(strengths):
        raise ValueError(
            f"the YAML file has {len(names)} ref_image_infos, {len(phrases)} ref_index and"
            f" {len(strengths)} mask_weights: as many of each are needed"
        )
    return phrases, strengths


def _picture_and_mask(image: Path, mask: Path | None) -> tuple[Tensor, Tensor]:
    picture = read_picture(image)
    if mask is not None:
        return picture.rgb, read_mask(mask)
    if picture.opacity is not None:
        return picture.rgb, picture.opacity
    raise ValueError(f"image/{shown(image.name)} has no mask: expected mask/{shown(image.name)}")
