"""Trains the face-embedding network of the toy world: `python -m demo.train_identity` (some minutes
on one core).

Contrastive: in every batch each person comes twice, in other styles, poses, moods and clothes; the
two must find each other among all (InfoNCE, arXiv 1807.03748). Crops are shifted, scaled, mirrored
and blurred, since the network looks at estimates of a denoiser later on.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .captures import HAIR_DYES, head_mask
from .face_network import MARGIN, SIDE, FaceNetwork, normalised, save
from .portraits import (
    BACKGROUND_COLOURS,
    EXPRESSIONS,
    GARMENT_COLOURS,
    HAIR_COLOURS,
    STYLES,
    Garment,
    Portrait,
    Pose,
    render,
    sample_portrait,
)

_CANVAS = 96
_TEMPERATURE = 0.1


def person(rng: random.Random) -> Portrait:
    """Somebody bare-headed, with natural or dyed hair."""
    drawn = sample_portrait(rng.randrange(1_000_000_000), "cartoon")
    return replace(
        drawn, hair=rng.choice((*HAIR_DYES, *HAIR_COLOURS)), hat=None, scarf=None, glasses=None
    )


def views(who: Portrait, count: int, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Pictures `count` H W 3 of one person, each in a style of its own, and the head's boxes:
    centre x, centre y, half side, in pixels."""
    pictures, boxes = [], []
    for i in range(count):
        drawn = render(
            replace(
                who,
                style=STYLES[i % len(STYLES)],
                pose=Pose(
                    rng.uniform(-0.07, 0.07),
                    rng.uniform(-0.03, 0.06),
                    rng.uniform(0.92, 1.18),
                    rng.uniform(-8, 8),
                ),
                expression=rng.choice(EXPRESSIONS),
                shirt=Garment(rng.choice(list(GARMENT_COLOURS))),
                background=rng.choice(list(BACKGROUND_COLOURS)),
            ),
            _CANVAS,
        )
        rows, columns = np.nonzero(head_mask(drawn) > 0.5)
        half = max(np.ptp(rows), np.ptp(columns)) / 2
        pictures.append((drawn.image * 255).round().astype(np.uint8))
        boxes.append(((columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2, half))
    return np.stack(pictures), np.array(boxes, np.float32)


def crops(pictures: Tensor, boxes: Tensor, rng: torch.Generator, jitter: bool) -> Tensor:
    """pictures: B H W 3 uint8 -> B 3 64 64 in 0..1."""
    from magicportrait.magic.capture_losses import face_crops

    images = pictures.movedim(-1, 1).float() / 255
    boxes = boxes * torch.tensor([1, 1, MARGIN])
    if not jitter:
        return face_crops(images, boxes, SIDE)
    noise = torch.rand(len(boxes), 4, generator=rng) * 2 - 1
    boxes = torch.stack(
        [
            boxes[:, 0] + 4 * noise[:, 0],
            boxes[:, 1] + 4 * noise[:, 1],
            boxes[:, 2] * (1 + 0.12 * noise[:, 2]),
        ],
        1,
    )
    crop = face_crops(images, boxes, SIDE)
    crop = torch.where(torch.rand(len(crop), 1, 1, 1, generator=rng) < 0.5, crop.flip(-1), crop)
    small = int(torch.randint(12, SIDE + 1, (), generator=rng))
    blurred = F.interpolate(
        F.interpolate(crop, size=small, mode="area"), size=SIDE, mode="bilinear"
    )
    crop = torch.where(torch.rand(len(crop), 1, 1, 1, generator=rng) < 0.5, blurred, crop)
    return (
        crop * (1 + 0.1 * noise[:, 3, None, None, None])
        + 0.02 * torch.randn(crop.shape, generator=rng)
    ).clamp(0, 1)


def retrieval(
    network: FaceNetwork, pictures: Tensor, boxes: Tensor, rng: torch.Generator
) -> tuple[float, float, float]:
    """pictures: P V ... of people not trained on. Share of pictures whose nearest picture in
    another style is the same person, and the mean similarity of the same and of different
    people."""
    with torch.no_grad():
        embeddings = torch.stack(
            [
                normalised(network, crops(pictures[:, v], boxes[:, v], rng, False))
                for v in range(pictures.shape[1])
            ],
            1,
        )
    hits, same, different = [], [], []
    for a in range(embeddings.shape[1]):
        for b in range(embeddings.shape[1]):
            if a != b:
                similarity = embeddings[:, a] @ embeddings[:, b].T
                hits.append(
                    (similarity.argmax(1) == torch.arange(len(embeddings))).float().mean().item()
                )
                same.append(similarity.diagonal().mean().item())
                different.append(
                    (
                        (similarity.sum() - similarity.diagonal().sum())
                        / (similarity.numel() - len(embeddings))
                    ).item()
                )
    return (
        sum(hits) / len(hits),
        sum(same) / len(same),
        sum(different) / len(different),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=700)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=48, help="people a step")
    args = parser.parse_args()
    rng, started = random.Random(0), time.monotonic()
    held_out, count = 100, 2 * len(STYLES)
    drawn = [views(person(rng), count, rng) for _ in range(args.people + held_out)]
    pictures, boxes = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
    print(f"drawn after {time.monotonic() - started:.0f} s", flush=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = FaceNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, args.steps)
    for step in range(args.steps):
        who = torch.randperm(args.people, generator=generator)[: args.batch]
        pair = [torch.randint(count, (args.batch,), generator=generator) for _ in range(2)]
        one, two = (
            normalised(network, crops(pictures[who, v], boxes[who, v], generator, True))
            for v in pair
        )
        similarity = one @ two.T / _TEMPERATURE
        index = torch.arange(args.batch)
        loss = (F.cross_entropy(similarity, index) + F.cross_entropy(similarity.T, index)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == args.steps - 1:
            scores = retrieval(
                network.eval(), pictures[args.people :], boxes[args.people :], generator
            )
            print(
                f"step {step} loss {loss.item():.3f} retrieval {scores[0]:.3f} same {scores[1]:.3f}"
                f" other {scores[2]:.3f}",
                flush=True,
            )
    save(
        network,
        {"steps": str(args.steps), "people": str(args.people), "retrieval": f"{scores[0]:.3f}"},
    )


if __name__ == "__main__":
    from devkit.pack import load_pack

    load_pack()
    main()
