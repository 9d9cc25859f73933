"""The training sets of the two toys.

The UNet's pictures (128 px) are rendered once, and encoded once the autoencoder is frozen. The
transformer's (256 px, portraits and scenes of two people) come after the autoencoder and are
rendered and encoded in one go.
"""

from __future__ import annotations

import functools
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from .autoencoder import Autoencoder
from .checkpoint import read_parts
from .portraits import PARTS, render, render_scene, sample_portrait, sample_scene

IMAGE_SIZE = 128
MASK_SIZE = 16
"""Part masks are kept at latent size: that is where attention is supervised."""
HELD_OUT_SEEDS = range(10_000_000, 10_100_000)
"""Seeds that no training ever sees: every figure of the model card is measured on them."""


def render_training_set(folder: Path, count: int, workers: int) -> None:
    """Writes images.npy (count 3 128 128, uint8) and parts.npy (count 7 16 16, uint8) of the seeds
    0 .. count-1."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(
        folder / "images.tmp.npy", "w+", np.uint8, (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    )
    parts = np.lib.format.open_memmap(
        folder / "parts.npy", "w+", np.uint8, (count, len(PARTS), MASK_SIZE, MASK_SIZE)
    )
    with ProcessPoolExecutor(workers) as pool:
        for seed, (image, masks) in enumerate(pool.map(_render_seed, range(count), chunksize=64)):
            images[seed], parts[seed] = image, masks
            if seed % 1000 == 0:
                print(f"rendered {seed}/{count}", flush=True)
    images.flush()
    (folder / "images.tmp.npy").rename(folder / "images.npy")


def _render_seed(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rendering = render(sample_portrait(seed), IMAGE_SIZE)
    cell = IMAGE_SIZE // MASK_SIZE
    masks = np.stack(
        [
            rendering.masks[name].reshape(MASK_SIZE, cell, MASK_SIZE, cell).mean((1, 3))
            for name in PARTS
        ]
    )
    return as_bytes(rendering.image).transpose(2, 0, 1), (masks * 255).round().astype(np.uint8)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """0..1 as whole numbers 0..255."""
    return np.round(image * 255).astype(np.uint8)


LARGE_SIDE = 256
"""Side of the transformer toy's pictures."""
Kind = Literal["portraits", "scenes"]
SCENE_PARTS: tuple[tuple[int, str], ...] = (
    (0, "background"),
    *((person, part) for person in range(2) for part in PARTS if part != "background"),
)
"""(person, part) of a scene, in the order of its masks: the first seven are a portrait's."""


def latent_files(folder: Path, kind: Kind) -> tuple[Path, Path]:
    """Where `encode_large_set` keeps latents and part masks."""
    return folder / f"large_{kind}_latents.npy", folder / f"large_{kind}_parts.npy"


def encode_large_set(folder: Path, kind: Kind, count: int, workers: int) -> None:
    """Renders the seeds 0 .. count-1 at 256 px and encodes them with the shipped autoencoder:
    latents (count 4 32 32, fp16) and part masks (count 7 16 16 for portraits, count 13 16 16 in the
    order of SCENE_PARTS for scenes, uint8). Seeds that are there already are kept: a set can be
    made larger later."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = latent_files(folder, kind)
    arrays = [np.load(path) for path in paths] if paths[1].exists() else None
    start = len(arrays[1]) if arrays else 0
    columns: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    encode = functools.partial(encode_seed, kind)
    with ProcessPoolExecutor(workers) as pool:
        for seed, row in enumerate(pool.map(encode, range(start, count), chunksize=8), start):
            for column, array in zip(columns, row, strict=True):
                column.append(array)
            if seed % 500 == 499 or seed == count - 1:
                new = [np.stack(column) for column in columns]
                arrays = (
                    [np.concatenate(pair) for pair in zip(arrays, new, strict=True)]
                    if arrays
                    else new
                )
                columns = ([], [])
                for path, array in zip(paths, arrays, strict=True):
                    np.save(path.with_suffix(".tmp.npy"), array)
                    path.with_suffix(".tmp.npy").replace(path)
                print(f"{kind}: encoded {seed + 1}/{count}", flush=True)


def encode_seed(kind: Kind, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One row of `encode_large_set`: a latent and its part masks."""
    if kind == "portraits":
        portrait = render(sample_portrait(seed), LARGE_SIDE)
        return encode(portrait.image), _cells([portrait.masks[part] for part in PARTS])
    scene = render_scene(sample_scene(seed), LARGE_SIDE)
    return encode(scene.image), _cells([scene.masks[key] for key in SCENE_PARTS])


def _cells(masks: list[np.ndarray]) -> np.ndarray:
    side = masks[0].shape[0] // MASK_SIZE
    cells = np.stack(masks).reshape(len(masks), MASK_SIZE, side, MASK_SIZE, side).mean((2, 4))
    return as_bytes(cells)


@functools.cache
def shipped_autoencoder() -> Autoencoder:
    """The autoencoder of the shipped UNet checkpoint, which both toys share. One thread: processes
    share this work."""
    torch.set_num_threads(1)
    autoencoder = Autoencoder()
    autoencoder.load_state_dict(
        {name: tensor.float() for name, tensor in read_parts()["autoencoder"].items()}
    )
    return autoencoder.eval()


def encode(image: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        latent = shipped_autoencoder().encode(torch.from_numpy(image).permute(2, 0, 1)[None])
    return latent[0].half().numpy()
