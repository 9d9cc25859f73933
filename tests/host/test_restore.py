"""Face restoration with models that can be checked: real spandrel models are trained weights, which
cannot ship with the tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import pytest
import torch

from magicportrait.host.faces.restoration import upscale
from magicportrait.host.models.borrowed_network import BorrowedNetwork
from magicportrait.nodes.restore import MagicPortraitRestore


class Inverts:
    """Stands for a spandrel model: takes 0..1 and gives the negative, enlarged by `scale`."""

    def __init__(self, scale: int = 1) -> None:
        self.scale, self.seen = scale, []
        self.model = torch.nn.Linear(1, 1)
        self.architecture = SimpleNamespace(id="ESRGAN")

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(image.shape[-2:]))
        return torch.nn.functional.interpolate(1 - image, scale_factor=self.scale, mode="nearest")

    def to(self, device: torch.device) -> Inverts:
        return self


class Enlarges(Inverts):
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(image, scale_factor=self.scale, mode="nearest")


DEFAULTS: dict[str, Any] = {"strength": 1.0, "on_no_face": "skip", "margin": 1.0, "feather": 0.0}


def gray(batch: int = 1, height: int = 96, width: int = 128) -> torch.Tensor:
    return torch.full((batch, height, width, 3), 0.2)


def spots(*places: tuple[int, int, int, int], size: tuple[int, int] = (96, 128)) -> torch.Tensor:
    mask = torch.zeros(1, *size)
    for left, top, right, bottom in places:
        mask[0, top:bottom, left:right] = 1
    return mask


def restore(image: torch.Tensor, model: Inverts | None = None, **inputs: Any) -> torch.Tensor:
    return MagicPortraitRestore.execute(image, model or Inverts(), **{**DEFAULTS, **inputs}).args[0]


def test_only_the_faces_change():
    model = Inverts()
    found = restore(gray(), model, faces=spots((10, 20, 42, 52), (80, 30, 112, 62)))
    changed = (found - 0.2).abs().amax(-1)[0] > 0.01
    assert model.seen == [(512, 512)] * 2
    assert torch.equal(changed, spots((10, 20, 42, 52), (80, 30, 112, 62))[0] > 0)
    torch.testing.assert_close(found[0, 30, 20], torch.full((3,), 0.8))


def gfpgan() -> Any:
    """spandrel's own GFPGAN, with few channels and random weights."""
    from spandrel import ImageModelDescriptor
    from spandrel.architectures.GFPGAN import GFPGAN, GFPGANArch

    torch.manual_seed(0)
    model = GFPGAN(narrow=1 / 16, channel_multiplier=1)
    # Drawn noise counts for nothing as long as its weights are 0.
    state = {
        name: torch.ones_like(value) if value.shape == (1,) else value
        for name, value in model.state_dict().items()
    }
    return ImageModelDescriptor(
        model,
        state,
        architecture=GFPGANArch(),
        purpose="FaceSR",
        tags=[],
        supports_half=False,
        supports_bfloat16=True,
        scale=1,
        input_channels=3,
        output_channels=3,
        call_fn=lambda model, image: model(image)[0],
    )


@torch.inference_mode()
def test_gfpgan_sees_and_gives_pictures_in_its_own_range():
    descriptor, picture = (
        gfpgan(),
        torch.rand(1, 512, 512, 3, generator=torch.Generator().manual_seed(0)),
    )
    expected = (
        descriptor.model(picture.movedim(-1, 1).contiguous() * 2 - 1, randomize_noise=False)[0] / 2
        + 0.5
    )
    found = restore(picture, descriptor, faces=torch.ones(1, 512, 512))
    torch.testing.assert_close(found, expected.clamp(0, 1).movedim(1, -1), rtol=0, atol=1e-5)
    assert ((found > 0) & (found < 1)).float().mean() > 0.3, (
        "a picture that is clipped everywhere shows nothing"
    )
    assert torch.equal(found, restore(picture, descriptor, faces=torch.ones(1, 512, 512))), (
        "noise of its own"
    )


def test_codeformer_sees_and_gives_pictures_in_its_own_range():
    """Its code comes with spandrel_extra_arches, whose licence is not for everyone: this is its
    calling convention."""
    seen: list[torch.Tensor] = []

    class Network(torch.nn.Linear):
        def forward(
            self, x: torch.Tensor, weight: float = 0.5, **_: Any
        ) -> tuple[torch.Tensor, None, None]:
            seen.append(x)
            return -x, None, None

    model = Inverts()
    model.model, model.architecture.id = Network(1, 1), "CodeFormer"
    found = restore(gray(), model, faces=spots((10, 20, 42, 52)))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 512, 512), -0.6))
    torch.testing.assert_close(found[0, 30, 20], torch.full((3,), 0.8))


def test_a_box_is_the_same_as_a_mask():
    by_mask = restore(gray(), faces=spots((10, 20, 42, 52)))
    for boxes in ([(10, 20, 32, 32)], (10, 20, 32, 32)):
        assert torch.equal(restore(gray(), boxes=boxes), by_mask)
    found = {"x": 10, "y": 20, "width": 32, "height": 32, "label": "face", "score": 0.9}
    for boxes in (found, [found], [[found]]):
        assert torch.equal(restore(gray(), boxes=boxes), by_mask), "as Concept Mask gives them"
    beyond = {**found, "x": 500}
    assert torch.equal(restore(gray(), boxes=[[found, beyond]]), by_mask), (
        "what is outside of the picture is no face"
    )
    two = restore(gray().repeat(2, 1, 1, 1), boxes=[[], [found]])
    assert torch.equal(two[0], gray()[0]) and torch.equal(two[1], by_mask[0])


def test_strength_margin_and_feather():
    half = restore(gray(), faces=spots((32, 32, 64, 64)), strength=0.5)
    assert half[0, 48, 48, 0].item() == pytest.approx(0.5, abs=1e-4)
    wide = restore(gray(), faces=spots((32, 32, 64, 64)), margin=1.5)
    assert ((wide - 0.2).abs() > 0.01).any(-1).sum().item() == 48 * 48
    soft = restore(gray(), faces=spots((32, 32, 64, 64)), feather=0.25)[0, 48, 32:64, 0]
    assert (
        (soft[:16].diff() > -1e-5).all()
        and soft[0] < 0.25
        and soft[15].item() == pytest.approx(0.8, abs=1e-3)
    )


def test_a_face_at_the_border():
    found = restore(gray(), faces=spots((0, 0, 30, 30)), margin=2.0)
    assert (
        found.shape == (1, 96, 128, 3) and ((found - 0.2).abs() > 0.01).any(-1)[0, :45, :45].all()
    )


def test_the_picture_is_enlarged_first():
    found = restore(gray(2), faces=spots((10, 20, 42, 52)), upscale_model=Enlarges(2))
    assert found.shape == (2, 192, 256, 3)
    changed = (found - 0.2).abs().amax(-1) > 0.01
    assert changed.sum().item() == 2 * 64 * 64 and changed[:, 40:104, 20:84].all()


class RunsOut(Enlarges):
    """Has not enough memory for large tiles."""

    def __init__(self, error: Exception) -> None:
        super().__init__(2)
        self.error = error

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[-1] > 128:
            raise self.error
        return super().__call__(image)


def test_without_memory_tiles_become_smaller():
    picture = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    error = (
        management.OOM_EXCEPTION("out of memory")
        if management.OOM_EXCEPTION is not Exception
        else RuntimeError("out of memory")
    )
    torch.testing.assert_close(upscale(picture, RunsOut(error)), upscale(picture, Enlarges(2)))
    if management.OOM_EXCEPTION is not Exception:
        with pytest.raises(RuntimeError, match="another error"):
            upscale(picture, RunsOut(RuntimeError("another error")))


def test_room_is_made_for_the_work_too(monkeypatch):
    asked: list[float] = []
    original = management.load_models_gpu

    def spy(models: Any, memory_required: float = 0, **options: Any) -> Any:
        asked.append(memory_required)
        return original(models, memory_required, **options)

    monkeypatch.setattr(management, "load_models_gpu", spy)
    model, upscaler = Inverts(), Enlarges(4)
    for each in (model, upscaler):
        each.patcher = comfy.model_patcher.ModelPatcher(
            each.model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
        )
    restore(gray(), model, faces=spots((10, 20, 42, 52)), upscale_model=upscaler)
    BorrowedNetwork(torch.nn.Linear(1, 1)).on_device()
    assert min(asked) >= 2 * 1024**3 and max(asked) > 4 * 1024**3 and len(asked) == 3


def test_masks_of_another_size():
    found = restore(gray(), faces=spots((5, 10, 21, 26), size=(48, 64)))
    assert ((found - 0.2).abs() > 0.01).any(-1)[0, 20:52, 10:42].all()


def test_no_face():
    nothing = spots()
    assert torch.equal(restore(gray(), faces=nothing), gray())
    with pytest.raises(ValueError, match="picture 1 has no face in its mask or boxes"):
        restore(gray(), faces=nothing, on_no_face="error")
    with pytest.raises(ValueError, match="connect a mask of the faces, or boxes"):
        restore(gray())


def test_an_unpainted_mask_shows_no_face_whatever_its_aspect():
    """Load Image gives 64 x 64 zeros, whatever size the picture has."""
    unpainted = torch.zeros(1, 64, 64)
    assert torch.equal(restore(gray(), faces=unpainted), gray())
    with pytest.raises(ValueError, match="picture 1 has no face in its mask or boxes"):
        restore(gray(), faces=unpainted, on_no_face="error", invert=True)


def test_the_mask_of_a_cut_out_can_be_turned_round(caplog):
    spot = spots((10, 20, 42, 52))
    assert torch.equal(restore(gray(), faces=1 - spot, invert=True), restore(gray(), faces=spot))
    assert not caplog.text
    restore(gray(), faces=1 - spot)
    assert "the mask of faces has the border of the picture" in caplog.text
