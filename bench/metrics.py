"""The metrics of Portrait Metrics over folders of pictures: `python -m bench.metrics PICTURES
--references FOLDER`

Networks are looked for in --models (default: ComfyUI's models/metrics): transformers folders of
CLIP and DINO, LAION's aesthetic head, torchvision's AlexNet for LPIPS. --identity names a network
in ComfyUI's models/face_identity, or 'toy', the one for drawn faces that comes with the pack; CSIM
takes every picture whole, so give it pictures that are cut to the face. What is missing is named
below the table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from . import toy
from .command_line import bench_parser

# ruff: isort: split
import folder_paths
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from magicportrait.host.faces.identity import Identity, load_identity
from magicportrait.host.metrics.comparison import AUTO, OFF, Comparison
from magicportrait.host.metrics.table import MetricTable, measure

TOY = "toy"
"""Names the network for drawn faces."""
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def pictures_in(folder: Path) -> list[Path]:
    """In the order of their names, folders within included."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)


def read_pictures(paths: Iterable[Path]) -> Tensor:
    """B H W 3 in 0..1, all scaled to the size of the first. ValueError names a file that is not
    there or no whole picture."""
    images: list[Tensor] = []
    for path in paths:
        image = torch.from_numpy(_pixels(path))[None]
        if images and image.shape != images[0].shape:
            size = images[0].shape[1:3]
            image = (
                F.interpolate(image.movedim(-1, 1), size=size, mode="bicubic", antialias=True)
                .clamp(0, 1)
                .movedim(1, -1)
            )
        images.append(image)
    return torch.cat(images)


def _pixels(path: Path) -> np.ndarray:
    """H W 3 in 0..1."""
    try:
        with Image.open(path) as file:
            return np.asarray(ImageOps.exif_transpose(file).convert("RGB"), np.float32) / 255
    # What Pillow raises of damaged files, depending on their kind.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(
            f"{path} cannot be read as a picture ({error}): take it out, or put a whole one in its"
            " place"
        ) from error


def use_models(folder: Path) -> None:
    """Adds a folder to the places where networks for metrics are looked for."""
    folder_paths.add_model_folder_path("metrics", str(folder.resolve()), is_default=True)


def identity_of(name: str | None) -> Identity | None:
    """ValueError says where a network that is not there belongs."""
    if name is None:
        return None
    return toy.identity() if name == TOY else load_identity(name)


@torch.inference_mode()
def measure_files(
    paths: list[Path],
    references: list[Path],
    prompts: tuple[str, ...],
    identity: Identity | None = None,
    *,
    clip: str = AUTO,
    dino: str = AUTO,
    aesthetic: str = AUTO,
    lpips: str = AUTO,
) -> MetricTable:
    """All metrics of pictures against references, which may be none. What the rest is: see
    Comparison."""
    return measure(
        Comparison(
            read_pictures(paths),
            read_pictures(references) if references else None,
            prompts,
            identity=identity,
            clip=clip,
            dino=dino,
            aesthetic=aesthetic,
            lpips=lpips,
        )
    )


def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("pictures", type=Path, help="a folder of pictures")
    parser.add_argument(
        "--references", type=Path, metavar="FOLDER", help="what they are compared with"
    )
    parser.add_argument("--prompt", help="for CLIP-T: one prompt for all pictures")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="for CLIP-T: a line for each picture, in the order of their names",
    )
    parser.add_argument(
        "--models",
        type=Path,
        metavar="FOLDER",
        help="a folder of networks, before ComfyUI's models/metrics",
    )
    for name in ("clip", "dino", "aesthetic", "lpips"):
        parser.add_argument(
            f"--{name}",
            default=AUTO,
            metavar="NAME",
            help=f"which network, or '{OFF}'; default: the first that is there",
        )
    parser.add_argument(
        "--identity",
        metavar="FILE",
        help=f"for CSIM: a file in models/face_identity, or '{TOY}' for drawn faces",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the table there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table there")
    args = parser.parse_args()
    paths = pictures_in(args.pictures)
    references = pictures_in(args.references) if args.references else []
    if not paths or (args.references and not references):
        parser.error(f"no pictures in {args.references if paths else args.pictures}")
    if args.models:
        use_models(args.models)
    lines = args.prompts.read_text(encoding="utf-8").splitlines() if args.prompts else []
    prompts = tuple(line.strip() for line in lines if line.strip()) or (
        (args.prompt,) if args.prompt else ()
    )
    try:
        table = measure_files(
            paths,
            references,
            prompts,
            identity_of(args.identity),
            clip=args.clip,
            dino=args.dino,
            aesthetic=args.aesthetic,
            lpips=args.lpips,
        )
    except ValueError as error:
        parser.error(str(error))
    labels = [path.relative_to(args.pictures).as_posix() for path in paths]
    print(table.markdown(labels))
    for file, text in ((args.csv, table.csv(labels)), (args.json, table.json(labels))):
        if file:
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
