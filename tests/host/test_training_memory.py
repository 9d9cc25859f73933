"""What a training says it needs, against what torch's allocator has seen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from magicportrait.host.training import flow, memory_need
from magicportrait.host.training import run as capture_run
from magicportrait.host.training.alike_blocks import rehearsed_once
from magicportrait.host.training.lora import ADAPTERS
from magicportrait.host.training.map_list import MapList
from magicportrait.host.training.memory import training_mode
from magicportrait.host.training.networks import build_denoiser
from magicportrait.host.training.run import CaptureTraining
from magicportrait.host.training.settings import CaptureSettings
from magicportrait.tests.host import test_flow_training as flows
from magicportrait.tests.host import test_magicapture as unets

SETTINGS = CaptureSettings(
    inversion_steps=0, lora_steps=2, rank=2, versions=1, side=128, identity_until=1000
)
CHECKPOINTED = replace(SETTINGS, gradient_checkpointing=True)
IN_A_BLOCK = replace(SETTINGS, lora_blocks="d0")
"""Every adapter takes its time among tensors without numbers."""
BEGINS = "the training begins"


def peak_of(training: Callable[[], Any]) -> int:
    """Bytes of the CPU's allocator at their most from BEGINS on, over what was there at first."""
    from torch.autograd.profiler import profile

    # Of torch.profiler's events a tree is made, which takes longer than the training.
    with profile(profile_memory=True, use_kineto=True) as watch:
        training()
    assert watch.kineto_results is not None
    events = watch.kineto_results.events()
    [begins] = [event.start_ns() for event in events if event.name() == BEGINS]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = 0
    for when, change in changes:
        now += change
        if when >= begins:
            peak = max(peak, now)
    return peak


def parts(name: str) -> tuple[Any, Any, Any]:
    return unets.models_of(name) if name == "sd15" else flows.parts(name)


class KnownError(Exception):
    """Ends a training before its network is loaded."""


@cache
def needs() -> dict[Any, memory_need.MemoryNeed]:
    """What was computed for the settings of a model, for all tests."""
    return {}


def need_of(name: str, identity: Any, settings: CaptureSettings) -> memory_need.MemoryNeed:
    """As it is computed before a training, of which nothing more is done. What other settings need,
    which advice compares, is computed once for all tests."""
    found: list[memory_need.MemoryNeed | None] = []
    compute = memory_need.memory_need

    def check(*given: Any) -> None:
        found.append(memory_need.check_memory(*given))
        raise KnownError

    def once(*given: Any) -> memory_need.MemoryNeed:
        key = (name, identity is None, given[-1], compute, memory_need.rehearsed_once)
        if key not in needs():
            needs()[key] = compute(*given)
        return needs()[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture_run, "check_memory", check)
        patch.setattr(memory_need, "memory_need", once)
        with pytest.raises(KnownError):
            CaptureTraining(*parts(name), *unets.sets(), identity, settings, checks_memory=True)
    assert found[0] is not None
    return found[0]


@pytest.mark.parametrize(
    ("name", "judges", "settings"),
    [
        ("sd15", False, SETTINGS),
        ("sd15", True, CHECKPOINTED),
        ("zimage", False, CHECKPOINTED),
        ("flux", False, SETTINGS),
        ("zimage", False, replace(CHECKPOINTED, precision="fp8")),
        ("hidream", False, SETTINGS),
    ],
)
def test_what_is_computed_is_what_is_measured(name, judges, settings):
    identity = unets.recogniser() if judges else None
    given = (*parts(name), *unets.sets(), identity, settings)

    def train() -> CaptureTraining:
        run = CaptureTraining(*given)
        with torch.profiler.record_function(BEGINS):
            run.run(unets.ignore)
        return run

    need = need_of(name, identity, settings)
    measured = peak_of(train)
    assert need.total == pytest.approx(measured, rel=0.05)
    assert need.step > need.total / 20, "the step is too small to be seen"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flux", SETTINGS),
        ("zimage", replace(CHECKPOINTED, precision="bf16")),
    ],
)
def test_of_blocks_that_are_alike_one_tells_of_all(name, settings, monkeypatch):
    """As much as when each of them is done, of which fewer are."""
    once = need_of(name, None, settings)
    monkeypatch.setattr(memory_need, "rehearsed_once", lambda *_: contextlib.nullcontext())
    each = need_of(name, None, settings)
    assert once.step == pytest.approx(each.step, rel=1e-2)
    assert once.preview == pytest.approx(each.preview, rel=0.03)


def test_a_block_is_done_once_for_all_that_are_like_it():
    """Forth and back, with what is given back of what came in, and what is written into."""
    calls: list[str] = []

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, same: Tensor, transformer_options: Any) -> Any:
            calls.append("done")
            x += self.layer(x.sigmoid()) * same
            return x, same

    with training_mode(), FakeTensorMode():
        blocks, costs = [Added() for _ in range(5)], []
        for parts in (blocks, []):
            calls.clear()
            x = torch.zeros(3, 4, requires_grad=True)
            same, alive = torch.zeros(3, 4), memory_need._Alive([])
            with alive, rehearsed_once(parts, alive):
                out = x * 2
                for block in blocks:
                    out, other = block(out, same, transformer_options={})
                    assert other is same
                [grad] = torch.autograd.grad(out.sum(), [x])
            assert grad.shape == x.shape
            costs.append((alive.peak, len(calls)))
    (peak, done), (whole_peak, all_done) = costs
    assert (done, all_done) == (1, 5)
    # One activation more: what is written into is taken anew.
    assert whole_peak <= peak <= whole_peak + 2 * x.nbytes
    assert not any("forward" in vars(block) for block in blocks)


def test_blocks_that_are_computed_twice_keep_nothing_of_the_maps_that_they_show_again():
    watched, plain = (
        need_of("zimage", None, replace(CHECKPOINTED, refocus_weight=weight)) for weight in (2.5, 0)
    )
    assert plain.step < watched.step < 1.25 * plain.step
    maps = MapList()
    maps.add(torch.ones(1, 2, 2, 4, 4))
    assert maps.read().shape == (1, 2, 2, 4, 4)
    maps.add(torch.ones(1, 2, 2, 4, 4))
    assert maps.read() is None


@pytest.fixture
def free(monkeypatch) -> Callable[[float], None]:
    """Sets how many bytes are free."""
    import comfy.model_management as management

    def has(size: float) -> None:
        monkeypatch.setattr(management, "get_free_memory", lambda *_: size)

    return has


def test_what_does_not_fit_is_refused_with_what_would_before_the_network_is_loaded(
    free, monkeypatch
):
    plain, saving = (need_of("flux", None, settings) for settings in (SETTINGS, CHECKPOINTED))
    assert saving.total < 0.8 * plain.total and saving.learned == plain.learned
    monkeypatch.setattr(flow, "fill", lambda *_: pytest.fail("too late"))
    free(0.85 * plain.total - plain.prompts)
    advice = r"needs about 7\.7 MB .* Turn on gradient_checkpointing: it"
    with pytest.raises(ValueError, match=advice):
        need_of("flux", None, SETTINGS)
    free(1000)
    with pytest.raises(ValueError, match="No setting makes it fit: take a smaller model"):
        need_of("flux", None, CHECKPOINTED)


def need_by_hand(*given: Any) -> memory_need.MemoryNeed:
    """That is easy to compute: 100 weights, a step of 100 numbers a sample, and the rank."""
    settings = given[-1]
    size = {"fp32": 4, "bf16": 2, "fp8": 1}[settings.precision]
    weights, step = {settings.precision: 100 * size}, 100 * size * settings.batch
    return memory_need.MemoryNeed(weights, 0, 0, 0, settings.rank, 0, step, 0)


def test_several_settings_may_be_needed(free, monkeypatch):
    """Where none is enough by itself, as few as it takes."""
    monkeypatch.setattr(memory_need, "memory_need", need_by_hand)
    free(480)
    with pytest.raises(ValueError, match="Set batch to 1 and set precision to bf16: it takes"):
        need_of("flux", None, replace(CHECKPOINTED, batch=4, rank=64))


def test_fp8_is_named_last_and_for_transformers_alone(free, monkeypatch):
    half = replace(CHECKPOINTED, precision="bf16")
    plain, small = (
        need_of("zimage", None, settings) for settings in (half, replace(half, precision="fp8"))
    )
    assert small.weights["float8_e4m3fn"] > 0.4 * small.weights["bfloat16"]
    assert small.total < plain.total
    monkeypatch.setattr(memory_need, "memory_need", need_by_hand)
    # Enough for fp8.
    free(210)
    with pytest.raises(ValueError, match="Set precision to fp8: it takes"):
        need_of("zimage", None, half)
    with pytest.raises(ValueError, match="No setting makes it fit"):
        need_of("sd15", None, half)


def test_other_adapters_and_an_average_are_counted():
    plain = need_of("flux", None, IN_A_BLOCK)
    averaged = need_of("flux", None, replace(IN_A_BLOCK, ema=0.9))
    assert averaged.learned * 3 == plain.learned * 4
    for kind in ADAPTERS[1:]:
        settings = replace(IN_A_BLOCK, adapter=kind)
        with_it = need_of("flux", None, settings)
        run = build_denoiser(parts("flux")[0], settings, torch.Generator(), is_filled=False)
        learned = [each for adapter in run.adapters.values() for each in adapter.learned]
        assert with_it.learned == 3 * sum(each.numel() * 4 for each in learned)
        assert with_it.step > plain.step, "each has a whole weight of every layer"


def test_a_need_that_is_not_known_stops_nothing(monkeypatch, caplog):
    def unknown(*_: Any) -> None:
        raise RuntimeError("no kernel of shapes")

    monkeypatch.setattr(memory_need, "memory_need", unknown)
    run = CaptureTraining(*parts("flux"), *unets.sets(), None, SETTINGS, checks_memory=True)
    assert run.need is None and "is not known (no kernel of shapes)" in caplog.text
    assert "memory:" not in run.report()


def test_a_host_that_reads_weights_as_it_needs_them_leaves_none_out(monkeypatch):
    """Its own layers have no weights then until a file is read into them."""
    memory_management = pytest.importorskip("comfy.memory_management")

    def weights() -> dict[str, torch.Tensor]:
        denoiser = build_denoiser(parts("flux")[0], SETTINGS, torch.Generator())
        return denoiser.network.state_dict()

    made = weights()
    monkeypatch.setattr(memory_management, "aimdo_enabled", True)
    lazy = weights()
    assert set(lazy) == set(made)
    assert all(torch.equal(lazy[name], made[name]) for name in made)
