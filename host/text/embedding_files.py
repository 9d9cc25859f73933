"""Learned words as files of the host's embeddings folder."""

from __future__ import annotations

import re
from pathlib import Path

from .clip import encoder_of_width
from .learned_words import Embedding


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
        vectors = {metadata.get("encoders") or encoder_of_width(vector.shape[1]): vector}
    return Embedding(placeholder or metadata.get("placeholder") or Path(name).stem, vectors)
