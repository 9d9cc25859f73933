"""Concepts as files: pictures, masks and words, of which any model makes its own references.

A safetensors file: `pictures.<i>` (B H W 3) and `mask.<i>` (B or 1, H W) in bytes, and in its
metadata the words, and a small picture where other tools look for one. LoRAs are in it by their
names. Nothing in it is ever executed.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...magic.concepts import LEVELS, LORA_TEXTS, Concept, ConceptLora
from ...magic.curves import Curve
from ...magic.messages import shown
from ...magic.region_texts import PhraseText
from .folders import file_state, listed_file
from .lora_files import load_lora, lora_state
from .safe_files import tensor_bytes, write_numbered

FOLDER_KIND = "magicportrait_concepts"
_MARK, _VERSION = "magicportrait concept", "1"
_SUFFIX = ".safetensors"
_THUMBNAIL = "modelspec.thumbnail"
"""Where other tools look for a picture of a file: a data URL."""
_DATA_URL, _JPEG = "data:image/jpeg;base64,", b"\xff\xd8\xff"
_LARGEST_THUMBNAIL = 200_000
"""Letters that it has at most; ours have some thousands."""
_MOST_CONCEPTS, _MOST_PICTURES, _LONGEST_SIDE, _LONGEST_TEXT = 64, 256, 16_384, 10_000
_MOST_LORAS, _MOST_POINTS = 16, 64
_STRONGEST = 100.0


class UnreadableConcept(ValueError):
    """A file is damaged, or holds no concepts."""


def save_concepts(concepts: Sequence[Concept], name: str, thumbnail: str = "") -> str:
    """Writes a numbered file into output/concepts, and gives its name there. name: may lead into
    folders below; thumbnail: a JPEG in base64. ValueError for concepts that a file cannot hold;
    UnwritableFile (OSError) when it cannot be written."""
    import folder_paths

    root = Path(folder_paths.get_output_directory()) / "concepts"
    [path] = write_numbered(root, name, {_SUFFIX: _content(concepts, thumbnail)})
    return path.relative_to(root).as_posix()


def _content(concepts: Sequence[Concept], thumbnail: str) -> bytes:
    if not 1 <= len(concepts) <= _MOST_CONCEPTS:
        raise ValueError(
            f"there are {len(concepts)} concepts, a file holds 1 to {_MOST_CONCEPTS}: connect a"
            " MagicFace Concept or MagicFace Concept LoRA"
        )
    tensors: dict[str, Tensor] = {}
    for i, concept in enumerate(concepts):
        if concept.images is not None:
            tensors[f"pictures.{i}"] = _as_bytes(torch.stack(list(concept.views)))
        if concept.mask is not None:
            tensors[f"mask.{i}"] = _as_bytes(concept.mask)
    if not tensors:
        # safetensors files of nothing are no files to some readers.
        tensors["nothing"] = torch.zeros(1, dtype=torch.uint8)
    header = json.dumps([_fields_of(concept) for concept in concepts], sort_keys=True)
    metadata = {
        "mark": _MARK,
        "version": _VERSION,
        "concepts": header,
        "checksum": _checksum(header, tensors),
    }
    if thumbnail:
        metadata[_THUMBNAIL] = f"{_DATA_URL}{thumbnail}"
    return tensor_bytes(tensors, metadata)


def _fields_of(concept: Concept) -> dict[str, Any]:
    for lora in concept.loras:
        if not lora.name.endswith(_SUFFIX):
            raise ValueError(
                f"concept '{concept.phrase}' has a LoRA that is no file ({lora.name}): save it with"
                " Save LoRA, and choose the file in MagicFace Concept LoRA"
            )
    return {
        "phrase": concept.phrase,
        "prompt": concept.prompt,
        "strength": concept.strength,
        "level": concept.level,
        "loras": [
            {
                "name": lora.name,
                "strength": lora.strength,
                "text": lora.text,
                "is_global": lora.is_global,
                "is_inside_target": lora.is_inside_target,
                "start": lora.start,
                "end": lora.end,
                "curve": None if lora.curve is None else lora.curve.points,
            }
            for lora in concept.loras
        ],
        **({} if concept.text is None else {"text": _text_of(concept.text)}),
        **_times_of(concept),
    }


def _times_of(concept: Concept) -> dict[str, Any]:
    """Nothing of a concept that acts all the time, as in files from before there were times."""
    options: dict[str, Any] = {"is_away": True} if concept.is_away else {}
    if concept.layer_weights:
        options["layer_weights"] = concept.layer_weights
    if (concept.start, concept.end, concept.curve) == (0.0, 1.0, None):
        return options
    curve = None if concept.curve is None else concept.curve.points
    times = {**options, "start": concept.start, "end": concept.end, "curve": curve}
    if concept.curve is not None and concept.curve.is_of_strength:
        times["is_curve_of_strength"] = True
    return times


def _text_of(text: PhraseText) -> dict[str, Any]:
    return {
        "text": text.text,
        "negative": text.negative,
        "strength": text.strength,
        "is_inside_target": text.is_inside_target,
        "start": text.start,
        "end": text.end,
        "curve": None if text.curve is None else text.curve.points,
    }


def read_concepts(path: Path) -> tuple[Concept, ...]:
    """The concepts of a file, with the LoRAs that it names. UnreadableConcept, with the reason, for
    anything but a whole file of `save_concepts`; ValueError for a LoRA that is not there."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if metadata.get("mark") != _MARK or metadata.get("version") != _VERSION:
                raise UnreadableConcept(
                    f"{path.name} holds no concepts of this version of MagicPortrait: take a file"
                    " that Save Concept wrote"
                )
            fields = _checked_fields(path.name, metadata.get("concepts", ""))
            # The header first: what does not fit is not read.
            names = list(file.keys())
            _check_names(path.name, names, len(fields))
            for name in names:
                part = file.get_slice(name)
                _check_tensor(path.name, name, part.get_shape(), part.get_dtype())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UnreadableConcept(
            f"{path.name} is damaged or no safetensors file: save the concept again"
        ) from error
    if metadata.get("checksum") != _checksum(metadata["concepts"], tensors):
        raise UnreadableConcept(f"{path.name} was changed after it was written")
    concepts = []
    for i, entry in enumerate(fields):
        loras = tuple(_lora(lora) for lora in entry.pop("loras"))
        own, points = entry.pop("text", None), entry.pop("curve", None)
        curve = _curve(points, entry.pop("is_curve_of_strength", False))
        images, mask = (_from_bytes(tensors.get(f"{kind}.{i}")) for kind in ("pictures", "mask"))
        try:
            text = None if own is None else PhraseText(**{**own, "curve": _curve(own["curve"])})
            concepts.append(
                Concept(images=images, mask=mask, loras=loras, text=text, curve=curve, **entry)
            )
        except ValueError as error:
            raise UnreadableConcept(f"{path.name}: {error}") from error
    return tuple(concepts)


def _lora(fields: Mapping[str, Any]) -> ConceptLora:
    own = {**fields, "curve": _curve(fields["curve"])}
    return ConceptLora(weights=load_lora(fields["name"]), **own)


def _curve(points: Sequence[Sequence[float]] | None, is_of_strength: bool = False) -> Curve | None:
    if points is None:
        return None
    return Curve(tuple((share, at) for share, at in points), is_of_strength)


def _checked_fields(file: str, header: str) -> list[dict[str, Any]]:
    """What a file says of its concepts, each field of its kind and in its range."""
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise UnreadableConcept(f"{file} does not say what its concepts are") from error
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MOST_CONCEPTS:
        raise UnreadableConcept(f"{file} does not hold 1 to {_MOST_CONCEPTS} concepts")
    for entry in entries:
        _check_fields(file, entry, _FIELDS, _MORE_FIELDS)
        for lora in entry["loras"]:
            _check_fields(file, lora, _LORA_FIELDS)
        if "text" in entry:
            _check_fields(file, entry["text"], _TEXT_FIELDS)
    return entries


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_strength(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= _STRONGEST


def _is_share(value: Any) -> bool:
    return _is_strength(value) and 0 <= value <= 1


def _is_curve(value: Any) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, list)
        and 1 <= len(value) <= _MOST_POINTS
        and all(isinstance(point, list) and len(point) == 2 for point in value)
        and all(_is_share(share) and _is_strength(strength) for share, strength in value)
        and all(first[0] < second[0] for first, second in itertools.pairwise(value))
    )


_FIELDS = {
    "phrase": _is_text,
    "prompt": _is_text,
    "strength": _is_strength,
    "level": lambda value: value is None or value in LEVELS,
    "loras": lambda value: isinstance(value, list) and len(value) <= _MOST_LORAS,
}
_MORE_FIELDS = {
    "text": lambda value: isinstance(value, dict),
    "start": _is_share,
    "end": _is_share,
    "curve": _is_curve,
    "is_curve_of_strength": lambda value: isinstance(value, bool),
    "is_away": lambda value: isinstance(value, bool),
    "layer_weights": _is_text,
}
"""Only in the files of concepts that have them."""
_TEXT_FIELDS = {
    "text": _is_text,
    "negative": _is_text,
    "strength": _is_share,
    "is_inside_target": lambda value: isinstance(value, bool),
    "start": _is_share,
    "end": _is_share,
    "curve": _is_curve,
}
_LORA_FIELDS = {
    "name": _is_text,
    "strength": _is_strength,
    "text": lambda value: value in LORA_TEXTS,
    "is_global": lambda value: isinstance(value, bool),
    "is_inside_target": lambda value: isinstance(value, bool),
    "start": _is_share,
    "end": _is_share,
    "curve": _is_curve,
}


def _check_fields(
    file: str, entry: Any, fields: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> None:
    """more: fields that may be missing."""
    checks = {**fields, **(more or {})}
    if not isinstance(entry, dict) or not fields.keys() <= entry.keys() <= checks.keys():
        raise UnreadableConcept(f"{file} does not say what its concepts are")
    for name, is_right in checks.items():
        if name in entry and not is_right(entry[name]):
            raise UnreadableConcept(f"{file}: its {name} cannot be {entry[name]!r:.40}")


def _check_names(file: str, names: Sequence[str], concepts: int) -> None:
    expected = {f"{kind}.{i}" for kind in ("pictures", "mask") for i in range(concepts)}
    if strange := sorted({*names} - expected - {"nothing"}):
        raise UnreadableConcept(
            f"{file} has '{strange[0]:.40}' in it, which is no part of concepts"
        )


def _check_tensor(file: str, name: str, shape: Sequence[int], kind: str) -> None:
    """Bytes, in a shape that pictures or masks can have."""
    sizes = {"pictures": 4, "mask": 3}.get(name.split(".")[0], 1)
    is_right = kind == "U8" and len(shape) == sizes
    if is_right and sizes > 1:
        count, *sides = shape[:3]
        is_right = 1 <= count <= _MOST_PICTURES and all(1 <= s <= _LONGEST_SIDE for s in sides)
        is_right = is_right and (sizes == 3 or shape[3] == 3)
    if not is_right:
        raise UnreadableConcept(
            f"{file}: {name} is {kind} of shape {list(shape)}, which no pictures have"
        )


def _as_bytes(x: Tensor) -> Tensor:
    return (x.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)


def _from_bytes(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float() / 255


def _checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(header.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def list_files() -> list[str]:
    """The user's files, as `path_of` takes them: of output/concepts, where Save puts them, and of
    models/concepts."""
    import folder_paths

    if FOLDER_KIND not in folder_paths.folder_names_and_paths:
        for parent in (folder_paths.models_dir, folder_paths.get_output_directory()):
            folder_paths.add_model_folder_path(FOLDER_KIND, os.path.join(parent, "concepts"))
        folder_paths.folder_names_and_paths[FOLDER_KIND][1].add(_SUFFIX)
    return list(folder_paths.get_filename_list(FOLDER_KIND))


def path_of(name: str) -> Path:
    """The path of a listed file. ValueError for any other name."""
    path = listed_file(FOLDER_KIND, name, list_files())
    if path is None:
        raise ValueError(
            f"concept file '{shown(name)}' is not there: save one with Save Concept, or put it into"
            " models/concepts"
        )
    return path


def state_of(name: str) -> str:
    """Another text whenever a listed file, or a LoRA that it names, is another one; empty when
    it is not there."""
    try:
        path = path_of(name)
    except ValueError:
        return ""
    return "; ".join([file_state(path), *map(lora_state, _loras_named_in(path))])


def picture_in(path: Path) -> bytes | None:
    """The small picture of a file, a JPEG; None of a file that has none, and of one that is damaged
    or something else. Only the file's header is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
    except (SafetensorError, OSError):
        return None
    url = metadata.get(_THUMBNAIL, "")
    if metadata.get("mark") != _MARK or not url.startswith(_DATA_URL):
        return None
    if len(url) > _LARGEST_THUMBNAIL:
        return None
    try:
        picture = base64.b64decode(url[len(_DATA_URL) :], validate=True)
    except ValueError:
        return None
    return picture if picture.startswith(_JPEG) else None


def _loras_named_in(path: Path) -> list[str]:
    """None of a file that cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            fields = _checked_fields(path.name, (file.metadata() or {}).get("concepts", ""))
    except (SafetensorError, OSError, UnreadableConcept):
        return []
    return [lora["name"] for entry in fields for lora in entry["loras"]]
