"""The Detail Pass: what is drawn, and that nothing else changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from magicportrait.demo import transformer_checkpoint
from magicportrait.host.pictures.host_boxes import as_host_boxes
from magicportrait.host.pictures.mask_parts import parts_of, without_specks
from magicportrait.magic.boxes import Box
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.detail import MagicDetailPass
from magicportrait.tests.host import models, sampling

PICTURES = torch.cat([sampling.picture(seed) for seed in (0, 1)]).movedim(1, -1)  # 2 128 128 3
TEXT = "a man wearing a hat"
HAT = sampling.concepts(1)


def two_areas() -> torch.Tensor:
    mask = torch.zeros(1, 128, 128)
    mask[:, 40:72, 16:40] = 1
    mask[:, 50:80, 88:112] = 1
    return mask


def run(image: torch.Tensor = PICTURES, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    model, clip, vae = sampling.parts()
    own = {"text": TEXT, "size": 64, "steps": 1, "cfg": 1.0, "seed": 5, "margin": 0.2}
    settings = {**defaults_of(MagicDetailPass), **own, "model": model, "clip": clip, "vae": vae}
    settings |= options
    if not {"boxes", "layout"} & options.keys():
        settings.setdefault("masks", two_areas())
    out, changed = MagicDetailPass.execute(image, **settings).args
    return out, changed


def test_nothing_but_the_areas_changes_and_a_batch_is_what_its_pictures_are() -> None:
    before = PICTURES.clone()
    out, changed = run()
    assert out.shape == PICTURES.shape and changed.shape == PICTURES.shape[:3]
    rest = changed == 0
    assert torch.equal(out[rest], PICTURES[rest]) and torch.equal(PICTURES, before)
    inside = two_areas()[0] > 0.5
    assert float(changed[:, inside].min()) > 0.9
    for picture in range(2):
        assert (out - PICTURES)[picture, inside].abs().mean() > 1e-3
    assert rest[:, :20].all() and rest[:, 100:].all() and rest[:, 40:80, 60:68].all()
    alone, _ = run(PICTURES[1:])
    assert torch.equal(alone[0], out[1])


@pytest.mark.parametrize("keep_around", [True, False])
def test_references_and_texts_reach_their_own_areas_only(keep_around: bool) -> None:
    image = PICTURES[:1]
    lines = "a man wearing a hat\na man wearing a scarf"
    hat, scarf = sampling.concepts(2)
    plain, _ = run(image, text=lines, keep_around=keep_around)
    out, _ = run(image, text=lines, concepts=(hat,), keep_around=keep_around)
    left, right = (part > 0.5 for part in parts_of(two_areas()[0], 1))
    assert not torch.equal(out[0, left], plain[0, left])
    assert torch.equal(out[0, right], plain[0, right])
    out, _ = run(image, text=lines, concepts=(scarf,), keep_around=keep_around)
    assert torch.equal(out[0, left], plain[0, left])
    assert not torch.equal(out[0, right], plain[0, right])


def test_an_occurrence_is_counted_over_all_lines_or_written_in_one() -> None:
    image, lines = PICTURES[:1], "a man wearing a hat\na man wearing a hat"
    [hat] = sampling.concepts(1)
    second = dataclasses.replace(hat, phrase="hat#2")
    plain, _ = run(image, text=lines)
    out, _ = run(image, text=lines, concepts=(second,))
    left, right = (part > 0.5 for part in parts_of(two_areas()[0], 1))
    assert torch.equal(out[0, left], plain[0, left])
    # In that line it is the only one.
    both, _ = run(image, text=lines, concepts=(hat,))
    assert torch.equal(out[0, right], both[0, right])
    assert not torch.equal(out[0, right], plain[0, right])
    written = "a man wearing a hat#2\na man wearing a hat"
    turned, _ = run(image, text=written, concepts=(second,))
    assert torch.equal(turned[0, left], both[0, left])
    assert torch.equal(turned[0, right], plain[0, right])


def test_a_concept_with_a_painted_region_acts_where_that_is() -> None:
    image, region = PICTURES[:1], torch.zeros(1, 64, 64)
    region[:, 20:36, 8:20] = 1
    placed = sampling.concepts(1, region=region)
    plain, _ = run(image)
    out, _ = run(image, concepts=placed)
    left, right = (part > 0.5 for part in parts_of(two_areas()[0], 1))
    assert not torch.equal(out[0, left], plain[0, left])
    assert torch.equal(out[0, right], plain[0, right])


def test_boxes_and_several_masks_are_areas_too() -> None:
    image = PICTURES[:1]
    masks, _ = run(image)
    left, right = parts_of(two_areas()[0], 1)
    apart, _ = run(image, masks=torch.stack([left, right]))
    boxes = as_host_boxes([[Box(88, 50, 24, 30), Box(16, 40, 24, 32)]])
    boxed, _ = run(image, boxes=boxes)
    assert torch.equal(apart, masks) and torch.equal(boxed, masks)


def test_a_layout_gives_each_line_its_area() -> None:
    watched, positive, layout = sampling.watch(sampling.parts()[0])
    latent = sampling.Sampling(batch=2, steps=2).run(watched, positive)
    options = {"layout": layout, "samples": {"samples": latent}}
    prompt = "a man wearing a red hat"
    out, changed = run(**options, text=prompt)
    step = layout.run_of(latent).steps[1]
    for picture in range(2):
        own = torch.from_numpy(step.concepts[picture] == 0).float()
        large = torch.nn.functional.interpolate(own[None, None], size=(128, 128))[0, 0]
        kept = without_specks(large, 0.1) > 0.5
        if kept.any():
            assert (changed[picture][kept] > 0.5).float().mean() > 0.8
    assert torch.equal(out[changed == 0], PICTURES[changed == 0]) and changed.any()
    with pytest.raises(ValueError, match=r"names no phrase of the layout \(hat, scarf\)"):
        run(**options, text="somebody")
    with pytest.raises(ValueError, match="samples is not connected"):
        run(layout=layout)
    with pytest.raises(ValueError, match="image has 1 pictures, but samples 2"):
        run(PICTURES[:1], **options, text=prompt)


def test_a_picture_without_an_area_stays_as_it_is(model_calls: list[int], caplog: Any) -> None:
    left = parts_of(two_areas()[0], 1)[0]
    masks = torch.stack([torch.zeros(128, 128), left])
    out, changed = run(masks=masks)
    assert torch.equal(out[0], PICTURES[0]) and not changed[0].any() and changed[1].any()
    assert "picture 1 has no area to draw anew" in caplog.text
    model_calls.clear()
    out, changed = run(masks=torch.zeros(1, 64, 64))
    assert torch.equal(out, PICTURES) and not changed.any() and not model_calls
    with pytest.raises(ValueError, match="picture 1 has no area to draw anew: give it one"):
        run(masks=masks, on_no_area="error")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"text": " "}, "text is empty"),
        ({"text": "a man\na woman\na dog"}, "3 lines, but picture 1 has 2 areas"),
        ({"masks": None}, "connect masks, boxes or layout"),
        ({"masks": two_areas(), "boxes": [[]]}, "masks and boxes are connected"),
        ({"masks": torch.ones(1, 64, 128)}, "mask and image of Detail Pass differ in aspect"),
        ({"masks": two_areas().expand(3, -1, -1)}, "2 pictures but 3 masks"),
        ({"denoise": 0.0}, "denoise is 0, expected 0.01 to 1"),
        ({"on_no_area": "maybe"}, "on_no_area"),
        ({"image": torch.rand(1, 128, 128)}, "expected a batch of pictures"),
        ({"text": "hat#9", "concepts": sampling.concepts(1)}, "has number 9 of 'hat', which"),
        (
            {"concepts": tuple(dataclasses.replace(c, phrase="[hat]#2") for c in HAT)},
            "concept '\\[hat\\]#2' in it: .* such as 'hat#2'",
        ),
        (
            {"concepts": tuple(dataclasses.replace(c, phrase="hat#2") for c in HAT)},
            "concept 'hat#2' in it: .* 'hat' stands there once",
        ),
        ({"concepts": sampling.concepts(2)}, "no line of text has the concept 'scarf' in it"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sampled(
    options: dict[str, Any], complaint: str, model_calls: list[int]
) -> None:
    with pytest.raises(ValueError, match=complaint):
        run(**options)
    assert not model_calls


def test_a_phrase_that_the_model_reads_nowhere_is_named_before_any_area_is_prepared(
    model_calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP's tokens of Chinese letters go across words: in the text, and not among its tokens."""
    lines = "a man wearing a hat\n戴帽子的人"
    [hat, cap] = sampling.concepts(2)
    cap = dataclasses.replace(cap, phrase="帽子")
    vae = sampling.parts()[2]
    monkeypatch.setattr(vae, "encode", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match="the line '戴帽子的人' of text: phrase '帽子' is not in"):
        run(PICTURES[:1], text=lines, concepts=(hat, cap), vae=vae)
    assert not model_calls


def test_a_patched_model_is_refused(model_calls: list[int]) -> None:
    model = sampling.apply(sampling.parts()[0])[0]
    with pytest.raises(ValueError, match="connect the one that goes into it"):
        run(model=model)
    assert not model_calls


def test_a_cancel_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management
    import comfy.utils

    model = sampling.parts()[0]
    before, told = models.state_of(model), []

    def cancel(bar: Any, value: int, total: int, preview: Any = None) -> None:
        told.append((value, total))
        if value == 3:
            raise management.InterruptProcessingException

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", cancel)
    with pytest.raises(management.InterruptProcessingException):
        run(concepts=sampling.concepts(1), steps=2)
    # Two pictures of two areas of two steps.
    assert told == [(1, 8), (2, 8), (3, 8)]
    assert models.state_of(model) == before


def test_it_draws_with_a_transformer() -> None:
    model, clip, vae = transformer_checkpoint.load()
    image = PICTURES[:1]
    parts = {"model": model, "clip": clip, "vae": vae, "cfg": 3.0, "steps": 1}
    plain, changed = run(image, **parts)
    assert torch.equal(plain[changed == 0], image[changed == 0])
    assert not torch.equal(plain, image)
    out, _ = run(image, **parts, concepts=sampling.concepts(1), inject_at=0.0)
    assert not torch.equal(out, plain)
