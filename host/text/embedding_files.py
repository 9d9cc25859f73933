"""Learned words as files of the host's embeddings folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ...magic.capture_sets import check_placeholder
from ...magic.messages import shown
from ...magic.typed import unseen_in
from ..models.folders import listed_file, listed_state
from ..models.safe_files import UnwritableFile, tensor_bytes, write_new_file
from .clip import NAMES, encoder_of_width
from .learned_words import Embedding

_KNOWN_FORMATS = (
    "one tensor of any name (SD1.5 and SD2.1), or one for each text encoder of SDXL, named clip_l"
    " and clip_g"
)
_MOST_VECTORS = 1000


def save_embedding(embedding: Embedding, name: str) -> Path:
    """Writes a file that 'embedding:<name>' finds into the first embeddings folder; never over
    another file. ValueError when that cannot be."""
    import folder_paths

    # After 'embedding:' the host reads as far as the first space.
    if not name or not all(map(_is_of_a_name, name)) or unseen_in(name):
        raise ValueError(f"file name '{shown(name)}' must consist of letters, digits, '-' and '_'")
    folders = folder_paths.get_folder_paths("embeddings")
    if not folders:
        raise ValueError("ComfyUI has no embeddings folder to write into")
    # One encoder: the key that other tools read as well. Two: a key for each, as in SDXL embeddings
    # everywhere.
    vectors = {key: vector.detach().float() for key, vector in embedding.vectors.items()}
    tensors = vectors if len(vectors) > 1 else {"emb_params": next(iter(vectors.values()))}
    content = tensor_bytes(
        tensors, {"placeholder": embedding.placeholder, "encoders": ",".join(vectors)}
    )
    for number in range(1, 10_000):
        path = Path(folders[0]) / f"{name}{f'_{number}' if number > 1 else ''}.safetensors"
        try:
            if write_new_file(path, content):
                return path
        except UnwritableFile as error:
            raise ValueError(f"the learned word could not be saved: {error}") from error
    raise ValueError(f"there are 9999 embeddings named '{name}' already: take another name")


def name_part(placeholder: str) -> str:
    """What a file's name has of a placeholder: its letters and digits."""
    return "".join(
        character for character in placeholder if _is_of_a_name(character) and character not in "-_"
    )


def _is_of_a_name(character: str) -> bool:
    """Whether it is a letter, a digit, '-' or '_', or belongs to a letter: as accents do that are
    written by themselves, vowels of Thai and Hindi, and what joins letters."""
    is_mark = unicodedata.category(character).startswith("M") or character in "\u200c\u200d"
    return is_mark or bool(re.fullmatch(r"[\w\-]", character))


def load_embedding(name: str, placeholder: str) -> Embedding:
    """Reads a safetensors file of the embeddings folders. placeholder: empty for the one in the
    file, or the file's name. ValueError when the file is not there, or no embedding of ours or of a
    common format."""
    from safetensors import SafetensorError, safe_open

    path = embedding_path(name)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: dict[str, str] = file.metadata() or {}
            # The header first: a file of gigabytes is no embedding, and is not read.
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            _check_shapes(name, shapes, _encoders(metadata))
            vectors = {key: file.get_tensor(key).float() for key in shapes}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"embedding '{name}' cannot be read as a safetensors file: fetch it again"
        ) from error
    vectors = {key: tensor.reshape(-1, tensor.shape[-1]) for key, tensor in vectors.items()}
    if bad := [key for key, tensor in vectors.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"embedding '{name}' has numbers that are none (NaN or infinite) in {bad[0]}: its"
            " training has failed"
        )
    word = placeholder or metadata.get("placeholder") or Path(name).stem
    try:
        check_placeholder(word)
    except ValueError as error:
        raise ValueError(f"embedding '{name}': {error}. Write one into 'placeholder'") from error
    return Embedding(word, _by_encoder(vectors, metadata))


def embedding_path(name: str) -> Path:
    """The path of a listed file. ValueError for any other name."""
    import folder_paths

    names = folder_paths.get_filename_list("embeddings") if name.endswith(".safetensors") else ()
    path = listed_file("embeddings", name, names)
    if path is None:
        raise ValueError(
            f"embedding '{shown(name)}' is not among the safetensors files of ComfyUI's embeddings"
            " folder"
        )
    return path


def embedding_state(name: str) -> str:
    """Another text whenever a listed file is another one; empty where it is not there."""
    return listed_state(embedding_path, name)


def _encoders(metadata: Mapping[str, str]) -> list[str]:
    """Which text encoders a file of ours says that it is for."""
    return [name for name in metadata.get("encoders", "").split(",") if name]


def _check_shapes(name: str, shapes: Mapping[str, list[int]], encoders: Sequence[str]) -> None:
    """ValueError for a file that does not look like one word. encoders: that it names itself."""
    if not shapes:
        raise ValueError(f"embedding '{name}' is empty")
    if len(shapes) > 1 and not shapes.keys() <= {*NAMES, *encoders}:
        keys = ", ".join(f"'{key}'" for key in list(shapes)[:4])
        raise ValueError(
            f"embedding '{name}' holds {len(shapes)} tensors ({keys}{', ...' * (len(shapes) > 4)}):"
            f" this format is not known. Known is {_KNOWN_FORMATS}"
        )
    for key, shape in shapes.items():
        *counts, width = shape or [0]
        if width < 1 or any(count != 1 for count in counts[:-1]):
            raise ValueError(
                f"embedding '{name}' holds a tensor of shape {shape} in {key}: the vectors of a"
                " word (vectors x numbers) were expected"
            )
        count = counts[-1] if counts else 1
        if not 1 <= count <= _MOST_VECTORS:
            raise ValueError(
                f"embedding '{name}' has {count} vectors in {key}, expected 1 to {_MOST_VECTORS}:"
                " it is no learned word"
            )


def _by_encoder(vectors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """What a file of one tensor is for can only be told by its width, where it does not say."""
    if len(vectors) > 1:
        return vectors
    [(key, tensor)] = vectors.items()
    candidates = (name for name in (key, *_encoders(metadata)) if name in NAMES or name != key)
    encoder = next(candidates, None)
    return {encoder or encoder_of_width(tensor.shape[1]): tensor}
