"""The metrics of the papers, over pictures and their references. Every network is optional: what
cannot be measured is named, with why."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.boxes import Box
from ...magic.metrics import linear_chain, mean_cosine, style_distance
from ..models import folders as model_folders
from ..models.borrowed_network import BorrowedNetwork
from ..models.folders import METRICS
from ..segmentation.detectors import as_pixels

AUTO, OFF = "auto", "off"
CLIP_KINDS = ("clip",)
DINO_KINDS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
_AT_ONCE = 8
_LPIPS_SIDE = 64
_HEAD_MARKS = ("aesthetic", "linearmse", "vit_l_14_linear")


class Missing(Exception):
    """A metric that cannot be measured: what is missing and what to do."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is measured. images: B H W 3, references: M h w 3, in 0..1; prompts: one for all, one
    for each picture, or none.

    boxes, reference_boxes: for each picture its faces, None to take pictures whole. identity: an
    Identity, or anything with its `embed` and `embed_face`. clip_vision: the host's CLIP_VISION;
    clip, dino, aesthetic, lpips: names in models/metrics, 'auto' or 'off'.
    """

    images: Tensor
    references: Tensor | None = None
    prompts: tuple[str, ...] = ()
    boxes: tuple[tuple[Box, ...], ...] | None = None
    reference_boxes: tuple[tuple[Box, ...], ...] | None = None
    identity: Any = None
    clip_vision: Any = None
    clip: str = AUTO
    dino: str = AUTO
    aesthetic: str = AUTO
    lpips: str = AUTO

    def needed_references(self) -> Tensor:
        if self.references is None:
            raise Missing("no reference pictures: connect some")
        return self.references


@dataclass(frozen=True)
class MetricTable:
    """columns: metric -> a value for each picture, NaN where a single one could not be measured;
    missing: metric -> why."""

    columns: dict[str, tuple[float, ...]]
    missing: dict[str, str] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Over the pictures that have a value; NaN when none has."""
        means = {}
        for name, values in self.columns.items():
            known = [value for value in values if not math.isnan(value)]
            means[name] = sum(known) / len(known) if known else math.nan
        return means

    def markdown(self, labels: Sequence[str]) -> str:
        """A row for each picture and one of means, then what is missing. The arrows say which way
        is better."""
        names = list(self.columns)
        lines = [
            "| picture | " + " | ".join(f"{name} {ARROWS[name]}" for name in names) + " |",
            "| --- |" + " --- |" * len(names),
        ]
        rows = [
            (label, [self.columns[name][i] for name in names]) for i, label in enumerate(labels)
        ]
        if len(rows) > 1:
            rows.append(("mean", list(self.means().values())))
        lines += [
            f"| {label} | "
            + " | ".join("-" if math.isnan(v) else f"{v:.4f}" for v in values)
            + " |"
            for label, values in rows
        ]
        return "\n".join([*lines, *(["", *self.complaints()] if self.missing else [])])

    def complaints(self) -> list[str]:
        return [f"- {name}: {reason}" for name, reason in self.missing.items()]

    def csv(self, labels: Sequence[str]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["picture", *self.columns])
        for i, label in enumerate(labels):
            values = (column[i] for column in self.columns.values())
            writer.writerow(
                [label, *("" if math.isnan(value) else f"{value:.6g}" for value in values)]
            )
        return text.getvalue()

    def json(self, labels: Sequence[str]) -> str:
        def known(value: float) -> float | None:
            return None if math.isnan(value) else value

        pictures = [
            {"picture": label, **{name: known(column[i]) for name, column in self.columns.items()}}
            for i, label in enumerate(labels)
        ]
        means = {name: known(value) for name, value in self.means().items()}
        return json.dumps({"pictures": pictures, "means": means, "missing": self.missing}, indent=1)


def measure(comparison: Comparison) -> MetricTable:
    """Everything that can be measured. ValueError when what is given does not fit together."""
    from comfy.utils import ProgressBar

    count = len(comparison.images)
    if len(comparison.prompts) not in (0, 1, count):
        raise ValueError(
            f"{len(comparison.prompts)} prompts for {count} pictures: give one for all, or one line"
            " for each"
        )
    for name, boxes, pictures in (
        ("boxes", comparison.boxes, count),
        (
            "reference_boxes",
            comparison.reference_boxes,
            0 if comparison.references is None else len(comparison.references),
        ),
    ):
        if boxes is not None and len(boxes) != pictures:
            raise ValueError(f"{name} are for {len(boxes)} pictures, but {pictures} came")
    columns: dict[str, tuple[float, ...]] = {}
    missing: dict[str, str] = {}
    progress = ProgressBar(len(_METRICS))
    for name, work in _METRICS.items():
        try:
            columns[name] = tuple(work(comparison).float().cpu().tolist())
        except Missing as reason:
            missing[name] = str(reason)
        progress.update(1)
    return MetricTable(columns, missing)


# ---- identity ----


def _csim(comparison: Comparison) -> Tensor:
    if comparison.identity is None:
        raise Missing(
            "no identity network: connect a MAGIC_IDENTITY loader, or name one with --identity"
        )
    references = comparison.needed_references()
    wanted = _identities(comparison.identity, references, comparison.reference_boxes)
    wanted = wanted[~wanted.isnan().any(1)]
    if not len(wanted):
        raise Missing("no reference shows a face")
    return mean_cosine(
        _identities(comparison.identity, comparison.images, comparison.boxes), wanted
    )


def _identities(network: Any, images: Tensor, boxes: tuple[tuple[Box, ...], ...] | None) -> Tensor:
    """B D; NaN for pictures whose boxes hold no face. The largest face of a picture counts."""
    if boxes is None:
        return torch.cat(
            [
                network.embed(images[i : i + _AT_ONCE, ..., :3])
                for i in range(0, len(images), _AT_ONCE)
            ]
        ).cpu()
    rows: list[Tensor | None] = []
    for image, faces in zip(images, boxes, strict=True):
        face = (
            max(faces, key=lambda box: box.area).clipped((image.shape[0], image.shape[1]))
            if faces
            else None
        )
        rows.append(
            None if face is None else network.embed_face(image[..., :3], face.corners).cpu()
        )
    width = next((len(row) for row in rows if row is not None), 1)
    return torch.stack([torch.full((width,), math.nan) if row is None else row for row in rows])


# ---- CLIP, DINO, aesthetics ----


def _transformers_folder(asked: str, kinds: Sequence[str], what: str) -> str:
    """The folder to use. Missing says what to put where."""
    if asked == OFF:
        raise Missing("switched off")
    found = model_folders.model_directories(METRICS)
    names = [name for name, kind in found.items() if kind in kinds]
    if asked == AUTO and names:
        return names[0]
    if asked in names:
        return asked
    if asked in found:
        raise Missing(f"models/metrics/{asked} holds a '{found[asked]}' model, {what} was expected")
    raise Missing(
        f"no {what} in models/metrics: put its transformers folder (config.json, preprocessor,"
        " model.safetensors) there"
    )


def clip_folders() -> list[str]:
    return [
        name
        for name, kind in model_folders.model_directories(METRICS).items()
        if kind in CLIP_KINDS
    ]


def dino_folders() -> list[str]:
    return [
        name
        for name, kind in model_folders.model_directories(METRICS).items()
        if kind in DINO_KINDS
    ]


def _pretrained(model_class: Any, folder: str) -> BorrowedNetwork:
    path = model_folders.path_of(METRICS, folder)
    return BorrowedNetwork(
        model_class.from_pretrained(path, local_files_only=True, use_safetensors=True).float()
    )


def _pictures_through(
    model_class: Any, folder: str, images: Tensor, read: Callable[[Any], Tensor]
) -> Tensor:
    """The features of pictures from a transformers folder, prepared as its own processor prepares
    them: B D."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(
        model_folders.path_of(METRICS, folder), local_files_only=True
    )
    model, rows = _pretrained(model_class, folder), []
    for start in range(0, len(images), _AT_ONCE):
        pixels = [as_pixels(image) for image in images[start : start + _AT_ONCE]]
        inputs = processor(
            images=pixels, return_tensors="pt", input_data_format="channels_last"
        ).to(model.device)
        rows.append(read(model.on_device()(**inputs)).float().cpu())
    return torch.cat(rows)


def _clip_images(comparison: Comparison, images: Tensor) -> Tensor:
    """By the host's CLIP_VISION when there is one."""
    if comparison.clip_vision is not None:
        rows = [
            comparison.clip_vision.encode_image(images[i : i + _AT_ONCE])["image_embeds"]
            for i in range(0, len(images), _AT_ONCE)
        ]
        return torch.cat(rows).float().cpu()
    from transformers import CLIPVisionModelWithProjection

    folder = _transformers_folder(comparison.clip, CLIP_KINDS, "CLIP model")
    return _pictures_through(
        CLIPVisionModelWithProjection, folder, images, lambda out: out.image_embeds
    )


def _clip_i(comparison: Comparison) -> Tensor:
    references = comparison.needed_references()
    return mean_cosine(
        _clip_images(comparison, comparison.images), _clip_images(comparison, references)
    )


def _clip_t(comparison: Comparison) -> Tensor:
    """Pictures and words by the same folder. A checkpoint's own text encoder will not do: SD1.5's
    lacks CLIP's projection."""
    from transformers import (
        AutoTokenizer,
        CLIPTextModelWithProjection,
        CLIPVisionModelWithProjection,
    )

    if not any(comparison.prompts):
        raise Missing("no prompt: write what the pictures should show")
    folder = _transformers_folder(comparison.clip, CLIP_KINDS, "CLIP model")
    pictures = _pictures_through(
        CLIPVisionModelWithProjection, folder, comparison.images, lambda out: out.image_embeds
    )
    tokenizer = AutoTokenizer.from_pretrained(
        model_folders.path_of(METRICS, folder), local_files_only=True
    )
    model = _pretrained(CLIPTextModelWithProjection, folder)
    tokens = tokenizer(
        list(comparison.prompts), padding=True, truncation=True, return_tensors="pt"
    ).to(model.device)
    words = model.on_device()(**tokens).text_embeds.float().cpu()
    return F.cosine_similarity(
        pictures, words.expand(len(pictures), -1) if len(words) == 1 else words
    )


def _dino(comparison: Comparison) -> Tensor:
    """The class token's cosine, as in DreamBooth (Ruiz et al., 2023)."""
    from transformers import AutoModel

    references = comparison.needed_references()
    folder = _transformers_folder(comparison.dino, DINO_KINDS, "DINO model")
    images, wanted = (
        _pictures_through(AutoModel, folder, pictures, lambda out: out.last_hidden_state[:, 0])
        for pictures in (comparison.images, references)
    )
    return mean_cosine(images, wanted)


def aesthetic_heads() -> list[str]:
    return [
        name
        for name in model_folders.names(METRICS)
        if any(mark in name.lower() for mark in _HEAD_MARKS)
    ]


def _aesthetic(comparison: Comparison) -> Tensor:
    name = _file(
        comparison.aesthetic,
        aesthetic_heads(),
        "aesthetic head",
        "sac+logos+ava1-l14-linearMSE as .safetensors or .pth",
    )
    state = model_folders.read_tensors(model_folders.path_of(METRICS, name))
    features = F.normalize(_clip_images(comparison, comparison.images), dim=-1)
    try:
        return linear_chain(state, features)
    except ValueError as error:
        raise Missing(
            f"{name} does not fit this CLIP ({error}): LAION's heads take CLIP ViT-L/14"
        ) from error


def _file(asked: str, names: Sequence[str], what: str, example: str) -> str:
    if asked == OFF:
        raise Missing("switched off")
    if asked == AUTO and names:
        return names[0]
    if asked in names:
        return asked
    raise Missing(f"no {what} in models/metrics: put {example} there")


# ---- LPIPS and style ----


def lpips_trunks() -> list[str]:
    return [name for name in model_folders.names(METRICS) if "alexnet" in name.lower()]


def _lpips(comparison: Comparison) -> Tensor:
    """Zhang et al. (2018), version 0.1 on AlexNet, to each reference (scaled to the picture),
    averaged."""
    references = comparison.needed_references()
    name = _file(
        comparison.lpips,
        lpips_trunks(),
        "AlexNet for LPIPS",
        "torchvision's alexnet-owt-7be5be79.pth",
    )
    try:
        import lpips
    except ImportError as error:
        raise Missing(
            "the package lpips is not installed: pip install lpips, as in the pack's"
            " requirements-optional.txt, and restart ComfyUI"
        ) from error
    state = model_folders.read_tensors(model_folders.path_of(METRICS, name))
    # Left to itself the package would fetch AlexNet: it gets the user's file instead.
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for slot, tensor in network.net.state_dict().items():
        key = "features." + slot.split(".", 1)[1]
        if key not in state or state[key].shape != tensor.shape:
            raise Missing(f"{name} is not torchvision's AlexNet: {key} does not fit")
        tensor.copy_(state[key])
    model = BorrowedNetwork(network)
    size = comparison.images.shape[1:3]
    if min(size) < _LPIPS_SIDE:
        raise Missing(
            f"pictures of {size[1]}x{size[0]} are too small: LPIPS needs {_LPIPS_SIDE} pixels a"
            " side"
        )
    wanted = F.interpolate(
        references[..., :3].movedim(-1, 1).float(), size=size, mode="bilinear", antialias=True
    ).to(model.device)
    distances, ready = [], model.on_device()
    for image in comparison.images:
        one = image[..., :3].movedim(-1, 0)[None].float().to(model.device)
        distances.append(
            torch.stack(
                [ready(one, other[None], normalize=True).flatten()[0] for other in wanted]
            ).mean()
        )
    return torch.stack(distances)


def _style(comparison: Comparison) -> Tensor:
    return style_distance(comparison.images, comparison.needed_references())


_METRICS: dict[str, Callable[[Comparison], Tensor]] = {
    "CSIM": _csim,
    "CLIP-I": _clip_i,
    "CLIP-T": _clip_t,
    "DINO": _dino,
    "LPIPS": _lpips,
    "style distance": _style,
    "aesthetic": _aesthetic,
}
ARROWS = {name: "↓" if name in ("LPIPS", "style distance") else "↑" for name in _METRICS}
