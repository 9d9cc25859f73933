"""Metrics against direct use of the libraries, with tiny random networks in the real files'
formats."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import math
import os
from pathlib import Path

import folder_paths
import pytest
import torch

from magicportrait.host.faces.identity import Identity
from magicportrait.host.metrics.comparison import OFF, Comparison
from magicportrait.host.metrics.table import MetricTable, measure
from magicportrait.host.models.folders import METRICS
from magicportrait.host.pictures.compare_grid import CompareGrid
from magicportrait.host.pictures.conversion import as_pixels
from magicportrait.magic.boxes import Box
from magicportrait.magic.capture_losses import face_box, face_crops
from magicportrait.nodes.metrics import MagicCompareGrid, MagicPortraitMetrics
from magicportrait.tests.host import tiny_vision

ALL = ["CSIM", "CLIP-I", "CLIP-T", "DINO", "LPIPS", "style distance", "aesthetic"]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def model_store(tmp_path_factory) -> Path:
    models = tmp_path_factory.mktemp("models")
    tiny_vision.write_clip(models / "metrics" / "clip")
    tiny_vision.write_dino(models / "metrics" / "dino")
    tiny_vision.write_aesthetic(models / "metrics" / "aesthetic.safetensors")
    tiny_vision.write_alexnet(models / "metrics" / "alexnet-owt-7be5be79.pth")
    return models


@pytest.fixture
def use_models(monkeypatch):
    def use(models: Path) -> Path:
        monkeypatch.setattr(folder_paths, "models_dir", str(models))
        table = {
            name: entry
            for name, entry in folder_paths.folder_names_and_paths.items()
            if name != METRICS.name
        }
        monkeypatch.setattr(folder_paths, "folder_names_and_paths", table)
        return models

    return use


@pytest.fixture
def metrics_folder(use_models, model_store) -> Path:
    return use_models(model_store) / "metrics"


@pytest.fixture
def no_models(use_models, tmp_path) -> Path:
    return use_models(tmp_path)


def pictures(count: int, seed: int, height: int = 72, width: int = 66) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


class Colours:
    """In place of a MAGIC_IDENTITY network: the mean colour is the person."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = [*getattr(self, "seen", []), tuple(images.shape)]
        return torch.nn.functional.normalize(images.mean((1, 2)), dim=-1)

    def embed_face(self, image: torch.Tensor, corners: tuple[float, ...]) -> torch.Tensor:
        left, top, right, bottom = (int(side) for side in corners)
        return self.embed(image[None, top:bottom, left:right])[0]


def test_everything_at_once(metrics_folder):
    table = measure(Comparison(pictures(3, 0), pictures(2, 1), ("a hat",), identity=Colours()))
    assert list(table.columns) == ALL and not table.missing
    for values in table.columns.values():
        assert len(values) == 3 and not any(math.isnan(value) for value in values)
        assert len(set(values)) == 3, "each picture has its own value"


def test_clip_is_transformers_clip(metrics_folder):
    from transformers import CLIPModel, CLIPProcessor

    images, references, prompts = (
        pictures(3, 0),
        pictures(2, 1),
        ["a hat", "a red scarf, a man", "nothing"],
    )
    processor, model = (
        CLIPProcessor.from_pretrained(metrics_folder / "clip"),
        CLIPModel.from_pretrained(metrics_folder / "clip").eval(),
    )
    everything = [as_pixels(image) for image in (*images, *references)]
    out = model(**processor(text=prompts, images=everything, return_tensors="pt", padding=True))
    unit = out.image_embeds / out.image_embeds.norm(dim=-1, keepdim=True)
    words = out.text_embeds / out.text_embeds.norm(dim=-1, keepdim=True)

    table = measure(Comparison(images, references, tuple(prompts)))

    assert torch.tensor(table.columns["CLIP-I"]) == pytest.approx(
        (unit[:3] @ unit[3:].T).mean(1), abs=CLOSE
    )
    assert torch.tensor(table.columns["CLIP-T"]) == pytest.approx(
        (unit[:3] * words).sum(1), abs=CLOSE
    )
    assert torch.tensor(table.columns["aesthetic"]) == pytest.approx(
        aesthetic(unit[:3], metrics_folder), abs=CLOSE
    )


def aesthetic(unit: torch.Tensor, folder: Path) -> torch.Tensor:
    """The published predictor's module, spelled out."""
    from safetensors.torch import load_file

    widths, layers = (24, 16, 8, 6, 4, 1), []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [torch.nn.Linear(before, after), *([torch.nn.Dropout()] if i < 3 else [])]
    head = torch.nn.Module()
    head.layers = torch.nn.Sequential(*layers)
    head.load_state_dict(load_file(folder / "aesthetic.safetensors"))
    return head.eval().layers(unit)[:, 0]


def test_dino_is_transformers_dinov2(metrics_folder):
    from transformers import AutoImageProcessor, Dinov2Model

    images, references = pictures(2, 0), pictures(3, 1)
    processor, model = (
        AutoImageProcessor.from_pretrained(metrics_folder / "dino"),
        Dinov2Model.from_pretrained(metrics_folder / "dino"),
    )
    inputs = processor(
        images=[as_pixels(image) for image in (*images, *references)], return_tensors="pt"
    )
    tokens = model.eval()(**inputs).last_hidden_state[:, 0]
    expected = torch.nn.functional.cosine_similarity(
        tokens[:2, None], tokens[None, 2:], dim=-1
    ).mean(1)
    assert torch.tensor(measure(Comparison(images, references)).columns["DINO"]) == pytest.approx(
        expected, abs=CLOSE
    )


def test_lpips_is_the_packages(metrics_folder):
    import lpips
    import torchvision

    images, references = pictures(2, 0), pictures(1, 1)
    alexnet = torchvision.models.alexnet(weights=None)
    alexnet.load_state_dict(
        torch.load(metrics_folder / "alexnet-owt-7be5be79.pth", weights_only=True), strict=False
    )
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for part in (
        network.net.slice1,
        network.net.slice2,
        network.net.slice3,
        network.net.slice4,
        network.net.slice5,
    ):
        for index, layer in part.named_children():
            layer.load_state_dict(alexnet.features[int(index)].state_dict())
    expected = network(
        images.movedim(-1, 1) * 2 - 1, references.movedim(-1, 1).expand(2, -1, -1, -1) * 2 - 1
    ).flatten()
    assert torch.tensor(measure(Comparison(images, references)).columns["LPIPS"]) == pytest.approx(
        expected, abs=CLOSE
    )


def test_the_hosts_clip_vision_takes_the_place_of_the_folder(metrics_folder, tmp_path):
    """The folder's own weights in the host's class: the same numbers but for rounding in how each
    scales the pictures."""
    import comfy.clip_vision
    from safetensors.torch import load_file

    config = json.loads((metrics_folder / "clip" / "config.json").read_text())["vision_config"]
    config |= {
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "model_type": "clip_vision_model",
        "projection_dim": 24,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    vision = comfy.clip_vision.ClipVisionModel(str(tmp_path / "config.json"))
    state = load_file(metrics_folder / "clip" / "model.safetensors")
    state = {
        name: tensor
        for name, tensor in state.items()
        if name.startswith(("vision_model.", "visual_projection."))
    }
    missing, _ = vision.load_sd(state)
    assert not missing
    images, references = pictures(2, 0, 32, 32), pictures(2, 1, 32, 32)
    ours = measure(Comparison(images, references, clip_vision=vision, clip=OFF))
    assert ours.columns["CLIP-I"] == pytest.approx(
        measure(Comparison(images, references)).columns["CLIP-I"], abs=2e-4
    )
    assert "CLIP-T" in ours.missing and "aesthetic" in ours.columns


# ---- identity ----


def test_csim_by_hand():
    red, green = torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8, 3)
    red[..., 0], green[..., 1] = 1, 1
    table = measure(Comparison(torch.cat([red, green]), red, identity=Colours()))
    assert table.columns["CSIM"] == pytest.approx((1, 0))


def test_csim_looks_at_the_largest_face_and_skips_pictures_without(no_models):
    image = torch.zeros(3, 20, 30, 3)
    image[:, :, :15, 0] = 1
    image[:, :, 15:, 2] = 1
    left, right = Box(0, 0, 15, 20), Box(16, 2, 40, 10)
    network = Colours()
    table = measure(
        Comparison(
            image,
            image[:2],
            identity=network,
            boxes=((left,), (Box(2, 2, 4, 4), right), ()),
            reference_boxes=((left,), ()),
        )
    )
    assert table.columns["CSIM"][:2] == pytest.approx((1, 0)) and math.isnan(
        table.columns["CSIM"][2]
    )
    assert (1, 10, 14, 3) in network.seen, "boxes end at the picture's border"
    assert table.means()["CSIM"] == pytest.approx(0.5)
    assert "| 3 | -" in table.markdown(["1", "2", "3"])


def test_csim_cuts_faces_out_as_the_training_does(no_models):
    """The same face, box and margin in a training picture and in a table."""
    network = Identity(
        "mean", torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten()), side=16, margin=1.5
    )
    images, face = pictures(2, 0, 48, 40), Box(10, 14, 12, 18)
    mask = torch.zeros(48, 40)
    mask[14:32, 10:22] = 1
    square = face_box(mask, network.margin)[None].expand(2, -1)
    trained = network.embed_crops(face_crops(images.movedim(-1, 1), square, network.side))
    table = measure(
        Comparison(
            images[:1], images[1:], identity=network, boxes=((face,),), reference_boxes=((face,),)
        )
    )
    assert table.columns["CSIM"] == pytest.approx([(trained[0] @ trained[1]).item()], abs=CLOSE)


def test_no_reference_shows_a_face(no_models):
    table = measure(
        Comparison(pictures(1, 0), pictures(1, 1), identity=Colours(), reference_boxes=((),))
    )
    assert table.missing["CSIM"] == "no reference shows a face"


# ---- what is missing, and what does not fit ----


def test_every_network_missing(no_models):
    table = measure(Comparison(pictures(2, 0), pictures(1, 1), ("a hat",)))
    assert list(table.columns) == ["style distance"]
    assert list(table.missing) == [name for name in ALL if name != "style distance"]
    expected = {
        "CLIP-I": "no CLIP model in models/metrics",
        "LPIPS": "alexnet-owt",
        "CSIM": "MAGIC_IDENTITY",
        "DINO": "DINO model",
    }
    for name, word in expected.items():
        assert word in table.missing[name]


def test_no_references_and_no_prompt(metrics_folder):
    table = measure(Comparison(pictures(1, 0)))
    assert list(table.columns) == ["aesthetic"]
    assert table.missing["CLIP-T"].startswith("no prompt") and table.missing["DINO"].startswith(
        "no reference pictures"
    )


def test_the_package_lpips_missing(metrics_folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lpips", None)
    message = measure(Comparison(pictures(1, 0), pictures(1, 1))).missing["LPIPS"]
    assert "pip install lpips" in message and "requirements-optional.txt" in message


def test_an_aesthetic_head_for_another_clip(metrics_folder):
    tiny_vision.write_aesthetic(metrics_folder / "other_aesthetic.safetensors", features=768)
    try:
        table = measure(Comparison(pictures(1, 0), aesthetic="other_aesthetic.safetensors"))
    finally:
        (metrics_folder / "other_aesthetic.safetensors").unlink()
    assert "takes 768 features, 24 came" in table.missing["aesthetic"]


@pytest.mark.parametrize("name", ["../clip", "/etc", "nowhere"])
def test_other_names_are_refused(metrics_folder, name):
    table = measure(
        Comparison(
            pictures(1, 0),
            pictures(1, 1),
            ("a hat",),
            clip=name,
            dino=name,
            lpips=name,
            aesthetic=name,
        )
    )
    assert list(table.columns) == ["style distance"]


def test_counts_that_do_not_fit():
    with pytest.raises(ValueError, match="2 prompts for 3 pictures"):
        measure(Comparison(pictures(3, 0), prompts=("a", "b")))
    with pytest.raises(ValueError, match="boxes are for 1 pictures, but 2 came"):
        measure(Comparison(pictures(2, 0), boxes=((),)))


def test_one_pixel(metrics_folder):
    table = measure(
        Comparison(pictures(1, 0, 1, 1), pictures(1, 1), ("a hat",), identity=Colours())
    )
    assert list(table.missing) == ["LPIPS"] and "too small" in table.missing["LPIPS"]


# ---- the node ----


def test_the_node_gives_the_table_in_three_forms(no_models, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    output = MagicPortraitMetrics.execute(
        pictures(2, 0), pictures(1, 1), "a hat\na scarf", identity=Colours(), save_as="numbers/run"
    )
    table, as_csv, as_json = output.args
    assert output.ui.as_dict() == {"text": (table,)}
    assert (
        table.startswith("| picture | CSIM ↑ | style distance ↓ |")
        and "| mean |" in table
        and "- DINO: no DINO model" in table
    )
    rows = list(csv.DictReader(io.StringIO(as_csv)))
    read = json.loads(as_json)
    assert [float(row["CSIM"]) for row in rows] == pytest.approx(
        [entry["CSIM"] for entry in read["pictures"]], rel=1e-4
    )
    assert read["means"]["CSIM"] == pytest.approx(
        sum(entry["CSIM"] for entry in read["pictures"]) / 2
    )
    saved = sorted(path.name for path in (tmp_path / "numbers").iterdir())
    assert [name.rsplit(".", 1)[1] for name in saved] == ["csv", "json"] and all(
        name.startswith("run_") for name in saved
    )


@pytest.mark.parametrize("prefix", ["../outside", "/tmp/outside", "a/../../outside"])
def test_tables_are_written_into_the_output_folder_only(no_models, tmp_path, monkeypatch, prefix):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    (tmp_path / "output").mkdir()
    with pytest.raises(Exception, match="leads out of"):
        MagicPortraitMetrics.execute(pictures(1, 0), save_as=prefix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output"]


def test_on_a_full_disk_no_half_table_is_left(no_models, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"'run_00001_\.csv' could not .*: the disk is full"):
        MagicPortraitMetrics.execute(pictures(1, 0), save_as="run")
    assert not list(tmp_path.iterdir())


def test_missing_values_in_all_forms():
    table = MetricTable({"CSIM": (math.nan, 0.5)}, {"DINO": "gone"})
    assert table.csv(["a", "b"]) == "picture,CSIM\na,\nb,0.5\n"
    assert json.loads(table.json(["a", "b"]))["pictures"] == [
        {"picture": "a", "CSIM": None},
        {"picture": "b", "CSIM": 0.5},
    ]


# ---- the grid ----

GRID = {
    "row_captions": "",
    "column_captions": "",
    "title": "",
    "cell": 64,
    "turned": False,
    "gap": 4,
    "font": 12,
}


def grid(row_1: torch.Tensor, **options: object) -> torch.Tensor:
    return MagicCompareGrid.execute(row_1, **{**GRID, **options}).args[0]


def test_every_picture_is_in_its_place():
    rows = [
        torch.stack([torch.full((64, 64, 3), (3 * r + c + 1) / 10) for c in range(3)])
        for r in range(2)
    ]
    sheet = grid(rows[0], row_2=rows[1])
    assert sheet.shape == (1, 4 + 2 * 68, 4 + 3 * 68, 3)
    for r in range(2):
        for c in range(3):
            cell = sheet[0, 4 + 68 * r : 68 + 68 * r, 4 + 68 * c : 68 + 68 * c]
            assert torch.allclose(cell, torch.full_like(cell, (3 * r + c + 1) / 10), atol=3e-3)
    turned = grid(rows[0], row_2=rows[1], turned=True)
    assert turned.shape == (1, 4 + 3 * 68, 4 + 2 * 68, 3)
    assert torch.allclose(
        turned[0, 4 + 68 : 68 + 68, 4:68], torch.full((64, 64, 3), 0.2), atol=3e-3
    )


def test_captions_take_room_and_ink():
    plain, labelled = (
        grid(pictures(2, 0)),
        grid(
            pictures(2, 0), row_captions="MagicFace", column_captions="seed 1\nseed 2", title="Hats"
        ),
    )
    assert labelled.shape[1] > plain.shape[1] + 30 and labelled.shape[2] > plain.shape[2] + 30
    assert (labelled[0, : labelled.shape[1] - 72] < 0.3).all(-1).sum() > 50


def test_sizes_may_differ_and_places_may_be_blank():
    sheet = grid(pictures(1, 0, 10, 200), row_2=pictures(3, 1, 300, 20), row_5=pictures(1, 2, 1, 1))
    assert sheet.shape == (1, 4 + 3 * 68, 4 + 3 * 68, 3)


def test_too_many_captions_are_refused():
    with pytest.raises(ValueError, match="3 row captions for 1 rows: leave 2 out"):
        grid(pictures(2, 0), row_captions="a\nb\nc")


def test_a_grid_without_pictures():
    with pytest.raises(ValueError, match="the grid has no pictures"):
        CompareGrid([[None]]).draw()
