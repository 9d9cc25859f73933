"""The benches are started by hand and seldom: that each one can still be started, and be found."""

from __future__ import annotations

import dataclasses
import functools
import importlib

import pytest
import torch
from PIL import Image

from bench import (
    layout_conditioning,
    magicapture_effect,
    magicapture_step,
    magicface_effect,
    magicface_step,
    magicstyle,
    metrics,
    random_sd15,
    random_transformers,
    sheets,
    toy,
    toy_references,
    two_faces,
)
from bench.step_cost import Scale, figures_alone
from bench.toy_patterns import pattern_of
from devkit.pack import ROOT
from magicportrait.demo.portraits import PATTERNS, Garment, Pose, Scene, render, render_scene
from magicportrait.host.training.settings import CaptureSettings
from magicportrait.tests.host.dits import known_here
from magicportrait.tests.host.models import random_vae

FOLDER = ROOT / "bench"
TINY = Scale(latent=8, channels=32, steps=3, dtype=torch.float32)
BENCHES = sorted(
    path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_explains_itself(name, monkeypatch, capsys):
    bench = importlib.import_module(f"bench.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        bench.main()
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"python -m bench.{name}" in text


def test_every_module_is_named_in_the_readme_of_its_folder():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in FOLDER.glob("*.py") if f"`{path.stem}`" not in readme] == []


@pytest.mark.parametrize("kind", ["cut", "text", "missing"])
def test_a_picture_that_cannot_be_read_is_named(kind, tmp_path):
    path = tmp_path / f"{kind}.png"
    Image.new("RGB", (8, 8)).save(path)
    if kind == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(b"no picture" if kind == "text" else whole[: whole.index(b"IDAT") + 6])
    with pytest.raises(ValueError, match=rf"{kind}\.png cannot be read as a picture .*: take it"):
        metrics.read_pictures([path])


def test_a_figure_of_a_process_that_failed_says_why():
    with pytest.raises(
        RuntimeError, match=r"(?s)bench\.nowhere --one plain ended with 1:.*nowhere"
    ):
        figures_alone("bench.nowhere", "--one", "plain")


@pytest.mark.parametrize("mode", ["plain", "live", "kept"])
def test_a_step_of_magicface_can_be_measured(mode):
    assert all(figure > 0 for figure in magicface_step.measure(2, mode, TINY))


def test_a_step_on_a_stack_of_a_transformers_blocks_can_be_measured(monkeypatch, capsys):
    width = random_transformers.WIDTHS["flux"]
    small = {**width.config, "hidden_size": 64, "num_heads": 2, "axes_dim": [8, 12, 12]}
    known = known_here("flux", small)
    monkeypatch.setitem(
        random_transformers.WIDTHS, "flux", dataclasses.replace(width, config=known)
    )
    scale = dataclasses.replace(TINY, latent=16)
    magicface_step.report_stack("flux", scale, [1], kept=False)
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| 1 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3] == "2" and all(float(cell.removesuffix(" x")) > 0 for cell in cells)
    assert "read from 2 of 3 blocks; from 8 of 57" in text


@pytest.mark.parametrize("mode", ["plain", *magicstyle.ROWS])
def test_a_step_of_magicstyle_can_be_measured(mode):
    assert all(figure > 0 for figure in magicstyle.measure(mode, TINY))


@pytest.mark.parametrize("mode", magicapture_step.MODES)
def test_a_step_of_magicapture_can_be_measured(mode, monkeypatch):
    small = {"num_hidden_layers": 2, "intermediate_size": 64}
    monkeypatch.setattr(random_sd15, "TEXT_ENCODER", small)
    if mode != magicapture_step.MODES[1]:
        # The host knows its VAE at its own size only: once is enough.
        monkeypatch.setattr(random_sd15, "autoencoder", random_vae)
    assert all(figure > 0 for figure in magicapture_step.measure(mode, TINY, 1))


@pytest.mark.parametrize("mode", [magicapture_step.MODES[0], magicapture_step.MODES[2]])
def test_a_step_on_the_transformer_toy_can_be_measured(mode):
    seconds, memory = magicapture_step.measure_toy(mode, dataclasses.replace(TINY, latent=16), 1)
    assert seconds > 0 and memory >= 0


def test_patterns_are_read_from_pictures():
    right, cloths = dict.fromkeys(PATTERNS, 0), 0
    for portrait in toy.held_out(10, lambda portrait: bool(portrait.hat and portrait.scarf)):
        cloths += 3
        for pattern in PATTERNS:
            parts = {
                part: dataclasses.replace(getattr(portrait, part), pattern=pattern)
                for part in ("hat", "scarf", "shirt")
            }
            rendering = render(dataclasses.replace(portrait, **parts), 256)
            for part in parts:
                seen = pattern_of(
                    toy.picture(rendering)[0], toy.part_mask(rendering, part)[0] > 0.5
                )
                right[pattern] += seen == pattern
    # By chance a quarter. A brim is a stripe, and a beanie may show no whole dot.
    assert all(count >= 0.7 * cloths for count in right.values()), right


@dataclasses.dataclass(frozen=True)
class LaterSettings(CaptureSettings):
    """With a field that there is not yet."""

    later: float = 1.0


def test_what_a_plain_picture_has_nowhere_is_not_counted_as_unchanged():
    nowhere = torch.zeros(1, toy.SIDE, toy.SIDE, dtype=torch.bool)
    everywhere = ~nowhere
    black, white = (torch.full((1, toy.SIDE, toy.SIDE, 3), value) for value in (0.0, 1.0))
    others = [*toy_references.BYSTANDERS, *toy_references.CONCEPTS]
    regions = {**dict.fromkeys(others, nowhere), "shirt": everywhere, "pale skin": everywhere}
    plain = toy_references.Pictures(black, regions)
    magic = toy_references.Pictures(white, {"shirt": everywhere})
    references = {"shirt": toy_references.reference_sets()[0]["shirt"]}
    _, elsewhere = magicface_effect.score(plain, magic, references)
    assert elsewhere == pytest.approx(3**0.5)


def test_results_of_magicapture_outlive_a_new_setting_and_no_changed_one():
    effect, values = magicapture_effect, dataclasses.asdict(magicapture_effect.SETTINGS)
    first = effect.fingerprint(effect.SETTINGS)
    assert effect.fingerprint(LaterSettings(**values)) == first
    others = [
        LaterSettings(**values, later=2.0),
        *(dataclasses.replace(effect.SETTINGS, **change) for change in ({"rank": 8}, {"seed": 1})),
        effect.SETTINGS.as_official(),
    ]
    assert first not in {effect.fingerprint(other) for other in others}
    names = {field.name for field in dataclasses.fields(CaptureSettings)}
    assert names >= effect.FIRST_SETTINGS, "a setting was renamed: its results are others"


def test_a_sheet_says_what_its_pictures_are(tmp_path):
    rows = [[torch.full((16, 16, 3), (row + column) / 4) for column in range(3)] for row in (0, 1)]
    sheets.labelled_sheet(rows, tmp_path / "bare.png")
    sheets.labelled_sheet(rows, tmp_path / "sheet.png", ["I", "II"], ["a", "b", "c"])
    bare, sheet = (Image.open(tmp_path / f"{name}.png") for name in ("bare", "sheet"))
    beside, above = sheet.width - bare.width, sheet.height - bare.height
    assert beside > 0 and above > 0
    same = sheet.crop((beside, above, *sheet.size))
    assert same.tobytes() == bare.crop((0, 0, *same.size)).tobytes(), "the pictures as they are"
    strip, corner = sheet.crop((0, above, beside, sheet.height)), sheet.crop((0, 0, beside, above))
    assert strip.getcolors() != corner.getcolors(), "letters beside the rows"


def test_two_people_are_told_apart_by_hair_hat_and_skin(monkeypatch):
    monkeypatch.setattr(layout_conditioning, "MEANS_OF", 8)
    few = functools.cache(layout_conditioning.scene_masks.__wrapped__)
    monkeypatch.setattr(two_faces, "scene_masks", few)
    people = two_faces.COUPLES["man and woman"]
    left, right = (
        dataclasses.replace(person, pose=Pose(side * 0.235, 0.0, 0.7))
        for side, person in zip((-1, 1), people, strict=True)
    )
    images = torch.from_numpy(render_scene(Scene(left, right)).image)[None]
    with_others_hair = tuple(
        dataclasses.replace(own, hair=other.hair)
        for own, other in zip(people, people[::-1], strict=True)
    )
    counter = two_faces.Counter(people)
    assert list(counter.counts(images).values()) == [[2, 0, 0]] * 3
    assert two_faces.Counter(with_others_hair).counts(images)["hair"] == [0, 2, 0]
    exchanged = two_faces.Counter(people[::-1]).counts(images)
    assert exchanged["hat"] == exchanged["face"] == [0, 2, 0]
    empty = torch.ones_like(images)
    assert list(counter.counts(empty).values()) == [[0, 0, 2]] * 3
    # Neither brown hair nor red mouths and shirts are the red-haired one's.
    brown = Scene(dataclasses.replace(left, hair="brown", shirt=Garment("red")), right)
    brown_images = torch.from_numpy(render_scene(brown).image)[None]
    assert counter.counts(brown_images)["hair"] == [1, 0, 1]
    own, other, none = (
        two_faces.errors(each, who)
        for each, who in ((images, people), (images, people[::-1]), (empty, people))
    )
    assert all(a < b and a < c for a, b, c in zip(own, other, none, strict=True))
