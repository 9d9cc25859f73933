"""Grounding DINO: boxes of what words name."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ...magic.boxes import Box
from ..models import folders as model_folders
from ..models.borrowed_network import BorrowedNetwork
from ..models.folders import DETECTORS
from ..pictures.conversion import as_pixels

_FOLDER = "a Grounding DINO folder"
_BETWEEN_THINGS = re.compile(r"[,，、;；.。\r\n]")
_SAME_OBJECT = 0.7
"""Overlap (intersection over union) above which two boxes show the same thing."""


def detector_names() -> list[str]:
    return sorted(
        name
        for name, kind in model_folders.model_directories(DETECTORS).items()
        if kind in ("grounding-dino", "mm-grounding-dino")
    )


def named_things(text: str) -> list[str]:
    """The things that a text names, between commas, semicolons or full stops of any script, or one
    a line."""
    return [thing for part in _BETWEEN_THINGS.split(text) if (thing := part.strip())]


class TextDetector:
    """Grounding DINO from a local folder in transformers' format."""

    def __init__(self, name: str):
        """ValueError names the folder, or the package, that is missing."""
        path = model_folders.path_of(DETECTORS, name)
        try:
            from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
        except ImportError as error:
            raise ValueError(
                "text masks need transformers 4.40 or newer: update it, and restart ComfyUI"
            ) from error
        # The custom CUDA kernels would be compiled, or fetched, at run time.
        options = {"disable_custom_kernels": True}
        with model_folders.reading(path, _FOLDER):
            self._processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        self._model = BorrowedNetwork(
            model_folders.read_network(
                AutoModelForZeroShotObjectDetection, path, _FOLDER, **options
            )
        )

    def find(self, image: Tensor, text: str, threshold: float) -> list[Box]:
        """Boxes of what `text` names (several things separated by commas), best first. image: H W 3
        in 0..1; threshold: 0..1."""
        from torchvision.ops import nms

        phrases = [thing.lower() for thing in named_things(text)]
        inputs = self._processor(
            images=as_pixels(image), text=". ".join(phrases) + ".", return_tensors="pt"
        )
        output = self._model.on_device()(**inputs.to(self._model.device))
        # Scores of each query for each token of the text: the best one counts.
        scores = output.logits[0].float().sigmoid().amax(-1).cpu()
        centres, sizes = output.pred_boxes[0].float().cpu().chunk(2, dim=-1)
        height, width = image.shape[:2]
        corners = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1) * torch.tensor(
            [width, height, width, height]
        )
        sure = (scores > threshold).nonzero().flatten()
        sure = sure[nms(corners[sure], scores[sure], _SAME_OBJECT)]
        label = ", ".join(phrases)
        return [
            Box(x, y, right - x, bottom - y, label, score)
            for (x, y, right, bottom), score in zip(
                corners[sure].tolist(), scores[sure].tolist(), strict=True
            )
        ]
