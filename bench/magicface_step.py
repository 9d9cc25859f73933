"""What a MagicFace step costs: `python -m bench.magicface_step` (`--fp16` on a GPU)

An SD1.5-sized UNet with random weights at 512 px, CFG, batch 1, and N references of which a mask
shows 40 %. Every figure is a ratio to the plain CFG step of the same run. Memory is the peak of the
process (or of the GPU), weights included.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from . import toy

# ruff: isort: split
import torch
from torch import Tensor

from magicportrait.host.layout.patch import LayoutPatch
from magicportrait.host.layout.record import LayoutRecord
from magicportrait.host.sampling.backbone import backbone_of
from magicportrait.host.sampling.references import Reference
from magicportrait.host.systems.magicface import FeatureStore, MagicFacePatch
from magicportrait.host.text.prompts import TAG, TaggedPrompt

SIDE = 64
SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "context_dim": 768,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1] * 6 + [0, 0],
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
}


def sd15_model(dtype: torch.dtype) -> Any:
    """An SD1.5-sized MODEL with small random weights."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(SD15)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data.copy_(
            torch.ones_like(parameter)
            if is_norm
            else torch.randn(parameter.shape, generator=generator).mul_(0.02)
        )
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(
        model.eval(), load_device=management.get_torch_device(), offload_device=torch.device("cpu")
    )


def conditioning(seed: int, tag: str = "") -> list[Any]:
    return [
        [
            torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed)),
            {TAG: tag} if tag else {},
        ]
    ]


def patched(model: Any, references: int, keep: bool) -> tuple[Any, list[Any]]:
    """The model with a patch whose references are random latents: no text encoder or VAE is
    needed."""
    positive = conditioning(1, "bench")
    mask = torch.zeros(SIDE, SIDE)
    mask[:, : round(0.4 * SIDE)] = 1
    backbone = backbone_of(model)
    prompt = TaggedPrompt(
        "",
        tuple(f"concept {i}" for i in range(references)),
        positive,
        "bench",
        tuple((2 + i,) for i in range(references)),
    )
    layout = LayoutPatch(
        prompt=prompt,
        backbone=backbone,
        ca_scale=0.6,
        record=LayoutRecord(prompt.phrases, backbone.pixels),
        targets=(None,) * references,
    )
    patch = MagicFacePatch(
        layout=layout,
        references=tuple(
            Reference(i, torch.randn(1, 4, SIDE, SIDE), mask, 2.5, conditioning(10 + i))
            for i in range(references)
        ),
        blocks=backbone.parse_layers("fine"),
        # As much in RSA as in RBA. The default, .2, has less of RSA, in which all queries see all
        # references.
        inject_at=0.5,
        semantic_cfg=True,
        kept=FeatureStore() if keep else None,
    )
    return patch.add_to(model), positive


class StepClock:
    """A sampler's callback that looks at the clock."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def __call__(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._marks.append(time.perf_counter())

    @property
    def steps(self) -> list[float]:
        """Seconds of every step but the first, in which a model is loaded and warms up."""
        return [after - before for before, after in itertools.pairwise(self._marks)]


def sample(
    model: Any, positive: list[Any], sigmas: Tensor, repeats: int = 1, cfg: float = 7.5
) -> float:
    """Seconds a step, the median of all but the first of a run."""
    import comfy.samplers

    times = []
    for _ in range(repeats):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, conditioning(2))
        guider.set_cfg(cfg)
        clock, noise = StepClock(), torch.randn(1, 4, SIDE, SIDE)
        guider.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.sampler_object("euler"),
            sigmas,
            callback=clock,
            disable_pbar=True,
            seed=0,
        )
        times += clock.steps
    return statistics.median(times)


def peak_bytes() -> int:
    return (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


@torch.inference_mode()
def measure(references: int, mode: str, steps: int, dtype: torch.dtype) -> tuple[float, float, int]:
    """Seconds a step, those of a plain step just before, and bytes in use at the peak. mode:
    'plain', 'live' or 'kept'."""
    import comfy.samplers

    model = sd15_model(dtype)
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    positive = conditioning(1)
    chosen = model
    if mode != "plain":
        chosen, positive = patched(model, references, mode == "kept")
        if mode == "kept":
            sample(chosen, positive, sigmas)
    gc.collect()
    plain = sample(model, conditioning(1), sigmas)
    seconds = sample(chosen, positive, sigmas) if mode != "plain" else plain
    return seconds, plain, peak_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fp16", action="store_true", help="half precision, for GPUs")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--references", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--one", nargs=2, metavar=("N", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    dtype = torch.float16 if args.fp16 else torch.float32
    if args.one:
        print("RESULT", *measure(int(args.one[0]), args.one[1], args.steps, dtype))
        return

    def alone(references: int, mode: str) -> tuple[float, float, int]:
        """A process for each figure: a peak of memory cannot be taken back. With a plain step of
        its own: machines drift."""
        command = [
            sys.executable,
            "-m",
            "bench.magicface_step",
            "--steps",
            str(args.steps),
            "--one",
            str(references),
            mode,
            *(["--fp16"] if args.fp16 else []),
        ]
        found = (
            subprocess.run(command, capture_output=True, text=True, check=True, cwd=toy.ROOT)
            .stdout.rsplit("RESULT", 1)[1]
            .split()
        )
        return float(found[0]), float(found[1]), int(found[2])

    plain, _, plain_memory = alone(0, "plain")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [
        "# Cost of a MagicFace step",
        "",
        (
            f"`python -m bench.magicface_step {' '.join(sys.argv[1:])}` on {device},"
            f" {str(dtype)[6:]}: plain CFG step {plain:.2f} s"
        ),
        "",
    ]
    lines += [
        "| references | live | (2+N)/2 | live / that | kept | peak memory, live | and kept |",
        "| --- " * 7 + "|",
    ]
    for n in args.references:
        live, beside_live, live_memory = alone(n, "live")
        kept, beside_kept, kept_memory = alone(n, "kept")
        ratio = live / beside_live
        lines.append(
            f"| {n} | {ratio:.2f} x | {(2 + n) / 2:.1f} | {ratio / ((2 + n) / 2):.2f} |"
            f" {kept / beside_kept:.2f} x | {live_memory / plain_memory:.2f} x |"
            f" {kept_memory / plain_memory:.2f} x |"
        )
        print(lines[-1], flush=True)
    toy.write_report("magicface_step", lines)


if __name__ == "__main__":
    main()
