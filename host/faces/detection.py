"""Faces in pictures: with ComfyUI's own MediaPipe nodes where the host has them, else with OpenCV's
YuNet."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from torch import Tensor

from ...magic.boxes import Box
from ..models import folders as model_folders
from ..models.folders import FACE_DETECTORS, MEDIAPIPE
from ..pictures.conversion import as_pixels

_LONGEST_SIDE = 1024
"""YuNet looks for faces of 10 to 300 pixels, so larger pictures are reduced to this."""


def face_models() -> list[str]:
    """Names of the detectors that are there, the host's own first."""
    own = (
        [name for name in model_folders.names(MEDIAPIPE) if _finds_faces(name)]
        if _has_mediapipe()
        else []
    )
    return [*own, *model_folders.names(FACE_DETECTORS)]


def missing_message(name: str = "") -> str:
    message = model_folders.missing_message(FACE_DETECTORS, name)
    return (
        f"{message}; or {model_folders.missing_message(MEDIAPIPE)}" if _has_mediapipe() else message
    )


def find_faces(name: str, images: Tensor, threshold: float) -> list[list[Box]]:
    """The faces in each picture. images: B H W 3 in 0..1; threshold: the least score, 0..1.
    ValueError names what is missing."""
    if name not in face_models():
        raise ValueError(missing_message(name))
    if name.lower().endswith(".onnx"):
        return _yunet_faces(name, images, threshold)
    return _mediapipe_faces(name, images, threshold)


def _has_mediapipe() -> bool:
    return importlib.util.find_spec("comfy_extras.nodes_mediapipe") is not None


def _finds_faces(name: str) -> bool:
    """Whether a file is MediaPipe's: ComfyUI keeps detectors of other things in the same folder."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(model_folders.path_of(MEDIAPIPE, name), "pt") as file:
            return any(key.startswith("detector_short.") for key in file.keys())  # noqa: SIM118 (the file itself cannot be iterated)
    except (SafetensorError, OSError):
        return False


def _mediapipe_faces(name: str, images: Tensor, threshold: float) -> list[list[Box]]:
    from comfy_extras.nodes_mediapipe import LoadMediaPipeFaceLandmarker, MediaPipeFaceLandmarker

    with model_folders.reading(model_folders.path_of(MEDIAPIPE, name), "MediaPipe's face finder"):
        model = LoadMediaPipeFaceLandmarker.execute(name).args[0]
    boxes = MediaPipeFaceLandmarker.execute(model, images, "both", 0, threshold, "empty").args[1]
    return [
        [
            Box(face["x"], face["y"], face["width"], face["height"], "face", face["score"])
            for face in faces
        ]
        for faces in boxes
    ]


def _yunet_faces(name: str, images: Tensor, threshold: float) -> list[list[Box]]:
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"faces: '{name}' needs the package opencv-python-headless: pip install"
            " opencv-python-headless, as in the pack's requirements-optional.txt, and restart"
            " ComfyUI"
        ) from error
    from comfy.utils import ProgressBar

    path = model_folders.path_of(FACE_DETECTORS, name)
    height, width = images.shape[1:3]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    with model_folders.reading(path, "YuNet"):
        detector: Any = cv2.FaceDetectorYN.create(str(path), "", size, score_threshold=threshold)
    progress = ProgressBar(len(images))
    boxes = []
    for image in images:
        small = cv2.resize(as_pixels(image), size, interpolation=cv2.INTER_AREA)
        # OpenCV's order is blue, green, red.
        with model_folders.reading(path, "YuNet"):
            _, faces = detector.detect(np.ascontiguousarray(small[..., ::-1]))
        # Fifteen numbers a face: x, y, width, height, five landmarks, score.
        rows = [] if faces is None else faces.tolist()
        boxes.append(
            [
                Box(x / scale, y / scale, width / scale, height / scale, "face", score)
                for x, y, width, height, *_, score in rows
            ]
        )
        progress.update(1)
    return boxes
