"""Face masks for training pictures that came without: what a face detector of the user's own
finds."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ...magic.pictures import as_rgb
from ..faces.detection import face_models, missing_message
from ..models import folders as model_folders
from ..models.folders import FACE_DETECTORS, MEDIAPIPE
from .concept_masks import Backends, MaskRequest, concept_masks

# A picture is said to show a face, so a doubtful find is more likely something else.
_LEAST_SCORE = 0.5


def find_face_masks(
    images: Sequence[Tensor], names: Sequence[str], what: str
) -> list[Tensor] | None:
    """The largest face of each picture as an ellipse; with a warning, all of a picture that shows
    none. None, with a warning that says what to put where, when no detector can be used. images: H
    W C of any sizes -> masks H W, 0 or 1; what: the set, for messages.
    """
    detectors = face_models()
    if not detectors:
        logging.warning("MagicPortrait: %s", _everything(what, missing_message()))
        return None
    request = MaskRequest(target="face", which="largest", threshold=_LEAST_SCORE)
    backends = Backends(faces=detectors[0])
    masks = []
    for image, name in zip(images, names, strict=True):
        try:
            [mask] = concept_masks(as_rgb(image, name)[None], request, backends).masks
        except ValueError as error:
            logging.warning("MagicPortrait: %s", _everything(what, str(error)))
            return None
        if not mask.any():
            logging.warning(
                "MagicPortrait: no face found in %s: all of it counts as face. Connect a mask, or"
                " leave it out",
                name,
            )
            mask = torch.ones_like(mask)
        masks.append(mask)
    return masks


def detectors_state() -> str:
    """Another text whenever faces may be found otherwise: another file, or other files."""
    names = face_models()
    states = (
        model_folders.state_of(FACE_DETECTORS, name) or model_folders.state_of(MEDIAPIPE, name)
        for name in names
    )
    return " ".join(f"{name} {state}" for name, state in zip(names, states, strict=True))


def _everything(what: str, reason: str) -> str:
    return (
        f"no face masks for the {what}, so every picture counts as face from edge to edge. To have"
        f" faces found: {reason}"
    )
