"""The edit variant of the transformer toy: captions that say which reference a garment is from, a
low-rank change that is trained and goes on, and the host's own classes with reference latents."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import edit_regions, toy
from magicportrait.demo import edit_set, train_edit, training_run, transformer_checkpoint
from magicportrait.demo.captions import TransformerCaptions
from magicportrait.demo.checkpoint import read_parts, write_parts
from magicportrait.demo.dataset import SCENE_PARTS, latent_files
from magicportrait.demo.edit_set import ORDINALS, SEED_OFFSET, WORN, EditCaptions, EditSet, Slot
from magicportrait.demo.low_rank import RANK, reduced
from magicportrait.demo.portraits import PARTS, Scene, render, sample_portrait, sample_scene
from magicportrait.demo.train_transformer import LargeSet
from magicportrait.demo.training_run import Run
from magicportrait.demo.transformer import TEXT_TOKENS, TRANSFORMER_CONFIG, ToyTransformer
from magicportrait.nodes.declare import defaults_of
from magicportrait.nodes.magicface_apply import MagicFaceApply
from magicportrait.nodes.magicface_concept import MagicFaceConcept
from magicportrait.nodes.toy import MagicToyCheckpoint

PICTURES, REFERENCES = 12, 40


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same blocks, narrow; and the host's training mode is left as it was."""
    import comfy.model_management

    for name, value in {"hidden_size": 24, "num_heads": 2, "axes_dim": [4, 4, 4]}.items():
        monkeypatch.setitem(TRANSFORMER_CONFIG, name, value)
    in_training = getattr(comfy.model_management, "in_training", False)
    monkeypatch.setattr(comfy.model_management, "in_training", in_training, raising=False)


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training folder with a few pictures and references, and a transformer of random weights
    where the shipped one is."""
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float16)

    def masks(*shape: int) -> np.ndarray:
        return generator.integers(0, 255, shape).astype(np.uint8)

    for kind, parts in (("portraits", len(PARTS)), ("scenes", len(SCENE_PARTS))):
        latents, shares = latent_files(tmp_path, kind)
        np.save(latents, noise(PICTURES, 4, 32, 32))
        np.save(shares, masks(PICTURES, parts, 16, 16))
    latents, shares = edit_set.reference_files(tmp_path)
    np.save(latents, noise(REFERENCES, 4, 16, 16))
    np.save(shares, masks(REFERENCES, len(WORN), 8, 8))
    for module in (training_run, train_edit):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    torch.manual_seed(1)
    model = ToyTransformer(TransformerCaptions().token_ids)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    parts = {
        "transformer": model.transformer.state_dict(),
        "text": model.text_encoder.state_dict(),
    }
    write_parts(parts, {"transformer_steps": "0"}, tmp_path / "toy.safetensors")
    monkeypatch.setattr(transformer_checkpoint, "PATH", tmp_path / "toy.safetensors")
    monkeypatch.setattr(transformer_checkpoint, "EDIT_PATH", tmp_path / "edit.safetensors")
    return tmp_path


@torch.inference_mode(False)
def run(steps: int) -> None:
    train_edit.train_edit(Run(torch.device("cpu"), steps, batch=2, half=True))


def checkpoint_of(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "transformer-edit.pt", weights_only=True)
    return state


# ---- what it learns from ----


def test_a_caption_calls_what_comes_from_references_by_their_number_alone() -> None:
    captions = EditCaptions()
    for seed in range(40):
        rng = random.Random(seed)
        picture = sample_scene(seed) if seed % 2 else sample_portrait(seed)
        slots = edit_set.draw_slots(picture, 1 + seed % 3, rng)
        assert slots and len({slot.reference for slot in slots}) == len(slots)
        line = edit_set.caption_line(captions, picture, slots, rng)
        named = [(words, SCENE_PARTS[part]) for words, part in line if part is not None]
        for slot in slots:
            words = f"{ORDINALS[slot.reference]} {slot.part}"
            assert (words, (slot.person, slot.part)) in named, (named, slot)
        assert sum(words.split()[0] in ORDINALS for words, _ in named) == len(slots)
        assert sum(len(captions.ids(words)) for words, _ in line) <= TEXT_TOKENS - 2


def test_a_reference_wears_what_the_picture_has_of_it(folder: Path) -> None:
    captions, large = EditCaptions(), LargeSet(folder)
    people = [edit_set.sample_reference(SEED_OFFSET + i) for i in range(PICTURES)]
    large.pictures = {
        "portraits": [*people],
        "scenes": [Scene(a, b) for a, b in zip(people, people[1:] + people[:1], strict=True)],
    }
    data = EditSet(folder, captions, large.pictures, large.latents, large.parts)
    batch = data.batch(2, [random.Random(seed) for seed in range(8)])
    assert [tuple(reference.shape) for reference in batch.references] == [(8, 4, 16, 16)] * 2
    shares = data.reference_masks.float() / 255
    for b in range(8):
        found = 0
        for slot in range(len(ORDINALS)):
            if not batch.looked_at[b, slot].any():
                continue
            [key] = [
                key
                for key, mask in zip(SCENE_PARTS, batch.masks[b], strict=True)
                if torch.equal(mask.flatten(), batch.looked_at[b, slot])
            ]
            [reference] = {int(i) // 64 for i in batch.sources[b, slot].nonzero()}
            latent = batch.references[reference][b]
            [index] = [
                i
                for i, each in enumerate(data.reference_latents)
                if torch.equal(each.float(), latent)
            ]
            wearer = edit_set.sample_reference(SEED_OFFSET + index)
            part = key[1]
            assert getattr(wearer, part) in [getattr(person, part) for person in people]
            there = batch.sources[b, slot, reference * 64 : reference * 64 + 64]
            assert torch.equal(there, shares[index, WORN.index(part)].flatten())
            found += 1
        assert found == 2


def test_looking_where_the_reference_shows_it_costs_nothing() -> None:
    looked_at, sources = torch.zeros(1, 3, 4), torch.zeros(1, 3, 6)
    looked_at[0, 0, :2], sources[0, 0, 4:] = 1, 1
    batch = edit_set.EditBatch(*[torch.empty(0)] * 2, None, [], looked_at, sources)  # type: ignore[arg-type]
    right, wrong = torch.full((1, 4, 6), 1 / 6), torch.zeros(1, 4, 6)
    right[0, :2] = torch.tensor([0, 0, 0, 0, 0.5, 0.5])
    wrong[..., 0] = 1
    assert abs(float(edit_set.source_loss([right], batch))) < 1e-3
    assert float(edit_set.source_loss([wrong], batch)) > 9


def wrap(model: Any) -> dict[str, Any]:
    """What the host's sampler gives a model of its wrappers."""
    import comfy.patcher_extension

    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    return {"wrappers": {kind: dict(model.wrappers[kind])}}


# ---- what comes with the pack ----


def write_change(folder: Path) -> None:
    """Where the shipped one is, one of random numbers."""
    _, adapter, captions = train_edit.build()
    change = {
        name: value + 0.1 * torch.randn_like(value) for name, value in adapter.tensors().items()
    }
    change["word_ids"] = torch.tensor(captions.word_ids)
    write_parts({"edit": change}, {}, folder / "edit.safetensors", byte_parts=("edit",))


def test_the_node_gives_the_edit_model_and_its_copy_takes_references_too(folder: Path) -> None:
    import comfy.model_patcher

    write_change(folder)
    model, _, _ = MagicToyCheckpoint.execute("transformer, edit").args
    assert wrap(model)["wrappers"]["apply_model"]
    assert "apply_model" not in MagicToyCheckpoint.execute("transformer").args[0].wrappers
    load, arguments = model.cached_patcher_init
    copied = load(*arguments, disable_dynamic=True)
    assert type(copied) is comfy.model_patcher.ModelPatcher and copied.model is not model.model
    assert wrap(copied).keys() == wrap(model).keys()
    weights, again = model.model.state_dict(), copied.model.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize(
    ("kind", "drawn", "refused"),
    [
        (
            "transformer, edit",
            # (12, 22) has the same area, in whole tokens.
            [None, (16, 16), (12, 22)],
            {
                (32, 32): "of 256 x 256 px, and this toy was .* of 128 x 128: scale the picture",
                (8, 16): "of a picture of 128 x 64 px",
            },
        ),
        ("transformer", [None], {(16, 16): "choose 'transformer, edit' in Toy Checkpoint"}),
    ],
)
def test_references_that_a_toy_cannot_read_are_refused_before_the_first_step(
    folder: Path,
    model_calls: list[int],
    kind: str,
    drawn: list[tuple[int, int] | None],
    refused: dict[tuple[int, int], str],
) -> None:
    write_change(folder)
    checkpoint = toy.Toy(*MagicToyCheckpoint.execute(kind).args, side=64, scheduler="simple")
    encoded = checkpoint.encode_text("a man")

    def sample(size: tuple[int, int] | None) -> None:
        given = {} if size is None else {"reference_latents": [torch.zeros(1, 4, *size)]}
        positive = [[tensor, {**own, **given}] for tensor, own in encoded]
        checkpoint.sample(checkpoint.model, positive, checkpoint.noise([0]), steps=1)

    for size, complaint in refused.items():
        with pytest.raises(ValueError, match=complaint):
            sample(size)
    assert not model_calls
    for size_drawn in drawn:
        sample(size_drawn)
    assert len(model_calls) >= len(drawn)


def test_magicface_gives_the_edit_toy_pictures_of_the_size_that_it_was_trained_with(
    folder: Path,
) -> None:
    write_change(folder)
    parts = MagicToyCheckpoint.execute("transformer, edit").args
    settings = {
        **defaults_of(MagicFaceApply),
        "prompt": "a man wearing a first hat",
        "references": "in the sequence",
    }
    sizes = []
    for picture in (torch.rand(1, 200, 200, 3), torch.rand(1, 64, 128, 3)):
        [concepts] = MagicFaceConcept.execute(picture, "first hat", 1.0).args
        _, positive, _ = MagicFaceApply.execute(*parts, concepts, **settings).args
        sizes += [tuple(latent.shape[-2:]) for latent in positive[0][1]["reference_latents"]]
    # Of 128 x 128 px, and of the same area in whole tokens of 16 px.
    assert sizes == [(16, 16), (12, 22)]


# ---- the change ----


def test_training_moves_the_change_alone_and_goes_on_where_it_stopped(folder: Path) -> None:
    model, adapter, _ = train_edit.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    built = {name: value.clone() for name, value in adapter.state_dict().items()}
    run(3)
    first = checkpoint_of(folder)
    run(5)
    second = checkpoint_of(folder)
    assert (first["step"], second["step"]) == (3, 5)
    assert "resuming at step 3" in (folder / "transformer-edit.log").read_text()
    assert first["adapter"].keys() == built.keys()
    assert all(second["adapter"][name].isfinite().all() for name in built)
    assert all(not torch.equal(first["adapter"][name], second["adapter"][name]) for name in built)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # The three words have no vector but the change's.
    again, _, captions = train_edit.build()
    assert all(torch.equal(value, before[name]) for name, value in again.state_dict().items())
    rows = [captions.row_of(word) for word in ORDINALS]
    assert not before["text_encoder.token_embedding.weight"][rows].any()


def test_a_change_of_a_smaller_rank_is_the_nearest() -> None:
    left, right = (torch.linalg.qr(torch.randn(9, 4))[0] for _ in range(2))
    change = {"layer.up": left * torch.tensor([4.0, 3, 2, 1]), "layer.down": right.T}
    less = reduced({**change, "words": torch.ones(3, 2)}, 2)
    assert less["layer.up"].shape == (9, 2) and less["layer.down"].shape == (2, 9)
    apart = change["layer.up"] @ change["layer.down"] - less["layer.up"] @ less["layer.down"]
    torch.testing.assert_close(
        torch.linalg.svdvals(apart)[:3], torch.tensor([2.0, 1, 0]), rtol=0, atol=1e-5
    )
    assert torch.equal(less["words"], torch.ones(3, 2))


def test_the_hosts_classes_compute_what_was_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(2)
    saved = checkpoint_of(folder)
    # A change that is seen.
    for name, value in saved["average"].items():
        saved["average"][name] = value + 0.1 * torch.randn_like(value)
    torch.save(saved, folder / "transformer-edit.pt")
    # All of it: the networks are narrower than its rank.
    monkeypatch.setattr(train_edit, "SHIPPED_RANK", RANK)
    train_edit.export()
    trained, adapter, captions = train_edit.build()
    # The file has bytes: compared is what is in it.
    file = read_parts(folder / "edit.safetensors")["edit"]
    state = adapter.state_dict()
    for name, value in state.items():
        kept = file[name.removeprefix("changes.").replace("/", ".")].float()
        value.zero_()[tuple(slice(size) for size in kept.shape)] = kept
    for name, value in saved["average"].items():
        if name.endswith(".up"):
            down = name.removesuffix("up") + "down"
            product, kept = value @ saved["average"][down], state[name] @ state[down]
            assert (kept - product).abs().max() <= product.abs().max() / 50, name
    adapter.load_state_dict(state)
    model, clip, _ = transformer_checkpoint.load_edit()

    prompt = "a man wearing a second hat and a first scarf"
    rows = captions.encode([[(prompt, None)]]).rows
    context, _ = trained.context(rows, captions.end_row)
    (encoded, extra), *_ = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    assert (encoded - context).abs().max() < 1e-3
    x, sigma = torch.randn(1, 4, 32, 32), torch.tensor([0.6])
    references = [torch.randn(1, 4, 16, 16) for _ in range(2)]
    velocity, maps, reference_maps = trained.forward_with_references(
        x, sigma, rows, captions.end_row, references
    )
    assert all(layer.shape == (1, 256, TEXT_TOKENS) for layer in maps)
    assert all(layer.shape == (1, 256, 2 * 64) for layer in reference_maps)

    def denoise(**given: Any) -> Tensor:
        out: Tensor = model.model.apply_model(
            x, sigma, c_crossattn=encoded, y=extra["pooled_output"], **given
        )
        return out

    expected = x - 0.6 * velocity
    options = {"transformer_options": wrap(model)}
    given = denoise(ref_latents=references, **options)
    assert (given - expected).abs().max() < 5e-4
    assert (denoise() - expected).abs().max() > 5e-3
    swapped = denoise(ref_latents=references[::-1], **options)
    assert (swapped - given).abs().max() > 2e-3


# ---- the bench ----


def test_the_bench_tells_the_right_place_from_a_wrong_one() -> None:
    numbered = edit_regions.case_of(0, 2)
    case = edit_regions.case_of(0, 2, is_numbered=False)
    for slot in case.slots:
        assert numbered.phrase(slot) == f"{ORDINALS[slot.reference]} {case.phrase(slot)}"
        assert numbered.phrase(slot) in numbered.prompt
    assert not any(word in case.prompt for word in ORDINALS)
    first, second = case.slots
    assert case.colour_of(first) != case.colour_of(second)
    assert all(case.phrase(slot) in case.prompt for slot in case.slots)
    drawn = render(case.references[first.reference], 128)
    image, region = torch.from_numpy(drawn.image), torch.from_numpy(drawn.masks[first.part]) > 0.5
    assert edit_regions.verdict_of(case, first, image, region) == "right"
    other = Slot(0, first.part, second.reference)
    twice = dataclasses.replace(case, slots=(other, second))
    assert edit_regions.verdict_of(twice, other, image, region) == "wrong place"
    assert edit_regions.verdict_of(case, first, image, region & False) == "colour error"
    free = set(edit_regions.NAMES) - case.of_references - {edit_regions.INK}
    colour = edit_regions.COLOURS[edit_regions.NAMES.index(sorted(free)[0])]
    assert edit_regions.verdict_of(case, first, colour.expand_as(image), region) == "colour error"


def test_the_bench_draws_a_case(folder: Path) -> None:
    write_change(folder)
    checkpoint = toy.Toy(*transformer_checkpoint.load_edit(), side=256, scheduler="simple")
    setting = edit_regions.Setting("masks and regions", {})
    outcomes = edit_regions.draw(checkpoint, edit_regions.case_of(1, 3), setting, 2, 4.0)
    assert len(outcomes) == 3
    assert {outcome.verdict for outcome in outcomes} <= {"right", "wrong place", "colour error"}
