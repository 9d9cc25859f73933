"""IResNet weights in the names of ArcFace and of AdaFace, against the networks spelled out layer by
layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magicportrait.magic.iresnet import load_iresnet

UNITS, WIDTHS = (2, 1, 1, 1), (8, 12, 16, 20)


def norm(state: dict[str, Tensor], name: str, width: int, affine: bool = True) -> None:
    if affine:
        state[f"{name}.weight"], state[f"{name}.bias"] = (
            1 + torch.randn(width) * 0.1,
            torch.randn(width) * 0.1,
        )
    state[f"{name}.running_mean"], state[f"{name}.running_var"] = (
        torch.randn(width) * 0.1,
        torch.rand(width) + 0.5,
    )
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def conv(state: dict[str, Tensor], name: str, into: int, out: int, size: int = 3) -> None:
    state[f"{name}.weight"] = torch.randn(out, into, size, size) * (into * size * size) ** -0.5


def weights(adaface: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    stem = (
        ("input_layer.0", "input_layer.1", "input_layer.2")
        if adaface
        else ("conv1", "bn1", "prelu")
    )
    conv(state, stem[0], 3, WIDTHS[0])
    norm(state, stem[1], WIDTHS[0])
    state[f"{stem[2]}.weight"] = torch.rand(WIDTHS[0]) * 0.3
    into, index = WIDTHS[0], 0
    for stage, (count, width) in enumerate(zip(UNITS, WIDTHS, strict=True)):
        for i in range(count):
            unit = f"body.{index}.res_layer." if adaface else f"layer{stage + 1}.{i}."
            names = [
                f"{unit}{n}"
                for n in (range(6) if adaface else ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3"))
            ]
            norm(state, names[0], into)
            conv(state, names[1], into, width)
            norm(state, names[2], width)
            state[f"{names[3]}.weight"] = torch.rand(width) * 0.3
            conv(state, names[4], width, width)
            norm(state, names[5], width)
            # AdaFace's first stage thins out by pooling, since its width does not change.
            if i == 0 and not (adaface and stage == 0):
                short = (
                    f"body.{index}.shortcut_layer" if adaface else f"layer{stage + 1}.0.downsample"
                )
                conv(state, f"{short}.0", into, width, 1)
                norm(state, f"{short}.1", width)
            into, index = width, index + 1
    head = (
        ("output_layer.0", "output_layer.3", "output_layer.4")
        if adaface
        else ("bn2", "fc", "features")
    )
    norm(state, head[0], into)
    state[f"{head[1]}.weight"], state[f"{head[1]}.bias"] = (
        torch.randn(24, into * 49) * 0.05,
        torch.randn(24),
    )
    norm(state, head[2], 24, affine=not adaface)
    return state


def naive(state: dict[str, Tensor], faces: Tensor, adaface: bool) -> Tensor:
    def bn(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(
            x,
            *(
                state.get(f"{name}.{part}")
                for part in ("running_mean", "running_var", "weight", "bias")
            ),
        )

    stem = (
        ("input_layer.0", "input_layer.1", "input_layer.2")
        if adaface
        else ("conv1", "bn1", "prelu")
    )
    x = faces[:, [2, 1, 0]] if adaface else faces
    x = F.prelu(
        bn(F.conv2d(x, state[f"{stem[0]}.weight"], padding=1), stem[1]), state[f"{stem[2]}.weight"]
    )
    index = 0
    for stage, count in enumerate(UNITS):
        for i in range(count):
            unit = f"body.{index}.res_layer." if adaface else f"layer{stage + 1}.{i}."
            names = [
                f"{unit}{n}"
                for n in (range(6) if adaface else ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3"))
            ]
            y = F.conv2d(bn(x, names[0]), state[f"{names[1]}.weight"], padding=1)
            y = F.prelu(bn(y, names[2]), state[f"{names[3]}.weight"])
            y = bn(
                F.conv2d(y, state[f"{names[4]}.weight"], stride=2 if i == 0 else 1, padding=1),
                names[5],
            )
            short = (
                f"body.{index}.shortcut_layer" if adaface else f"layer{stage + 1}.{i}.downsample"
            )
            if f"{short}.0.weight" in state:
                x = bn(F.conv2d(x, state[f"{short}.0.weight"], stride=2), f"{short}.1")
            elif i == 0:
                x = F.max_pool2d(x, 1, 2)
            x, index = y + x, index + 1
    head = (
        ("output_layer.0", "output_layer.3", "output_layer.4")
        if adaface
        else ("bn2", "fc", "features")
    )
    x = F.linear(bn(x, head[0]).flatten(1), state[f"{head[1]}.weight"], state[f"{head[1]}.bias"])
    return bn(x, head[2])


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
@pytest.mark.parametrize("adaface", [False, True])
def test_gives_what_the_weights_mean(adaface, prefix):
    state = weights(adaface)
    network = load_iresnet({prefix + name: tensor for name, tensor in state.items()})
    faces = torch.randn(2, 3, 112, 112)
    torch.testing.assert_close(network(faces), naive(state, faces, adaface), rtol=1e-4, atol=1e-4)


def test_a_gradient_reaches_the_face():
    faces = torch.randn(1, 3, 112, 112, requires_grad=True)
    load_iresnet(weights(False))(faces).sum().backward()
    assert faces.grad.abs().max() > 0


@pytest.mark.parametrize("broken", ["other", "missing", "strange"])
def test_other_weights_are_refused(broken):
    state = weights(False)
    if broken == "other":
        state = {"blocks.0.weight": torch.zeros(3, 3)}
    elif broken == "missing":
        del state["layer2.0.bn2.weight"]
    else:
        state["layer2.0.attention.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="IResNet"):
        load_iresnet(state)


def test_the_head_of_a_trainings_checkpoint_is_left_out():
    state, faces = weights(True), torch.rand(2, 3, 112, 112)
    saved = {f"model.{name}": tensor for name, tensor in state.items()} | {
        "head.kernel": torch.rand(24, 5),
        "head.t": torch.zeros(1),
    }
    assert torch.equal(load_iresnet(saved)(faces), load_iresnet(state)(faces))


def test_adaface_weights_beside_others_are_refused_with_the_name_of_what_is_too_much():
    with pytest.raises(ValueError, match=r"do not fit an IResNet: .*head\.kernel"):
        load_iresnet({**weights(True), "head.kernel": torch.rand(24, 5)})
