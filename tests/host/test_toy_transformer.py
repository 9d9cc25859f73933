"""The transformer toy: scenes of two people, captions that bind words to a person, a training that
goes on from a checkpoint or from weights alone, and the same network in the host's own classes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magicportrait.demo import (
    train_transformer,
    training_run,
    transformer_checkpoint,
    transformer_quality,
)
from magicportrait.demo.asked_colours import asked_colours, draw, right_colours
from magicportrait.demo.captions import TransformerCaptions
from magicportrait.demo.checkpoint import read_parts, write_parts
from magicportrait.demo.dataset import SCENE_PARTS, encode_seed, latent_files
from magicportrait.demo.edit_set import EditCaptions
from magicportrait.demo.portraits import (
    GARMENT_COLOURS,
    PARTS,
    SKIN_NAMES,
    SKIN_TONES,
    STYLES,
    Garment,
    caption,
    caption_phrases,
    render_scene,
    sample_portrait,
    sample_scene,
    scene_caption_phrases,
    second_colour,
)
from magicportrait.demo.training_run import Run
from magicportrait.demo.transformer import (
    TEXT_TOKENS,
    TRANSFORMER_CONFIG,
    ToyTransformer,
    attention_to,
)
from magicportrait.nodes.toy import MagicToyCheckpoint

EVERYTHING = frozenset({*PARTS, "skin"})
PROMPT = (
    "a man with red hair and a blue hat, a woman with dark skin, black hair and a green scarf, pink"
    " background"
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same blocks, narrow; and the host's training mode is left as it was."""
    import comfy.model_management

    for name, value in {"hidden_size": 24, "num_heads": 2, "axes_dim": [4, 4, 4]}.items():
        monkeypatch.setitem(TRANSFORMER_CONFIG, name, value)
    in_training = getattr(comfy.model_management, "in_training", False)
    monkeypatch.setattr(comfy.model_management, "in_training", in_training, raising=False)


# ---- pictures and captions ----


@pytest.mark.parametrize("seed", range(4))
def test_the_parts_of_two_people_cover_a_scene_once_and_lie_on_their_own_sides(seed: int) -> None:
    drawn = render_scene(sample_scene(seed), 128)
    assert set(drawn.masks) == set(SCENE_PARTS) and drawn.image.shape == (128, 128, 3)
    assert np.abs(sum(drawn.masks.values()) - 1).max() < 0.01
    columns = np.arange(128)
    centres = [
        (drawn.masks[person, "face"].sum(0) * columns).sum() / drawn.masks[person, "face"].sum()
        for person in range(2)
    ]
    assert centres[0] < 50 and centres[1] > 78


def test_a_scene_shows_the_shirts_of_its_own_people_where_the_masks_say_so() -> None:
    for seed in range(20):
        scene = sample_scene(seed, "cartoon")
        drawn = render_scene(scene, 128)
        for person, portrait in enumerate((scene.left, scene.right)):
            shirt = drawn.image[drawn.masks[person, "shirt"] > 0.99] * 255
            colours = (GARMENT_COLOURS[portrait.shirt.colour], second_colour(portrait.shirt.colour))
            apart = [np.abs(shirt - colour).max(-1) for colour in colours]
            assert (np.minimum(*apart) < 2).mean() > 0.6, (seed, person)


def test_two_people_are_drawn_independently_and_share_background_and_style() -> None:
    scenes = [sample_scene(seed) for seed in range(200)]
    assert all(
        scene.left.background == scene.right.background and scene.left.style == scene.right.style
        for scene in scenes
    )
    for attribute in ("gender", "skin", "hair"):
        equal = np.mean([getattr(s.left, attribute) == getattr(s.right, attribute) for s in scenes])
        values = len({getattr(s.left, attribute) for s in scenes})
        assert abs(equal - 1 / values) < 0.12, attribute


def test_captions_name_the_skin_only_when_asked() -> None:
    for tone, name in zip(SKIN_TONES, SKIN_NAMES, strict=True):
        portrait = replace(sample_portrait(0), skin=tone)
        assert "skin" not in caption(portrait)
        assert (f"{name} skin", "face") in caption_phrases(portrait, EVERYTHING)


def test_a_word_that_both_people_share_names_each_persons_own_part() -> None:
    captions, scene = TransformerCaptions(), sample_scene(3)
    mention = frozenset({"hair", "shirt"})
    line = [
        (words, SCENE_PARTS.index((person, part)) if part and part != "background" else None)
        for words, part, person in scene_caption_phrases(scene, (mention, mention))
    ]
    text = captions.encode([line])
    hair, shirt = (captions.row_of(word) for word in ("hair", "shirt"))
    named = {
        word: [
            SCENE_PARTS[int(part)]
            for token, part, weight in zip(
                text.tokens[0], text.parts[0], text.weights[0], strict=True
            )
            if weight == 1 and text.rows[0, token] == row
        ]
        for word, row in (("hair", hair), ("shirt", shirt))
    }
    assert named == {
        "hair": [(0, "hair"), (1, "hair")],
        "shirt": [(0, "shirt"), (1, "shirt")],
    }


def test_captions_of_everything_fit_into_forty_tokens() -> None:
    captions = TransformerCaptions()
    pictures = [sample_scene(seed) if seed % 2 else sample_portrait(seed) for seed in range(300)]
    text = captions.draw(pictures, random.Random(0))
    assert text.rows.shape == (300, TEXT_TOKENS)
    assert (text.rows[:, -1] == captions.end_row).all(), "the end token is never cut off"
    assert 0.05 < text.is_empty.float().mean() < 0.16
    people = (text.parts >= len(PARTS)) & (text.weights > 0)
    assert people[1::2].any(1).float().mean() > 0.8 and not people[::2].any()


def test_what_is_encoded_of_a_picture_is_its_latent_and_the_coverage_of_its_parts() -> None:
    for kind, parts in (("portraits", len(PARTS)), ("scenes", len(SCENE_PARTS))):
        latent, masks = encode_seed(kind, 1)
        assert latent.shape == (4, 32, 32) and latent.dtype == np.float16
        assert masks.shape == (parts, 16, 16)
        assert np.abs(masks.sum(0, dtype=int) - 255).max() <= parts


# ---- training ----


def test_attention_to_some_columns_is_the_joint_softmax_renormalised_over_them() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = TEXT_TOKENS + 9 + 4
    q, k = (torch.randn(2, 3, tokens, 8, generator=generator).double() for _ in range(2))
    picture = slice(TEXT_TOKENS, TEXT_TOKENS + 9)
    joint = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)[:, :, picture]
    for columns in (slice(0, TEXT_TOKENS), slice(TEXT_TOKENS + 9, None)):
        among = joint[..., columns]
        expected = (among / among.sum(-1, keepdim=True)).mean(1)
        assert (attention_to(q, k, 9, columns) - expected).abs().max() < 1e-6


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training folder with three pictures of each kind."""
    generator = np.random.default_rng(0)
    for kind, parts in (("portraits", len(PARTS)), ("scenes", len(SCENE_PARTS))):
        latents, masks = latent_files(tmp_path, kind)
        np.save(latents, generator.normal(size=(3, 4, 32, 32)).astype(np.float16))
        np.save(masks, generator.integers(0, 255, (3, parts, 16, 16)).astype(np.uint8))
    for module in (training_run, train_transformer):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setattr(train_transformer, "WEIGHTS", tmp_path / "average.safetensors")
    return tmp_path


@torch.inference_mode(False)
def run(steps: int) -> None:
    train_transformer.train_transformer(Run(torch.device("cpu"), steps, batch=2))


def checkpoint_of(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "transformer.pt", weights_only=True)
    return state


def test_training_moves_every_weight_and_goes_on_where_it_stopped(folder: Path) -> None:
    torch.manual_seed(0)
    built = ToyTransformer(TransformerCaptions().token_ids).state_dict()
    run(3)
    first = checkpoint_of(folder)
    run(4)
    second = checkpoint_of(folder)
    assert (first["step"], second["step"]) == (3, 4)
    assert "resuming at step 3" in (folder / "transformer.log").read_text()
    # The blocks' gates start at zero, what lies behind one moves a step later.
    moved = [name for name in built if not torch.equal(first["model"][name], built[name])]
    still = {name for name in built if name not in moved}
    assert all(torch.isfinite(value).all() for value in second["model"].values())
    assert still <= {"text_encoder.token_ids"}, still
    run(4)
    again = checkpoint_of(folder)
    assert all(torch.equal(again["model"][name], second["model"][name]) for name in built)


def test_weights_alone_are_enough_to_train_on(folder: Path) -> None:
    run(2)
    average = checkpoint_of(folder)["average"]
    (folder / "transformer.pt").unlink()
    model = ToyTransformer(TransformerCaptions().token_ids)
    assert train_transformer.initial_weights(model, train_transformer.WEIGHTS) == 2
    assert all(
        torch.allclose(value, average[name], rtol=1e-3, atol=1e-4)
        for name, value in model.state_dict().items()
    )
    run(3)
    assert checkpoint_of(folder)["step"] == 3


def test_a_new_vocabulary_keeps_the_rows_of_the_words_that_were_there() -> None:
    model, text = ToyTransformer(EditCaptions().token_ids), read_parts()["text"]
    fresh = model.text_encoder.token_embedding.weight.detach().clone()
    assert train_transformer.initial_weights(model, None) == 0
    table = model.text_encoder.token_embedding.weight
    ids = model.text_encoder.token_ids.tolist()
    before = text["token_ids"].tolist()
    added = [row for row, token in enumerate(ids, 1) if token not in before]
    assert len(added) == len(ids) - len(before) == 3, "first, second, third"
    assert torch.equal(table[added], fresh[added])
    for token in before:
        row, old = ids.index(token) + 1, before.index(token) + 1
        assert torch.equal(table[row], text["token_embedding.weight"][old].float())


def test_workers_share_a_batch_that_does_not_depend_on_their_number(folder: Path) -> None:
    data = train_transformer.LargeSet(folder)

    def batch(share: slice) -> tuple[list[Any], Tensor, Tensor]:
        torch.manual_seed(5)
        return data.batch(8, share)

    pictures, latents, masks = batch(slice(0, 8, 1))
    for rank in range(2):
        part = batch(slice(rank, 8, 2))
        assert part[0] == pictures[rank::2]
        assert torch.equal(part[1], latents[rank::2]) and torch.equal(part[2], masks[rank::2])


# ---- figures ----


@pytest.mark.parametrize("kind", ["portraits", "scenes"])
def test_the_figures_of_the_truth_are_high_and_those_of_swapped_people_are_not(
    kind: str,
) -> None:
    captions = TransformerCaptions()
    cases = (
        transformer_quality.held_out_portraits(4)
        if kind == "portraits"
        else transformer_quality.held_out_scenes(4, captions)
    )
    mirrored = [replace(case, image=case.image.flip(1)) for case in cases]
    figures = transformer_quality.ceiling(cases)
    assert figures.keys() == {"hat", "shirt", "background"} and min(figures.values()) == 1
    if kind == "scenes":
        swapped = transformer_quality.ceiling(mirrored)
        assert max(swapped["hat"], swapped["shirt"]) < 0.4 and swapped["background"] > 0.8


@pytest.mark.parametrize("colour", ["purple", "orange"])
def test_a_hat_of_another_colour_is_wrong_in_every_style(colour: str) -> None:
    for style in STYLES:
        portrait = replace(sample_portrait(5), hat=Garment("red", "striped", "top"), style=style)
        asked = asked_colours(portrait, 128)
        image, masks = draw(portrait, 128)
        assert right_colours(image, masks.argmax(0), asked) == [True, True, True]
        other = replace(portrait, hat=Garment(colour, "striped", "top"))
        image, masks = draw(other, 128)
        assert right_colours(image, masks.argmax(0), asked) == [False, True, True]
        nowhere = masks.argmax(0).masked_fill(masks.argmax(0) == asked[0].part, 0)
        assert not right_colours(image, nowhere, asked)[0]


def test_the_layout_takes_a_place_for_the_part_whose_words_it_looks_at() -> None:
    captions = TransformerCaptions()
    case = transformer_quality.held_out_scenes(1, captions)[0]
    text = captions.encode([case.line])
    named = text.weights[0] > 0
    attention = torch.full((1, int(named.sum()), TEXT_TOKENS), 0.01)
    for place, token in enumerate(text.tokens[0, named]):
        attention[0, place, token] = 1
    layout = transformer_quality.layout_of(attention, text)
    assert layout[0].tolist() == text.parts[0, named].tolist()


@torch.inference_mode(False)
def test_a_model_is_measured_on_one_and_on_two_people() -> None:
    captions = TransformerCaptions()
    model = ToyTransformer(captions.token_ids).requires_grad_(False)
    lines = transformer_quality.report(model, captions, 2)
    assert len(lines) == 6 and all("2 captions" in line for line in lines)
    assert lines[3].startswith("two in the picture") and "hat" in lines[3] and "shirt" in lines[3]


# ---- in the host's classes ----


@pytest.fixture()
def written(tmp_path: Path) -> tuple[Path, ToyTransformer]:
    """A checkpoint file of random weights, and the same weights in the form for training."""
    torch.manual_seed(1)
    model = ToyTransformer(TransformerCaptions().token_ids)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
            parameter.copy_(parameter.half())
    parts = {
        "transformer": model.transformer.state_dict(),
        "text": model.text_encoder.state_dict(),
    }
    path = tmp_path / "toy.safetensors"
    write_parts(parts, {"transformer_steps": "0"}, path)
    return path, model.requires_grad_(False)


def test_the_hosts_classes_compute_what_was_trained(written: tuple[Path, ToyTransformer]) -> None:
    path, trained = written
    model, clip, _ = transformer_checkpoint.load(path)
    captions = TransformerCaptions()
    rows = captions.encode([[(PROMPT, None)]]).rows
    context, pooled = trained.context(rows, captions.end_row)
    (encoded, extra), *_ = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    assert encoded.shape == (1, TEXT_TOKENS, 96)
    assert (encoded - context).abs().max() < 1e-4
    assert (extra["pooled_output"] - pooled).abs().max() < 1e-4

    x, sigma = torch.randn(1, 4, 32, 32), torch.tensor([0.6])
    velocity, maps = trained(x, sigma, rows, captions.end_row)
    denoised = model.model.apply_model(
        x, sigma, c_crossattn=encoded, y=extra["pooled_output"], transformer_options={}
    )
    assert (denoised - (x - 0.6 * velocity)).abs().max() < 1e-3
    assert len(maps) == 4 and all(layer.shape == (1, 256, TEXT_TOKENS) for layer in maps)


def test_the_host_samples_and_decodes_a_picture_of_256_pixels(
    written: tuple[Path, ToyTransformer],
) -> None:
    import comfy.sample

    model, clip, vae = transformer_checkpoint.load(written[0])
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    latent = torch.zeros(2, 4, 32, 32)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    samples = comfy.sample.sample(
        model, noise, 2, 4.0, "euler", "simple", encode(PROMPT), encode(""), latent, seed=0
    )
    assert samples.isfinite().all() and vae.decode(samples).shape == (2, 256, 256, 3)


def test_a_copy_in_the_hosts_plain_patcher_is_the_same_model(
    written: tuple[Path, ToyTransformer],
) -> None:
    import comfy.model_patcher

    model = transformer_checkpoint.load(written[0])[0]
    load, arguments = model.cached_patcher_init
    copy = load(*arguments, disable_dynamic=True)
    assert type(copy) is comfy.model_patcher.ModelPatcher and copy.model is not model.model
    weights, copied = model.model.state_dict(), copy.model.state_dict()
    assert weights.keys() == copied.keys() and all(
        torch.equal(weights[name], copied[name]) for name in weights
    )


def test_the_export_holds_the_averaged_weights_in_the_shipped_form(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(2)
    path = folder / "toy.safetensors"
    monkeypatch.setattr(transformer_checkpoint, "PATH", path)
    train_transformer.export()
    parts, average = read_parts(path), checkpoint_of(folder)["average"]
    assert set(parts) == {"transformer", "text"}
    for name, value in parts["transformer"].items():
        before = average[f"transformer.{name}"]
        # Matrices are kept as bytes with a scale for each row: half of one of 127 steps.
        off = before.abs().amax(-1, keepdim=True) / 127 * 0.52 if before.ndim == 2 else 0
        assert (
            (value.float() - before.half().float()).abs() <= off + 1e-3 * before.abs() + 1e-7
        ).all()
    # It is enough to go on from where everything else is gone.
    train_transformer.WEIGHTS.unlink()
    train_transformer.restore()
    model = ToyTransformer(TransformerCaptions().token_ids)
    assert train_transformer.initial_weights(model, train_transformer.WEIGHTS) == 2
    assert all(
        torch.equal(parts["transformer"][name].float(), value)
        for name, value in model.transformer.state_dict().items()
    )


def test_the_node_loads_either_model_and_the_unet_when_nothing_is_said(
    written: tuple[Path, ToyTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer_checkpoint, "PATH", written[0])
    networks = [
        type(MagicToyCheckpoint.execute(*inputs).args[0].model.diffusion_model).__name__
        for inputs in ((), ("unet",), ("transformer",))
    ]
    assert networks == ["UNetModel", "UNetModel", "Flux"]
