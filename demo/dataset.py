"""The training set of the toy checkpoint: rendered once, then encoded once the autoencoder is
frozen."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from .portraits import PARTS, render, sample_portrait

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
    return (image * 255).round().astype(np.uint8)
