"""Inversions on flow models, and how their start reaches the host's samplers."""

from __future__ import annotations

import dataclasses
import importlib
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch

from devkit.pack import ROOT
from magicportrait.host.inversion.cache import cache_folder
from magicportrait.host.inversion.files import read_inversion, write_inversion
from magicportrait.host.inversion.run import METHODS
from magicportrait.magic.inversion import psnr
from magicportrait.nodes.inversion import MagicInversionLoad, MagicInversionSave, MagicStyleInvert
from magicportrait.tests.host import dits
from magicportrait.tests.host.flow import (
    LOW,
    euler,
    invert,
    invert_picture,
    latent,
    sample,
    sample_advanced,
)

FAMILIES = ("flux", "flux2", "qwen", "zimage", "sd3", "anima")
"""16 and 128 channels, latents with a time, one with positions that depend on the prompt."""


def quality(out: torch.Tensor, truth: torch.Tensor) -> float:
    return psnr(out, truth, float(truth.max() - truth.min()))


@pytest.mark.parametrize("family", FAMILIES)
def test_belm_comes_back_through_both_samplers_of_the_host(family):
    model, samples = dits.random_transformer(family), latent(family, 2)
    outputs = invert(family, latent={"samples": samples}, measure=True)
    inversion, noise, sigmas, _, _, _, added = outputs
    assert sigmas[0] == 1 and inversion.latents.shape == (4, *samples.shape)
    torch.testing.assert_close(inversion.latents[-1], model.model.process_latent_in(samples))
    assert quality(inversion.resampled, samples) >= 60
    assert torch.equal(sample(model, noise, outputs), inversion.resampled), (
        "the outputs are wired as the report measured"
    )
    for start in ({"samples": torch.zeros_like(samples)}, {"samples": samples}, noise):
        again = sample_advanced(model, added, start, outputs)
        torch.testing.assert_close(again, inversion.resampled, rtol=1e-3, atol=1e-3)


def test_with_its_noise_any_sampler_of_the_host_will_do():
    model = dits.random_transformer("flux")
    outputs = invert_picture("flux", method="euler")
    ours = sample(model, outputs[1], outputs)
    empty = {"samples": torch.zeros_like(latent("flux"))}
    theirs = sample_advanced(model, outputs[6], empty, outputs, euler())
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_below_sigma_1_the_latent_is_enough_for_any_sampler():
    model, samples = dits.random_transformer("flux"), latent("flux")
    outputs = invert("flux", sigmas=torch.tensor(LOW), method="fixed-point", measure=True)
    assert quality(outputs[0].resampled, samples) > 50
    for again in (
        sample(model, outputs[1], outputs),
        sample(model, outputs[1], outputs, euler()),
        sample_advanced(model, outputs[6], {"samples": samples}, outputs, euler()),
    ):
        torch.testing.assert_close(again, outputs[0].resampled, rtol=1e-3, atol=1e-3)


def test_the_methods_differ_in_how_close_they_come():
    reached, calls = {}, {}
    for method in METHODS:
        inversion = invert(
            "flux", sigmas=torch.tensor(LOW), method=method, tolerance=0.0, measure=True
        )[0]
        reached[method] = quality(inversion.resampled, latent("flux"))
        calls[method] = inversion.model_calls
    assert calls == {"euler": 5, "warm": 5, "fireflow": 5, "fixed-point": 15, "o-belm": 5}
    assert reached["warm"] > reached["euler"] + 3
    assert reached["fixed-point"] > reached["warm"] + 6
    assert reached["fireflow"] > reached["euler"] + 3
    assert reached["o-belm"] > 90


@pytest.mark.parametrize("family", ["flux", "qwen"])
def test_fireflow_samples_as_it_was_measured(family):
    outputs = invert(family, method="fireflow", measure=True)
    model = dits.random_transformer(family)
    assert torch.equal(sample(model, outputs[1], outputs), outputs[0].resampled)
    again = sample_advanced(model, outputs[6], outputs[1], outputs)
    torch.testing.assert_close(again, outputs[0].resampled, rtol=1e-3, atol=1e-3)
    other = sample_advanced(model, outputs[6], outputs[1], outputs, euler())
    assert not torch.allclose(other, again, rtol=1e-3, atol=1e-3)


def test_warm_works_on_noise_predictions_too():
    from magicportrait.tests.host import inverting

    model = inverting.parts()[0]
    levels = torch.tensor([0.8, 0.6, 0.4, 0.2, 0.1, 0.0])
    plain, warm = (
        inverting.invert(model, sigmas=levels, method=method)[0] for method in ("euler", "warm")
    )
    truth = inverting.latent()
    assert warm.model_calls == plain.model_calls == 5
    assert quality(warm.resampled, truth) > quality(plain.resampled, truth) + 3


def test_what_is_told_its_guidance_is_told_none_unless_the_prompt_says_otherwise():
    plain = dits.conditioning(5, 7)
    said = {g: [[plain[0][0], {**plain[0][1], "guidance": g}]] for g in (1.0, 3.5)}
    default, one, high = (
        invert("flux", positive=positive)[0] for positive in (plain, said[1.0], said[3.5])
    )
    assert default.conditioning[0][1]["guidance"] == 1.0
    assert torch.equal(default.latents, one.latents)
    assert not torch.equal(default.latents, high.latents)
    outputs = invert("zimage", positive=plain)
    assert outputs[4] is plain, "models that are told nothing get what came"


@pytest.mark.parametrize("family", ["qwen", "zimage"])
def test_an_inversion_outlives_its_file(family, tmp_path):
    inversion = invert_picture(family, batch=2)[0]
    path = tmp_path / "inversion.safetensors"
    write_inversion(path, inversion)
    again = read_inversion(path)
    assert torch.equal(again.latents, inversion.latents) and again.method == inversion.method


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from devkit.pack import load_pack
load_pack()
from magicportrait.host.inversion.cache import InversionCache
from magicportrait.host.inversion.files import read_inversion

inversion = read_inversion(Path(sys.argv[2]))
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
InversionCache(Path(sys.argv[3]), 10**8).keep(inversion)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows cannot kill like that")
def test_killed_while_it_writes_leaves_no_half_file_and_the_next_run_makes_it(
    tmp_path, model_calls
):
    """Latents with a time, which UNets' cache has none of."""

    def inverted_once_more() -> tuple[torch.Tensor, int]:
        model_calls.clear()
        return invert("qwen", method="warm", cache_mb=10)[0].latents, len(model_calls)

    expected, calls = inverted_once_more()
    [file] = cache_folder().iterdir()
    whole = file.rename(tmp_path / file.name)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(ROOT), str(whole), str(cache_folder())],
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    [left] = cache_folder().iterdir()
    assert left.suffix == ".part"
    latents, again = inverted_once_more()
    assert again == calls > 0 and torch.equal(latents, expected)
    latents, again = inverted_once_more()
    assert again == 0 and torch.equal(latents, expected)
    assert torch.equal(read_inversion(file).latents, expected)


def test_a_file_goes_on_where_it_was_and_another_model_is_refused(monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths,
        "magicportrait_inversions",
        ([str(tmp_path / "inversions")], {".safetensors"}),
    )
    outputs = invert_picture("flux", method="warm")
    [name] = MagicInversionSave.execute(outputs[0], "kept").args
    model = dits.random_transformer("flux")
    inversion, noise, sigmas, sampler, positive, added = MagicInversionLoad.execute(
        model, name
    ).args
    loaded = (inversion, noise, sigmas, sampler, positive, "", added)
    expected = sample(model, outputs[1], outputs)
    assert torch.equal(sample(model, noise, loaded), expected)
    torch.testing.assert_close(
        sample_advanced(model, added, noise, loaded), expected, rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match="was inverted with another model"):
        MagicInversionLoad.execute(dits.random_transformer("sd3"), name)


def test_the_cache_knows_a_flow_again(model_calls):
    options = {"cache_mb": 64, "method": "warm"}
    first = invert("qwen", **options)
    model_calls.clear()
    second = invert("qwen", **options)
    assert not model_calls and "from the cache: none now" in second[5]
    assert torch.equal(first[0].latents, second[0].latents)
    assert " MB" in first[5].splitlines()[0]
    assert invert("qwen", **{**options, "method": "euler"}) and model_calls


def test_the_old_name_of_euler_goes_on_in_graphs_and_files(tmp_path):
    """It was 'ddim', which means nothing to who knows flow models."""
    assert "ddim" not in METHODS
    old, new = (invert("flux", method=method)[0] for method in ("ddim", "euler"))
    assert old.method == "euler" and torch.equal(old.latents, new.latents)
    for name in ("ddim", "euler", None):
        assert MagicStyleInvert.validate_inputs(method=name) is True
    assert "'eular' is not one of fixed-point, euler," in MagicStyleInvert.validate_inputs("eular")
    with pytest.raises(ValueError, match="method: 'eular' is not one of"):
        invert("flux", method="eular")
    path = tmp_path / "inversion.safetensors"
    write_inversion(path, dataclasses.replace(new, method="ddim"))
    assert read_inversion(path).method == "euler"


def test_a_latent_without_a_time_is_taken_as_the_host_takes_it():
    flat = latent("qwen").squeeze(2)
    assert torch.equal(
        invert("qwen", latent={"samples": flat})[0].latents, invert_picture("qwen")[0].latents
    )


def test_images_of_a_batch_do_not_become_frames():
    seen = []

    class VideoVae:
        def encode(self, images):
            seen.append(len(images))
            return latent("qwen", seed=len(seen))

        def decode(self, samples):
            return torch.zeros(len(samples), 1, 64, 48, 3)

    outputs = invert(
        "qwen", latent=None, image=torch.rand(2, 64, 48, 3), vae=VideoVae(), measure=True
    )
    assert seen == [1, 1] and outputs[0].batch == 2
    assert "picture sampled again" in outputs[5]


# What is refused


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("flux", {"positive": None}, "Flux needs its own empty prompt: connect clip"),
        ("flux", {"latent": {"samples": torch.ones(1, 4, 8, 8)}}, "this model works in 16"),
        ("flux", {"latent": {"samples": torch.ones(1, 16, 1, 8, 8)}}, "this model takes B 16 h w"),
        (
            "qwen",
            {"latent": {"samples": torch.ones(1, 16, 2, 8, 8)}},
            "has 2 frames: only pictures",
        ),
        ("flux", {"sigmas": torch.tensor([1.0, 0.5, 0.25])}, "sigmas must fall to 0"),
    ],
)
def test_bad_input_is_refused_before_any_model_call(family, options, message, model_calls):
    with pytest.raises(ValueError, match=message):
        invert(family, **options)
    assert not model_calls


def test_noise_on_top_of_noise_and_masks_are_refused_before_any_model_call(model_calls):
    model, outputs = dits.random_transformer("flux"), invert_picture("flux", method="euler")
    masked = {**outputs[1], "noise_mask": torch.ones(1, 1, 64, 48)}
    model_calls.clear()
    with pytest.raises(ValueError, match=r"adds noise, but the LATENT .* add_noise off .*NOISE"):
        sample(model, outputs[1], outputs, add_noise=True)
    with pytest.raises(ValueError, match="has a noise mask"):
        sample(model, masked, outputs)
    with pytest.raises(ValueError, match=r"the NOISE is of .* connect the LATENT of the node"):
        sample_advanced(model, outputs[6], {"samples": torch.zeros(1, 16, 4, 4)}, outputs)
    assert not model_calls


def test_edited_noise_is_a_start_like_any_other():
    """Our SAMPLER begins with whatever the LATENT holds."""
    model, outputs = dits.random_transformer("flux"), invert_picture("flux", method="euler")
    other = {"samples": outputs[1]["samples"].flip(-1)}
    assert not torch.equal(sample(model, other, outputs), sample(model, outputs[1], outputs))


def test_a_second_sampler_goes_on_where_the_first_ended():
    model, outputs = dits.random_transformer("flux"), invert_picture("flux", method="euler")
    sigmas = outputs[2]
    whole = sample(model, outputs[1], outputs)
    first = sample(model, outputs[1], outputs, sigmas=sigmas[:3])
    for sampler in (None, euler()):
        second = sample(model, {"samples": first}, outputs, sampler, sigmas=sigmas[2:])
        torch.testing.assert_close(second, whole, rtol=1e-3, atol=1e-3)


def test_a_flow_that_edits_pictures_is_refused(model_calls):
    host = importlib.import_module("comfy.model_sampling")
    if not hasattr(host, "IMG_TO_IMG_FLOW"):
        pytest.skip("this host has no such model")

    class Editing(host.ModelSamplingDiscreteFlow, host.IMG_TO_IMG_FLOW):
        pass

    model: Any = dits.random_transformer("flux").clone()
    model.add_object_patch("model_sampling", Editing())
    with pytest.raises(ValueError, match=r"got one with .*IMG_TO_IMG_FLOW"):
        invert("flux", model)
    assert not model_calls


def test_a_file_of_another_number_of_dimensions_is_none(tmp_path):
    path = tmp_path / "inversion.safetensors"
    inversion = invert_picture("flux")[0]
    write_inversion(path, dataclasses.replace(inversion, latents=inversion.latents[:, 0, 0]))
    with pytest.raises(ValueError, match="its latents have the shape"):
        read_inversion(path)
