"""Learned words: vectors that stand for a placeholder in any prompt, in memory and as files."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...magic.capture_sets import check_placeholder

_FIRST_STAND_IN = 0xE000
"""A private-use character, which no vocabulary and no prompt has, stands for each vector while the
text is cut into tokens."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """A learned word. vectors: for each text encoder of the host ('clip_l', 'clip_g', 'clip_h') its
    N C vectors."""

    placeholder: str
    vectors: Mapping[str, Tensor]


class PlaceholderTokenizer:
    """A tokenizer of the host that also knows learned words: their tokens are vectors, as those of
    the host's 'embedding:' syntax are.

    Everything else is the tokenizer's that it was made from, which stays as it was. If that one
    knows learned words, so does this one.
    """

    def __init__(self, tokenizer: Any, embeddings: Sequence[Embedding]):
        if isinstance(tokenizer, PlaceholderTokenizer):
            tokenizer, embeddings = tokenizer.base, (*tokenizer.embeddings, *embeddings)
        self.base, self.embeddings = tokenizer, tuple(embeddings)
        self._inner = copy.copy(tokenizer)
        self._pattern, self._stand_ins = _stand_ins(embeddings)
        self._vectors: dict[str, dict[int, Tensor]] = {}
        for encoder, part in encoder_tokenizers(tokenizer).items():
            part = copy.copy(part)
            part.tokenizer = copy.deepcopy(part.tokenizer)
            setattr(self._inner, encoder, part)
            self._vectors[encoder] = vectors = {}
            for embedding in embeddings:
                for character, vector in zip(
                    self._stand_ins[embedding.placeholder], embedding.vectors[encoder], strict=True
                ):
                    part.tokenizer.add_tokens([character])
                    vectors[part.tokenizer.convert_tokens_to_ids(character)] = vector
            part.inv_vocab = {
                **part.inv_vocab,
                **{token: part.tokenizer.decode([token]) for token in vectors},
            }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        tokens = self.learned_as_ids(text, return_word_ids, **kwargs)
        for name, chunks in tokens.items():
            vectors = self._vectors.get(f"clip_{name}", {})
            tokens[name] = [
                [
                    (
                        (vectors[token[0]], *token[1:])
                        if isinstance(token[0], int) and token[0] in vectors
                        else token
                    )
                    for token in chunk
                ]
                for chunk in chunks
            ]
        return tokens

    def learned_as_ids(
        self, text: str, return_word_ids: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The tokens with learned words as ids past the vocabulary; `ids` says which."""
        text = self._pattern.sub(lambda match: "".join(self._stand_ins[match[0]]), text)
        return self._inner.tokenize_with_weights(text, return_word_ids, **kwargs)

    def ids(self, encoder: str) -> list[int]:
        """The ids of all vectors in the order of the embeddings."""
        return list(self._vectors[encoder])


def base_tokenizer(tokenizer: Any) -> Any:
    """The host's own, without learned words."""
    return tokenizer.base if isinstance(tokenizer, PlaceholderTokenizer) else tokenizer


def encoder_tokenizers(tokenizer: Any) -> dict[str, Any]:
    """The tokenizers of a CLIP's text encoders by the encoders' names. ValueError for anything but
    CLIP-L, CLIP-G and CLIP-H."""
    tokenizer = base_tokenizer(tokenizer)
    found = {
        name: part
        for name, part in vars(tokenizer).items()
        if hasattr(part, "tokenizer") and hasattr(part, "embedding_key")
    }
    if not found or not found.keys() <= {"clip_l", "clip_g", "clip_h"}:
        raise ValueError(
            f"this needs the text encoder of SD1.5, SD2.1 or SDXL, {type(tokenizer).__name__} has"
            f" {', '.join(found) or 'no CLIP'} in it"
        )
    return found


def _stand_ins(embeddings: Sequence[Embedding]) -> tuple[re.Pattern[str], dict[str, str]]:
    stand_ins: dict[str, str] = {}
    position = _FIRST_STAND_IN
    for embedding in embeddings:
        check_placeholder(embedding.placeholder)
        if embedding.placeholder in stand_ins:
            raise ValueError(
                f"placeholder '{embedding.placeholder}' is there twice: give each learned word a"
                " name of its own"
            )
        count = len(next(iter(embedding.vectors.values())))
        stand_ins[embedding.placeholder] = "".join(chr(position + i) for i in range(count))
        position += count
    # The longest first, so that '<anna2>' is not read as '<anna' or 'anna'.
    names = sorted(stand_ins, key=len, reverse=True)
    return (
        re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names) or r"(?!)"),
        stand_ins,
    )


def with_placeholders(clip: Any, embeddings: Sequence[Embedding]) -> Any:
    """A CLIP whose prompts understand the placeholders. ValueError when a vector does not fit the
    text encoders."""
    parts = encoder_tokenizers(clip.tokenizer)
    for embedding in embeddings:
        for encoder in parts:
            width = (
                getattr(clip.cond_stage_model, encoder)
                .transformer.get_input_embeddings()
                .weight.shape[1]
            )
            vectors = embedding.vectors.get(encoder)
            if vectors is None or vectors.shape[1] != width:
                found = "none" if vectors is None else str(vectors.shape[1])
                raise ValueError(
                    f"learned word '{embedding.placeholder}' was made for another model: "
                    f"text encoder {encoder} needs vectors of {width} numbers, it has {found}"
                )
    changed = clip.clone()
    changed.tokenizer = PlaceholderTokenizer(clip.tokenizer, embeddings)
    return changed


def save_embedding(embedding: Embedding, name: str) -> Path:
    """Writes a file that 'embedding:<name>' finds into the first embeddings folder; never over
    another file."""
    import folder_paths
    from safetensors.torch import save_file

    # After 'embedding:' the host reads as far as the first space.
    if not re.fullmatch(r"[\w\-]+", name):
        raise ValueError(f"file name '{name}' must consist of letters, digits, '-' and '_'")
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    for number in range(2, 10_000):
        if not path.exists():
            break
        path = folder / f"{name}_{number}.safetensors"
    # One encoder: the key that other tools read as well. Two: a key for each, as in SDXL embeddings
    # everywhere.
    vectors = {
        key: vector.detach().float().cpu().clone().contiguous()
        for key, vector in embedding.vectors.items()
    }
    tensors = vectors if len(vectors) > 1 else {"emb_params": next(iter(vectors.values()))}
    save_file(tensors, path, {"placeholder": embedding.placeholder, "encoders": ",".join(vectors)})
    return path


def load_embedding(name: str, placeholder: str) -> Embedding:
    """Reads a safetensors file of the embeddings folders. placeholder: empty for the one in the
    file, or the file's name."""
    import folder_paths
    from safetensors import safe_open

    path = (
        folder_paths.get_full_path("embeddings", name)
        if name in folder_paths.get_filename_list("embeddings")
        else None
    )
    if path is None or not name.endswith(".safetensors"):
        raise ValueError(
            f"embedding '{name}' is not among the safetensors files of ComfyUI's embeddings folder"
        )
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        vectors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
    vectors = {key: tensor.reshape(-1, tensor.shape[-1]) for key, tensor in vectors.items()}
    if len(vectors) == 1:
        [vector] = vectors.values()
        # What a file of one tensor is for can only be told by its width.
        key = metadata.get("encoders") or {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}.get(
            vector.shape[1], "clip_l"
        )
        vectors = {key: vector}
    return Embedding(placeholder or metadata.get("placeholder") or Path(name).stem, vectors)
