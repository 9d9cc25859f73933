"""The IResNet of ArcFace (arXiv 1801.07698) and AdaFace (arXiv 2204.00964), in whatever depth and
naming the weights have."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

SIDE = 112


class _Unit(nn.Module):
    """Normalise, convolve, convolve with the stride, and add the input, itself projected or thinned
    out where the shape changes."""

    def __init__(self, into: int, out: int, stride: int, projected: bool):
        super().__init__()
        self.stride = stride
        self.bn1, self.conv1 = nn.BatchNorm2d(into), nn.Conv2d(into, out, 3, padding=1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(out), nn.PReLU(out)
        self.conv2, self.bn3 = nn.Conv2d(out, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if projected
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if self.downsample else x[..., :: self.stride, :: self.stride]
        changed: Tensor = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return changed + shortcut


class IResNet(nn.Module):
    """Faces B 3 112 112, RGB in -1..1 -> embeddings B D. bgr: the weights expect blue first, as
    AdaFace's do."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], bgr: bool):
        super().__init__()
        self.bgr = bgr
        width = shapes["conv1.weight"][0]
        self.conv1, self.bn1, self.prelu = (
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
        )
        units: list[nn.Module] = []
        into = stage = 0
        for index in range(
            1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("units."))
        ):
            into, out = (
                shapes[f"units.{index}.conv1.weight"][1],
                shapes[f"units.{index}.conv1.weight"][0],
            )
            starts = out != stage
            stage = out
            units.append(
                _Unit(into, out, 2 if starts else 1, f"units.{index}.downsample.0.weight" in shapes)
            )
        self.units = nn.Sequential(*units)
        embedding, features = shapes["fc.weight"]
        self.bn2 = nn.BatchNorm2d(stage)
        self.fc = nn.Linear(features, embedding)
        self.features = nn.BatchNorm1d(embedding)

    def forward(self, faces: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(faces.flip(1) if self.bgr else faces)))
        embedding: Tensor = self.features(self.fc(self.bn2(self.units(x)).flatten(1)))
        return embedding


_STEM = {"0": "conv1", "1": "bn1", "2": "prelu"}
_BODY = {"0": "bn1", "1": "conv1", "2": "bn2", "3": "prelu", "4": "conv2", "5": "bn3"}
_HEAD = {"0": "bn2", "3": "fc", "4": "features"}


def load_iresnet(state: Mapping[str, Tensor]) -> IResNet:
    """Builds the network that the weights are of. ValueError when they are of something else."""
    if any(name.startswith("model.") for name in state):
        # A training's checkpoint has the head that told its own people apart beside the model.
        state = {name: tensor for name, tensor in state.items() if name.startswith("model.")}
    state = {re.sub(r"^(module\.|model\.)+", "", name): tensor for name, tensor in state.items()}
    bgr = any(name.startswith("body.") for name in state)
    renamed = _from_adaface(state) if bgr else _from_arcface(state)
    if not {"conv1.weight", "fc.weight", "units.0.conv1.weight"} <= renamed.keys():
        raise ValueError(
            "these are no weights of an ArcFace or AdaFace IResNet: keys such as"
            " 'layer1.0.conv1.weight' or 'body.0.*' are missing"
        )
    network = IResNet({name: tuple(tensor.shape) for name, tensor in renamed.items()}, bgr)
    missing, unexpected = network.load_state_dict(renamed, strict=False)
    left_out = {"num_batches_tracked", "features.weight", "features.bias"}
    if unexpected or [name for name in missing if not name.endswith(tuple(left_out))]:
        raise ValueError(
            f"these weights do not fit an IResNet: missing {missing[:3]}, unexpected"
            f" {unexpected[:3]}"
        )
    return network.eval().requires_grad_(False)


def _from_arcface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """layer1.0 ... layer4.2 become one row of units."""
    unit = re.compile(r"layer(\d)\.(\d+)\.(.+)")
    matches = {name: unit.match(name) for name in state}
    places = sorted({(int(match[1]), int(match[2])) for match in matches.values() if match})
    index = {place: i for i, place in enumerate(places)}
    renamed = {}
    for name, match in matches.items():
        new = f"units.{index[int(match[1]), int(match[2])]}.{match[3]}" if match else name
        renamed[new] = state[name]
    return renamed


def _from_adaface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"body\.(\d+)\.(res|shortcut)_layer\.(\d+)\.(.+)", name):
            index, layer, number, rest = match.groups()
            place = _BODY[number] if layer == "res" else f"downsample.{number}"
            name = f"units.{index}.{place}.{rest}"
        elif match := re.fullmatch(r"(input|output)_layer\.(\d+)\.(.+)", name):
            layer, number, rest = match.groups()
            name = f"{(_STEM if layer == 'input' else _HEAD)[number]}.{rest}"
        renamed[name] = tensor
    return renamed
