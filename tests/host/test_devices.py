"""The nodes on a pretended GPU: on the CPU alone nobody sees a tensor that is on the wrong
device."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils._pytree import tree_leaves

from magicportrait.host.faces.identity import load_identity
from magicportrait.host.metrics.comparison import Comparison
from magicportrait.host.metrics.table import measure
from magicportrait.host.models.folders import DETECTORS, FACE_DETECTORS, METRICS, SAMS
from magicportrait.host.page.correspondence_view import answer
from magicportrait.host.training.checkpoint import CheckpointFile
from magicportrait.host.training.run import CaptureTraining
from magicportrait.magic.boxes import Box
from magicportrait.nodes.analysis import (
    MagicAttentionHeatmap,
    MagicAttentionMap,
    MagicCorrespondence,
    MagicCorrespondenceMap,
)
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.layout import MagicLayoutMasks
from magicportrait.nodes.magicapture_apply import MagiCaptureApply
from magicportrait.nodes.magicapture_train import MagiCaptureTrain
from magicportrait.nodes.magicstyle import MagicStyleApply, MagicStyleReference, MagicStyleSampler
from magicportrait.nodes.masks import MagicConceptMask, MagicMaskRefine
from magicportrait.nodes.restore import MagicPortraitRestore
from magicportrait.nodes.toy import MagicToyCheckpoint
from magicportrait.tests.host import inverting, models, sampling, tiny_vision
from magicportrait.tests.host.inverting import invert, latent, sample, sample_again
from magicportrait.tests.host.pretend_gpu import CPU, PRETEND, pretend_gpu
from magicportrait.tests.host.sampling import Sampling, apply, concepts, encode
from magicportrait.tests.host.test_capture_nodes import TRAIN, subject_and_style
from magicportrait.tests.host.test_live_layout import node_seven, serve  # noqa: F401
from magicportrait.tests.host.test_magicapture import QUICK, recogniser, sets
from magicportrait.tests.host.test_masks import DEFAULTS
from magicportrait.tests.host.test_restore import Inverts
from magicportrait.tests.unit.test_iresnet import weights


@cache
def parts(shape: str = "sd15", dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    model = models.random_model(shape, dtype)
    model.load_device = PRETEND
    return model, models.random_clip(), models.random_vae()


@pytest.fixture(scope="module", autouse=True)
def models_go_with_the_tests() -> Iterator[None]:
    yield
    with pretend_gpu():
        parts.cache_clear()
        gc.collect()


@pytest.fixture(autouse=True)
def on_a_pretended_gpu(monkeypatch, request) -> Iterator[None]:
    with pretend_gpu(**getattr(request, "param", {})):
        # Models of other tests are on the CPU.
        for helpers in (sampling, inverting):
            monkeypatch.setattr(helpers, "parts", parts)
        yield


# The host then leaves what it can on the CPU, and moves it layer by layer where the layers are its
# own.
short_of_memory = pytest.mark.parametrize(
    "on_a_pretended_gpu", [{"memory": 2**20}], indirect=True, ids=["short of memory"]
)


@pytest.fixture
def everything_on_the_gpu(monkeypatch) -> None:
    """The host's --gpu-only: pictures and latents stay there."""
    for name in (
        "intermediate_device",
        "unet_offload_device",
        "vae_offload_device",
        "text_encoder_offload_device",
    ):
        monkeypatch.setattr(comfy.model_management, name, lambda: PRETEND)


def test_tensors_of_two_devices_do_not_mix():
    there, here = torch.randn(3, 4, device=PRETEND), torch.randn(3, 4)
    assert (
        there.device == PRETEND
        and here.device == CPU
        and (there * 2).device == PRETEND
        and there[0, 1:].device == PRETEND
    )
    assert torch.equal((there + here.to(PRETEND)).cpu(), there.cpu() + here)
    for mix in (
        lambda: there + here,
        lambda: here * there[0, 0],
        lambda: here.add_(there),
        lambda: torch.zeros(()).add_(there[0, 0]),
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there[0, 0], torch.zeros(())]),
        lambda: torch.nn.functional.linear(there, here),
        lambda: torch.where(here > 0, there, 0),
        lambda: there.gather(0, torch.zeros(1, 4, dtype=torch.long)),
        lambda: torch.isin(there, here),
        lambda: torch.randn(2, device=PRETEND, generator=torch.Generator()),
        lambda: torch.randn(2, generator=torch.Generator(PRETEND)),
        lambda: here[torch.tensor([0], device=PRETEND)],
        lambda: there.index_put_((torch.tensor([0]),), here[0]),
    ):
        with pytest.raises(RuntimeError, match="device"):
            mix()
    for conversion in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="numpy"):
            conversion()


def test_what_cuda_allows():
    there, here = torch.zeros(3, 4, device=PRETEND), torch.ones(3, 4)
    assert (there + here[0, 0]).device == PRETEND and (here[0, 0] - there).device == PRETEND
    assert there[torch.tensor([0, 2])].device == PRETEND and there[here[:, 0] > 0].device == PRETEND
    there[torch.tensor([0, 2])] = here.sum()
    there[1:] = here[1:]
    assert here.copy_(there) is here and here.device == CPU
    assert (
        torch.zeros_like(here, device=PRETEND).device == PRETEND
        and torch.empty_like(there, device="cpu").device == CPU
    )
    assert (
        there.new_zeros(2).device == PRETEND
        and torch.as_tensor([1.0], device=PRETEND).device == PRETEND
    )
    assert (
        torch.randn(2, device=PRETEND, generator=torch.Generator(PRETEND).manual_seed(0)).device
        == PRETEND
    )
    assert (
        there.to(PRETEND) is there
        and there.to(torch.float64).device == PRETEND
        and there.to(here).device == CPU
    )
    assert np.asarray(there.cpu()).sum() == there.sum().item()


@torch.inference_mode(False)
def test_gradients_come_back_to_where_the_weights_are():
    layer = torch.nn.Linear(3, 2).to(PRETEND)
    given = torch.randn(4, 3, requires_grad=True)
    layer(given.to(PRETEND)).cpu().sum().backward()
    assert layer.weight.grad.device == PRETEND and given.grad.device == CPU
    assert all(tensor.device == PRETEND for tensor in layer.state_dict().values())


@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_the_host_alone(shape):
    """What fails here is the pretended GPU's fault."""
    assert (
        Sampling(steps=2, sampler="euler_ancestral").run(parts(shape)[0], encode("a man")).device
        == CPU
    )


def test_the_toy_world():
    model, clip, vae = MagicToyCheckpoint.execute().args
    positive = clip.encode_from_tokens_scheduled(clip.tokenize("a smiling woman with red hair"))
    samples = Sampling(steps=2).run(model, positive)
    on_the_cpu(positive, samples, vae.decode(samples), vae.encode(torch.rand(1, 64, 64, 3)))


def on_the_cpu(*values: Any) -> None:
    """Nodes hand tensors of the CPU to each other: the host moves what it loads, and core nodes mix
    what they are given."""
    for tensor in tree_leaves(values):
        if isinstance(tensor, torch.Tensor):
            assert tensor.device == CPU, tuple(tensor.shape)
            assert not tensor.is_floating_point() or tensor.isfinite().all()


# ---- MagicFace, layouts and attention ----


MAGICFACE: dict[str, dict[str, Any]] = {
    "regions": {},
    "kept features": {"keep_features": "memory"},
    "semantic CFG": {"semantic_cfg": True, "reference_noise": "per step"},
}


@pytest.mark.usefixtures("node_seven")
@pytest.mark.parametrize("options", MAGICFACE.values(), ids=MAGICFACE)
def test_magicface(options, monkeypatch):
    page = serve(monkeypatch)
    if "keep_features" in options:
        options = {**options, "chained": concepts(2, region=torch.ones(1, 64, 64))}
    patched, positive, record = apply(parts()[0], **{"chained": concepts(3), **options})
    for _ in range(2 if "keep_features" in options else 1):
        samples = Sampling(batch=2, steps=3).run(patched, positive)
    assert len(page.events) > 1
    on_the_cpu(samples)
    on_the_cpu(
        *MagicLayoutMasks.execute(record, {"samples": samples}, -1, torch.rand(2, 128, 128, 3)).args
    )


@short_of_memory
def test_semantic_layout():
    patched, positive, record = sampling.watch(parts()[0])
    samples = Sampling(steps=2).run(patched, positive)
    on_the_cpu(samples, *MagicLayoutMasks.execute(record, {"samples": samples}, -1).args)


@pytest.mark.parametrize(
    "options",
    [{"points": "40,40"}, {"points": "", "mask": torch.ones(1, 128, 128)}],
    ids=["points", "mask"],
)
def test_correspondence(options):
    chained = concepts()
    face, positive, _ = apply(parts()[0], chained=chained)
    patched, record = MagicCorrespondence.execute(face, start=0.0, end=1.0, **options).args
    samples = Sampling(batch=2, steps=2).run(patched, positive)
    shown = MagicCorrespondenceMap.execute(
        record, {"samples": samples}, 0.8, chained, torch.rand(2, 128, 128, 3)
    )
    on_the_cpu(samples, *shown.args)
    [data] = shown.ui["magic_exploration"]
    status, found = answer(
        data["key"], {"picture": "0", "x": "0.5", "y": "0.5", "step": "1", "group": "16x16"}
    )
    assert status == 200 and len(found["references"]) == len(chained)


def test_attention_map():
    patched, positive, record = MagicAttentionMap.execute(
        parts()[0], parts()[1], sampling.PROMPT, "hat, scarf", "all", 0.0, 1.0
    ).args
    samples = Sampling(batch=2, steps=2, negative=encode(" ".join(["blurry ugly"] * 60))).run(
        patched, positive
    )
    on_the_cpu(
        samples,
        *MagicAttentionHeatmap.execute(
            record, {"samples": samples}, 0.8, torch.rand(2, 128, 128, 3)
        ).args,
    )


# ---- MagicStyle ----


@pytest.mark.parametrize(("method", "cfg"), [("euler", 2.0), ("fixed-point", 1.0), ("o-belm", 1.0)])
def test_inversion(method, cfg):
    model, _, vae = parts()
    picture = {"latent": None, "image": torch.rand(1, 64, 64, 3)} if method == "euler" else {}
    # Without the cache, then into it and out of it again.
    for cache_mb in (0, 64, 64):
        found = invert(
            model, latent(2), steps=2, vae=vae, method=method, cfg=cfg, cache_mb=cache_mb, **picture
        )
        on_the_cpu(
            found[0].latents, found[0].sigmas, found[0].resampled, found[1]["samples"], found[2]
        )
    on_the_cpu(sample_again(model, found))


@pytest.mark.usefixtures("everything_on_the_gpu")
def test_the_report_compares_what_is_cached_with_what_is_not():
    for _ in range(2):
        invert(
            parts()[0], latent(2).to(PRETEND), steps=2, vae=parts()[2], method="o-belm", cache_mb=64
        )


@pytest.mark.parametrize(("keys", "keep"), [("content+style", "memory"), ("blend", "off")])
def test_magicstyle(keys, keep):
    model = parts()[0]
    content, look = (
        invert(model, latent(1, (8, 8), seed), steps=2, measure=False, cache_mb=0, method="euler")
        for seed in (0, 50)
    )
    left = torch.zeros(1, 64, 64)
    left[..., :24] = 1
    styles = MagicStyleReference.execute(look[0], 1.0, left).args[0]
    styles = MagicStyleReference.execute(look[0], 0.5, 1 - left, styles).args[0]
    options = {
        **defaults_of(MagicStyleApply),
        "preset": "custom",
        "alpha": 0.5,
        "beta": 0.25,
        "keys": keys,
        "keep_features": keep,
    }
    patched, noise, _ = MagicStyleApply.execute(model, content[0], styles, **options).args
    _, _, sigmas, sampler, positive, _ = content
    for cfg in (1.0, 7.0):
        on_the_cpu(noise["samples"], sample(patched, noise, sigmas, sampler, positive, cfg=cfg))


def test_magicstyle_sampler():
    model, clip, vae = parts()
    content, look = torch.rand(1, 64, 64, 3), torch.rand(1, 64, 96, 3)
    options = {**defaults_of(MagicStyleSampler), "steps": 2, "cache_mb": 0}
    drawn, _ = MagicStyleSampler.execute(model, vae, content, look, clip=clip, **options).args
    on_the_cpu(drawn["samples"])


@pytest.mark.usefixtures("everything_on_the_gpu")
def test_an_inversion_from_the_cache_stands_beside_a_fresh_one():
    model, clip, vae = parts()
    content, options = (
        torch.rand(1, 64, 64, 3),
        {**defaults_of(MagicStyleSampler), "steps": 2, "cache_mb": 64},
    )
    for seed in range(2):
        look = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(seed))
        MagicStyleSampler.execute(model, vae, content, look, clip=clip, **options)


@pytest.mark.usefixtures("everything_on_the_gpu")
def test_a_mask_on_the_gpu_stands_beside_none():
    model = parts()[0]
    content, look = (
        invert(
            model,
            latent(1, (8, 8), seed).to(PRETEND),
            steps=2,
            measure=False,
            cache_mb=0,
            method="euler",
        )
        for seed in (0, 50)
    )
    styles = MagicStyleReference.execute(look[0], 1.0, torch.ones(1, 64, 64).to(PRETEND)).args[0]
    styles = MagicStyleReference.execute(look[0], 0.5, None, styles).args[0]
    patched, noise, _ = MagicStyleApply.execute(
        model, content[0], styles, **defaults_of(MagicStyleApply)
    ).args
    assert sample(patched, noise, *content[2:5]).device == PRETEND


# ---- MagiCapture ----


def test_training(tmp_path):
    settings = replace(QUICK, inversion_steps=1, lora_steps=1, batch=3, gradient_checkpointing=True)
    who = recogniser()
    training = CaptureTraining(*parts(), *sets(), who, settings)
    file = CheckpointFile(tmp_path / "training.pt", 1)
    trained = training.run(lambda *_: None, file)
    on_the_cpu(
        trained.lora,
        [embedding.vectors for embedding in trained.embeddings],
        list(who.network.parameters()),
    )
    file.write(training.state())
    training.take_up(file.read(training.fingerprint), file.path)
    assert {adapter.up.device for adapter in training.networks.denoiser.adapters.values()} == {
        PRETEND
    }
    patched, clip = MagiCaptureApply.execute(
        *parts()[:2], trained.embeddings, 0.6, 0.9, trained.lora
    ).args
    positive = clip.encode_from_tokens_scheduled(
        clip.tokenize("a portrait of a <anna> woman in the style of <ink>")
    )
    on_the_cpu(Sampling(steps=1).run(patched, positive))


def test_training_node():
    subject, style = subject_and_style()
    trained = MagiCaptureTrain.execute(
        *parts(),
        subject,
        style,
        **{**TRAIN, "inversion_steps": 1, "lora_steps": 1, "checkpoint_every": 0},
    )
    on_the_cpu(trained.args[0])


# ---- pictures ----


@pytest.fixture
def model_folder(monkeypatch, tmp_path) -> Path:
    """The host's models folder, and no other place where a model could be."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    ours = {folder.name for folder in (METRICS, SAMS, DETECTORS, FACE_DETECTORS)}
    table = {
        name: entry
        for name, entry in folder_paths.folder_names_and_paths.items()
        if name not in (*ours, "face_identity")
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", table)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@short_of_memory
def test_metrics(model_folder):
    tiny_vision.write_clip(model_folder / "metrics" / "clip")
    tiny_vision.write_dino(model_folder / "metrics" / "dino")
    tiny_vision.write_aesthetic(model_folder / "metrics" / "aesthetic.safetensors")
    tiny_vision.write_alexnet(model_folder / "metrics" / "alexnet-owt-7be5be79.pth")
    (model_folder / "face_identity").mkdir()
    safetensors.torch.save_file(
        weights(False), model_folder / "face_identity" / "arcface.safetensors"
    )
    who, images = load_identity("arcface.safetensors"), torch.rand(2, 72, 66, 3)
    # One side by its faces, the other as a whole.
    table = measure(
        Comparison(
            images, images.flip(0), ("a hat",), boxes=((Box(5, 5, 40, 40),),) * 2, identity=who
        )
    )
    assert len(table.columns) == 7 and not table.missing


@pytest.mark.usefixtures("everything_on_the_gpu")
def test_faces_of_pictures_on_the_gpu():
    who, picture = recogniser(), torch.rand(1, 64, 64, 3)
    torch.testing.assert_close(who.embed(picture.to(PRETEND)).cpu(), who.embed(picture).cpu())
    assert who.embed_face(picture[0].to(PRETEND), (8, 8, 40, 40)).isfinite().all()


@short_of_memory
@pytest.mark.parametrize(
    "target",
    [{"target": "text"}, {"target": "points", "points": "20,20", "box": "5,5,40,40"}],
    ids=["text", "points"],
)
def test_concept_masks(model_folder, target):
    tiny_vision.write_sam(model_folder / "sams" / "tiny.pth")
    tiny_vision.write_grounding_dino(model_folder / "grounding-dino" / "tiny")
    mask, _, overlay = MagicConceptMask.execute(
        torch.rand(2, 70, 50, 3), **{**DEFAULTS, **target}
    ).args
    on_the_cpu(mask, overlay, MagicMaskRefine.execute(mask, 0.5, True, True, 3, 2.0, False).args)


class Upscaler(Inverts):
    """Stands for a spandrel model that is moved to the device by hand, as older hosts do."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return super().__call__(image * self.model.weight / self.model.weight)

    def to(self, device: torch.device) -> Upscaler:
        self.model.to(device)
        return self


@pytest.mark.parametrize("managed", [False, True])
def test_restoring_faces(managed):
    face_model, upscaler = Upscaler(1), Upscaler(2)
    if managed:
        for descriptor in (face_model, upscaler):
            descriptor.patcher = comfy.model_patcher.ModelPatcher(
                descriptor.model, load_device=PRETEND, offload_device=CPU
            )
    faces = torch.zeros(1, 96, 128)
    faces[:, 20:52, 10:42] = 1
    options = {"strength": 1.0, "on_no_face": "skip", "margin": 1.2, "feather": 0.1}
    on_the_cpu(
        MagicPortraitRestore.execute(
            torch.rand(2, 96, 128, 3), face_model, faces=faces, upscale_model=upscaler, **options
        ).args
    )
