"""Face embeddings through which a gradient can pass."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...magic.capture_losses import face_crops, square_around
from ...magic.iresnet import SIDE, load_iresnet
from ..models import folders as model_folders
from ..models.folders import IDENTITIES


@dataclass(frozen=True, eq=False)
class Identity:
    """A face-embedding network. name: of its file, for messages; network: B 3 side side in -1..1 ->
    B D; side: of its input in pixels; margin: side of the crop over side of the face's box."""

    name: str
    network: nn.Module
    side: int
    margin: float

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """The network on a device as long as it is used: it belongs to the graph, which may keep it
        for long."""
        self.network.to(device)
        try:
            yield
        finally:
            self.network.to("cpu")

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Crops B 3 side side in 0..1 -> unit vectors B D, where the network is."""
        for weights in itertools.islice(
            itertools.chain(self.network.parameters(), self.network.buffers()), 1
        ):
            crops = crops.to(weights.device)
        return F.normalize(self.network(crops * 2 - 1).float(), dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """Pictures of faces, B H W 3 in 0..1 of any size -> unit vectors B D."""
        size = (self.side, self.side)
        crops = F.interpolate(
            images.movedim(-1, 1).float(),
            size=size,
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        return self.embed_crops(crops)

    def embed_face(self, image: Tensor, corners: tuple[float, float, float, float]) -> Tensor:
        """One face of a picture, cut out as the training cuts it. image: H W 3 in 0..1; corners:
        left, top, right, bottom of the face in pixels -> D, a unit vector."""
        square = square_around(corners, self.margin).to(image.device)
        return self.embed_crops(
            face_crops(image.movedim(-1, 0)[None].float(), square[None], self.side)
        )[0]


def list_files() -> list[str]:
    """Identity networks in models/face_identity and models/insightface."""
    return model_folders.names(IDENTITIES)


def state_of(name: str) -> str:
    """Another text whenever a listed file is another one; empty where it is not there."""
    return model_folders.state_of(IDENTITIES, name)


def load_identity(name: str) -> Identity:
    """ArcFace or AdaFace (IResNet) from safetensors; onnx files (red first, as ArcFace's) through
    onnx2torch when that is installed. ValueError says what to do."""
    path = model_folders.path_of(IDENTITIES, name)
    # Parameters made under inference_mode could not take part in a training.
    with torch.inference_mode(False):
        network = _from_onnx(path) if path.suffix.lower() == ".onnx" else _from_safetensors(path)
    return Identity(name, network.eval().requires_grad_(False), SIDE, 1.0)


def _from_safetensors(path: Path) -> nn.Module:
    from safetensors.torch import load_file

    with model_folders.reading(path, "ArcFace or AdaFace weights"):
        return load_iresnet({key: tensor.float() for key, tensor in load_file(path).items()})


def _from_onnx(path: Path) -> nn.Module:
    try:
        from onnx2torch import convert
    except ImportError as error:
        raise ValueError(
            "onnx files need the optional package onnx2torch (pip install onnx2torch, as in the"
            " pack's requirements-optional.txt): install it and restart ComfyUI, or use the same"
            " network as safetensors"
        ) from error
    try:
        network: nn.Module = convert(str(path)).eval()
        with torch.no_grad():
            embedding = network(torch.zeros(1, 3, SIDE, SIDE))
    # Whatever a file of another kind makes of the converter, or of a face.
    except Exception as error:
        raise ValueError(
            f"{path.name} cannot be used as a face-embedding network ({error}): take ArcFace"
            " weights such as w600k_r50"
        ) from error
    if not isinstance(embedding, Tensor) or embedding.ndim != 2:
        raise ValueError(
            f"{path.name} gives {_form_of(embedding)} for a face, an embedding (1 x D) was"
            " expected: this is another network, such as a face detector; take ArcFace weights such"
            " as w600k_r50"
        )
    return network


def _form_of(output: object) -> str:
    return (
        f"a tensor of shape {list(output.shape)}"
        if isinstance(output, Tensor)
        else f"a {type(output).__name__}"
    )
