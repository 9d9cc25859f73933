"""The face-embedding network of the toy world: who a drawn person is, whatever the style, the pose
and the mood."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

PATH = Path(__file__).parent / "identity" / "magic_toy_identity.safetensors"
SIDE = 64
MARGIN = 1.15
"""Side of the crop over side of the head's box."""
_WIDTHS = (24, 48, 96, 128)


class FaceNetwork(nn.Sequential):
    """Crops B 3 64 64 in -1..1 -> embeddings B 64."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for into, out in zip((3, *_WIDTHS[:-1]), _WIDTHS, strict=True):
            layers += [
                nn.Conv2d(into, out, 3, stride=2, padding=1),
                nn.GroupNorm(8, out),
                nn.SiLU(),
            ]
        super().__init__(
            *layers, nn.Flatten(), nn.Linear(_WIDTHS[-1] * (SIDE // 2 ** len(_WIDTHS)) ** 2, 64)
        )


def load(path: Path = PATH) -> FaceNetwork:
    from safetensors.torch import load_file

    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is missing: reinstall the pack, or train it (python -m"
            " demo.train_identity)"
        )
    # Parameters made under inference_mode could not take part in a training.
    with torch.inference_mode(False):
        network = FaceNetwork()
        network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        return network.eval().requires_grad_(False)


def save(network: FaceNetwork, metadata: dict[str, str], path: Path = PATH) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(exist_ok=True)
    save_file(
        {
            name: tensor.detach().half().contiguous()
            for name, tensor in network.state_dict().items()
        },
        path,
        metadata,
    )
    path.chmod(0o644)


def normalised(network: nn.Module, crops: Tensor) -> Tensor:
    """Crops in 0..1 -> unit vectors."""
    return torch.nn.functional.normalize(network(crops * 2 - 1), dim=1)
