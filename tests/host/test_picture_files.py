"""Pictures and masks of input folders, read as Load Image reads them, whatever kind of file they
are."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from magicportrait.host.pictures import capture_folder, concept_folder, input_folders
from magicportrait.host.pictures.picture_files import read_mask, read_picture
from magicportrait.nodes.concept_folder import MagicFaceConceptFolder
from magicportrait.nodes.magicapture_sets import MagiCaptureSubject

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    return tmp_path


def by_load_image(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    import nodes

    name = path.relative_to(folder_paths.get_input_directory()).as_posix()
    picture, mask = nodes.LoadImage().load_image(name)
    return picture[..., :3].float(), mask.float()


def cut_out(height: int = 20, width: int = 30) -> Image.Image:
    """A red square, half of its last row opaque, on a ground of transparent black."""
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[5:15, 5:15] = (200, 50, 50, 255)
    pixels[14, 5:15, 3] = 128
    return Image.fromarray(pixels)


# ---- kinds of files ----


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp", "gif", "jp2", "ppm", "jpg", "jpeg"])
def test_a_picture_is_what_load_image_makes_of_it(inputs, kind):
    path = inputs / f"noise.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    y, x = np.mgrid[:20, :30]
    Image.fromarray(np.stack([8 * x, 12 * y, 4 * (x + y)], -1).astype(np.uint8)).save(
        path, **options
    )
    expected, _ = by_load_image(path)
    # Decoders differ by rounding: ComfyUI has another one than PIL from 0.33 on.
    torch.testing.assert_close(read_picture(path).rgb, expected, rtol=0, atol=0.05)


def test_every_kind_that_the_host_lists_is_listed(inputs):
    for kind in ("png", "JPG", "jpeg", "webp", "bmp", "gif", "tiff", "tif", "avif", "jp2", "ppm"):
        (inputs / f"a.{kind}").write_bytes(b"")
    for name in ("a.txt", "a.safetensors", "b", ".hidden", "Thumbs.db"):
        (inputs / name).write_bytes(b"")
    (inputs / "folder.png").mkdir()
    files = input_folders.files_in(inputs)
    listed = folder_paths.filter_files_content_types(
        [entry.name for entry in inputs.iterdir() if entry.is_file()], ["image"]
    )
    assert [path.name for path in files.pictures] == sorted(listed) and len(listed) >= 10
    assert files.others == ("a.safetensors", "a.txt", "b")


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_of_gray_are_all_used(inputs, kind):
    gray = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(gray).save(inputs / f"a.{kind}")
    expected = torch.from_numpy(gray.astype(np.float32) / 65535)
    picture, mask = read_picture(inputs / f"a.{kind}"), read_mask(inputs / f"a.{kind}")
    torch.testing.assert_close(picture.rgb, expected[None, ..., None].expand(-1, -1, -1, 3))
    torch.testing.assert_close(mask, expected[None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_the_right_way_up(inputs, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(NOISE).save(inputs / "a.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(inputs / "a.png"))
    expected = torch.from_numpy(np.asarray(upright, np.float32) / 255)[None]
    assert torch.equal(read_picture(inputs / "a.png").rgb, expected)
    assert read_mask(inputs / "a.png").shape == expected.shape[:3]


def test_the_first_picture_of_several_is_taken(inputs):
    frames = [Image.fromarray(NOISE), Image.new("RGB", (30, 20))]
    frames[0].save(inputs / "a.tiff", save_all=True, append_images=frames[1:])
    assert torch.equal(
        read_picture(inputs / "a.tiff").rgb[0], torch.from_numpy(NOISE.astype(np.float32) / 255)
    )


def test_what_pil_does_not_know_is_left_to_the_host(inputs, monkeypatch):
    import nodes

    (inputs / "a.png").write_bytes(b"of a kind that PIL does not know")
    picture = torch.rand(1, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 4, 5)
    mask[0, 0] = 1
    asked: list[str] = []
    monkeypatch.setattr(
        nodes.LoadImage, "load_image", lambda _, name: asked.append(name) or (picture, mask)
    )
    read = read_picture(inputs / "a.png")
    assert asked == ["a.png"] and torch.equal(read.opacity, 1 - mask)
    torch.testing.assert_close(read.rgb[0, 1:], picture[0, 1:], rtol=0, atol=0.003)


# ---- transparency ----


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_a_cut_out_lies_on_white_and_knows_its_opacity(inputs, kind):
    path = inputs / f"a.{kind}"
    cut_out().save(path, **({"lossless": True} if kind == "webp" else {}))
    picture = read_picture(path)
    assert torch.equal(picture.rgb[0, 0, 0], torch.ones(3)), "the ground was black"
    torch.testing.assert_close(picture.rgb[0, 10, 10], torch.tensor([200, 50, 50]) / 255)
    half = torch.tensor([200, 50, 50]) / 255 * (128 / 255) + 1 - 128 / 255
    torch.testing.assert_close(picture.rgb[0, 14, 10], half)
    _, transparent = by_load_image(path)
    torch.testing.assert_close(picture.opacity, 1 - transparent, rtol=0, atol=0.005)


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_other_modes_have_transparency_too(inputs, mode):
    image = cut_out()
    image = image.quantize(16) if mode == "P" else image.convert("LA")
    image.save(inputs / "a.png")
    picture = read_picture(inputs / "a.png")
    assert torch.equal(picture.rgb[0, 0, 0], torch.ones(3))
    assert picture.opacity is not None and picture.opacity[0, 10, 10] == 1


def test_an_opaque_picture_with_an_alpha_channel_is_a_picture(inputs):
    Image.fromarray(NOISE).convert("RGBA").save(inputs / "a.png")
    Image.fromarray(NOISE).save(inputs / "b.png")
    assert read_picture(inputs / "a.png").opacity is None
    assert torch.equal(read_picture(inputs / "a.png").rgb, read_picture(inputs / "b.png").rgb)
    assert torch.equal(read_mask(inputs / "a.png"), read_mask(inputs / "b.png"))


def test_a_mask_in_the_alpha_channel_is_what_is_transparent(inputs):
    """As the Mask Editor saves what was painted, over a picture that is no mask at all."""
    painted = np.zeros((20, 30), bool)
    painted[5:9, 4:20] = True
    pixels = np.concatenate([NOISE, np.where(painted, 0, 255)[..., None].astype(np.uint8)], -1)
    Image.fromarray(pixels).save(inputs / "a.png")
    _, expected = by_load_image(inputs / "a.png")
    assert torch.equal(read_mask(inputs / "a.png"), expected)
    assert torch.equal(read_mask(inputs / "a.png")[0] > 0.5, torch.from_numpy(painted))


# ---- damage ----


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_truncated_picture_among_five_is_named(inputs, kind):
    folder = inputs / "anna"
    folder.mkdir()
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    for i in range(5):
        large.save(folder / f"{i}.{kind}")
    content = (folder / f"3.{kind}").read_bytes()
    (folder / f"3.{kind}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"folder 'anna': 3\.{kind} is damaged or no picture"):
        MagiCaptureSubject.execute(["anna"], ["<anna>"], ["woman"], ["{person}"])


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_what_is_no_picture_is_named(inputs, content):
    (inputs / "a.png").write_bytes(content)
    for read in (read_picture, read_mask):
        with pytest.raises(ValueError, match=r"a\.png is damaged or no picture"):
            read(inputs / "a.png")


# ---- folders ----


def concept_set(inputs: Path) -> Path:
    root = inputs / "set"
    for kind in ("image", "mask"):
        (root / kind).mkdir(parents=True)
        Image.new("RGB", (30, 20), "white").save(root / kind / "hat.png")
    return root


def test_a_cut_out_needs_no_mask(inputs):
    root = concept_set(inputs)
    (root / "mask" / "hat.png").unlink()
    cut_out().save(root / "image" / "hat.png")
    [concept] = concept_folder.read_folder("set", 3.0).concepts
    assert concept.mask[0, 10, 10] == 1 and concept.mask[0, 0, 0] == 0


def test_what_is_not_read_is_in_the_log_and_in_the_report(inputs, caplog):
    root = concept_set(inputs)
    (root / "image" / "notes.txt").write_text("")
    Image.new("RGB", (30, 20), "white").save(root / "mask" / "scarf.webp")
    with caplog.at_level(logging.WARNING):
        report = MagicFaceConceptFolder.execute("set").args[-1]
    assert "not read: image/notes.txt, mask/scarf" in report
    assert "'set': not read: image/notes.txt, mask/scarf" in caplog.text


def test_captions_beside_training_pictures_are_said_to_be_left_out(inputs, caplog):
    (inputs / "anna").mkdir()
    Image.fromarray(NOISE).save(inputs / "anna" / "a.png")
    for i in range(8):
        (inputs / "anna" / f"{i}.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        capture_folder.read_folder("anna")
    assert "'anna': not read: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 3 more" in caplog.text


def test_a_folder_that_is_called_like_a_picture_is_none(inputs):
    (inputs / "anna" / "x.png").mkdir(parents=True)
    assert capture_folder.list_folders() == []
    Image.fromarray(NOISE).save(inputs / "anna" / "a.png")
    (inputs / "anna" / "mask" / "a.png").mkdir(parents=True)
    assert capture_folder.list_folders() == ["anna"] and not capture_folder.has_masks("anna")
    pictures, masks, names = capture_folder.read_folder("anna")
    assert (len(pictures), masks, names) == (1, None, ["a.png"])


def test_two_pictures_of_one_name_are_refused(inputs):
    root = concept_set(inputs)
    Image.new("RGB", (30, 20)).save(root / "image" / "hat.webp")
    with pytest.raises(ValueError, match=r"image/ has hat\.png and hat\.webp: keep one of them"):
        concept_folder.read_folder("set", 3.0)


def test_names_that_are_no_text(inputs):
    odd = os.fsdecode(b"h\xff\xfet")
    root = concept_set(inputs)
    try:
        for kind in ("image", "mask"):
            os.rename(root / kind / "hat.png", root / kind / f"{odd}.png")
    except OSError:
        pytest.skip("this file system has names of text only")
    read = concept_folder.read_folder("set", 3.0)
    assert read.concepts[0].phrase == "h\\xff\\xfet"
    "\n".join(read.report).encode()
    (root / "mask" / f"{odd}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"h\\xff\\xfet\.png is damaged") as refused:
        concept_folder.read_folder("set", 3.0)
    str(refused.value).encode()
    os.rename(root, inputs / odd)
    assert concept_folder.list_folders() == [], "its name cannot be sent to the page"
    assert capture_folder.list_folders() == []


def test_listing_looks_no_further_than_it_must(inputs, monkeypatch):
    """60,000 files cost as many looks at a name, not at a file: the host's own lists do both."""
    for i in range(300):
        (inputs / f"{i}.png").write_bytes(b"")
    (inputs / "anna").mkdir()
    for i in range(300):
        (inputs / "anna" / f"{i}.png").write_bytes(b"")
    looks: list[str] = []
    stat = os.stat

    def count_call(path: object, *args: object, **options: object) -> os.stat_result:
        looks.append(str(path))
        return stat(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", count_call)
    names: list[int] = []
    listed = folder_paths.filter_files_content_types

    def filter_files(files: list[str], kinds: list[str]) -> list[str]:
        names.append(len(files))
        return listed(files, kinds)

    monkeypatch.setattr(folder_paths, "filter_files_content_types", filter_files)
    assert capture_folder.list_folders() == ["anna"]
    assert len(looks) < 30 and sum(names) < 10
    concept_folder.list_folders()
    assert len(looks) < 60 and sum(names) < 10


def test_the_state_of_a_folder_is_that_of_what_is_read(inputs):
    root = concept_set(inputs)
    before = concept_folder.state_of("set")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "a.png").write_bytes(b"")
    assert concept_folder.state_of("set") == before
    os.utime(root / "mask" / "hat.png", ns=(1, 1))
    changed = concept_folder.state_of("set")
    assert changed != before
    (root / "config.yaml").write_text("")
    assert concept_folder.state_of("set") != changed
