"""What others publish for places of MagicStyle, measured beside what is there, on the transformer
toy: `python -m bench.style_candidates`

A table for each --part: `styled`, drawn in a style from each method's inversions; `edits`, Uni-Edit
(UniEdit-Flow, arXiv 2504.13109) beside MagicStyle Edit; `negative`, StyleKeeper's negative queries
(arXiv 2510.06827) in MagicStyle New Picture; `shares`, how much of an attention a masked style gets
(the question of MAST, arXiv 2604.12281). Columns as in `bench.magicstyle_flow` and
`bench.magicstyle_prompt`. The formulas are the papers', the code is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import toy
from .command_line import bench_parser, command_of, parse_with_quick
from .magicstyle_flow import (
    RECIPES,
    SCHEDULE,
    FlowToy,
    Pair,
    Setting,
    draw,
    near_balanced,
    patch_of,
    picture_of,
    prepare,
    scores,
)
from .magicstyle_prompt import (
    CFG,
    PROMPTS,
    STEPS,
    EditCase,
    edit_cases,
    edit_picture,
    edit_scores,
    sample_picture,
    style_cases,
)
from .report import Report

# ruff: isort: split
import comfy.samplers
import torch
from torch import Tensor

from magicportrait.demo import transformer_checkpoint
from magicportrait.host.inversion.run import resample_with
from magicportrait.host.inversion.start import FlowSampler, as_latent
from magicportrait.host.sampling.backbone import LayerView, backbone_of
from magicportrait.host.sampling.features import FeatureBank
from magicportrait.host.sampling.patch import SamplingStart
from magicportrait.host.sampling.range import SamplingRange
from magicportrait.host.sampling.rows import rows_of_roles
from magicportrait.host.systems.magicstyle import (
    MagicStylePatch,
    MagicStyleRun,
    Style,
    cast_features,
    features_of,
)
from magicportrait.host.systems.new_style import NewStylePatch, NewStyleRun, StylePicture
from magicportrait.magic.feature_fusion import PRESETS, Features, resample_tokens

from .magicstyle_effect import gram_distance, structure


def guider_of(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


# Steppers


def invert_with(world: FlowToy, pair: Pair, steps: int, method: str) -> Pair:
    content, style = (
        world.inversion_of(image, RECIPES[method], steps)
        for image in (picture_of(pair.portrait), pair.style_image)
    )
    return dataclasses.replace(pair, content=content, style=style, features={})


def steppers(world: FlowToy, report: Report, steps: Sequence[int], count: int, only: str) -> None:
    sources = prepare(world, count, 2)
    report.begin_table("steps", "method", "preset", "style", "structure", "identity")
    for number in steps:
        for method in (name for name in RECIPES if only in name):
            pairs = [invert_with(world, pair, number, method) for pair in sources]
            for name in ("balanced", "strong"):
                out = [draw(world, pair, Setting(PRESETS[name])) for pair in pairs]
                *values, _ = scores(out, pairs)
                report.add_row(f"{number}", method, name, *(f"{value:.2f}" for value in values))


# Edits


def uni_edit(args: Mapping[str, Any], omega: float) -> Tensor:
    """The velocity at the latent of a step, times sigma, for the host's `sampler_cfg_function`.

    With the source's and the target's velocities at the same latent: where they differ most (a
    mask, from the mean over channels) the target's, elsewhere the source's, and `omega` times the
    difference on top, more of it where the mask is.
    """
    source, target = args["uncond"], args["cond"]
    change = target - source
    mask = change.mean(1, keepdim=True)
    low, high = (mask.amin((-2, -1), keepdim=True), mask.amax((-2, -1), keepdim=True))
    mask = (mask - low) / (high - low + 1e-7)
    velocity: Tensor = torch.lerp(source, target, mask) + omega * (1 + mask) * change
    return velocity


def edit_by_uni_edit(world: toy.Toy, case: EditCase, alpha: float, omega: float) -> Tensor:
    """1 H W 3. alpha: the share of the steps that are sampled."""
    inversion = case.inversion
    first = round((1 - alpha) * (len(inversion.sigmas) - 1))
    sigmas, x = inversion.sigmas[first:], inversion.latents[first]
    model = world.model.clone()
    model.set_model_sampler_cfg_function(partial(uni_edit, omega=omega), True)
    start = as_latent(model, x, float(sigmas[0]))
    guider = guider_of(model, world.encode_text(case.words), inversion.conditioning, 2.0)
    samples = guider.sample(
        torch.zeros_like(start),
        start,
        comfy.samplers.KSAMPLER(FlowSampler(x, None)),
        sigmas.clone(),
        disable_pbar=True,
        seed=0,
    )
    return world.decode(samples)


EDITS: dict[str, Callable[[toy.Toy, EditCase], Tensor]] = {
    "ours, structure until .8": lambda world, case: edit_picture(world, case),
    "ours, structure until .8, all but the phrase kept": lambda world, case: edit_picture(
        world, case, keeps="phrase"
    ),
    **{
        f"Uni-Edit, alpha {alpha:g}, omega {omega:g}": partial(
            edit_by_uni_edit, alpha=alpha, omega=omega
        )
        for alpha, omega in ((0.6, 5), (0.8, 5), (0.6, 2), (0.8, 2), (1, 1), (1, 0))
    },
}


def edits(world: toy.Toy, report: Report, count: int) -> None:
    pictures = edit_cases(world, count)
    report.begin_table("setting", "left", "elsewhere", "structure")
    for name, edit in EDITS.items():
        rows = [edit_scores(edit(world, case), case) for case in pictures]
        left, elsewhere, likeness = torch.tensor(rows).mean(0).tolist()
        report.add_row(name, f"{left:.2f}", f"{elsewhere:.1f} dB", f"{likeness:.2f}")


# New pictures


@dataclass(frozen=True, eq=False)
class NegativeQueriesPatch(NewStylePatch):
    """The negative prompt's places ask as the style picture's do, of their own keys and values: so
    guidance leads away from what the style picture shows."""

    def open_run(self, start: SamplingStart) -> NewStyleRun:
        return NegativeQueriesRun(self, start)


class NegativeQueriesRun(NewStyleRun):
    def _rows_to_style(self) -> frozenset[Any]:
        return rows_of_roles(self._start.guider, self._start.guider.conds)

    def _style(self, bank: FeatureBank[Features] | None, view: LayerView) -> Tensor:
        if view.cond not in rows_of_roles(self._start.guider, ["negative"]):
            return super()._style(bank, view)
        assert bank is not None
        features = [cast_features(one, view.q) for one in bank[view.layer]]
        [style] = self._places.place(features, view)[1]
        q, rows = resample_tokens(style.q, style.grid, view.grid), []
        for image in range(len(view.q)):
            own, one = features_of(view, image), slice(image, image + 1)
            rows.append(view.attend_beside(one, q, own.k, own.v, None))
        return torch.cat(rows)


def negative_queries(world: toy.Toy, report: Report, count: int) -> None:
    styles, backbone = style_cases(world, count), backbone_of(world.model)
    plain = {prompt: sample_picture(world, world.model, prompt) for prompt in PROMPTS}
    report.begin_table("strength", "negative prompt", "style", "words", "copied")
    for strength in (-1.5, 0.0, 1.5):
        for name, patch in (
            ("sees no style", NewStylePatch),
            ("asks as the style", NegativeQueriesPatch),
        ):
            rows = []
            for prompt, style in ((p, s) for p in PROMPTS for s in styles):
                picture = patch(
                    pictures=(StylePicture(style.latent, world.encode_text("")),),
                    strength=strength,
                    colour=0.5,
                    backbone=backbone,
                    blocks=backbone.parse_layers(backbone.habits.style_layers),
                    range=SamplingRange(0.0, 1.0),
                    placement="attenuated",
                )
                out = sample_picture(world, picture.add_to(world.model), prompt)
                before = plain[prompt]
                rows.append(
                    (
                        gram_distance(out, style.image) / gram_distance(before, style.image),
                        structure(out, before),
                        structure(out, style.image) - structure(before, style.image),
                    )
                )
            near, words, copying = torch.tensor(rows).mean(0).tolist()
            report.add_row(f"{strength:g}", name, f"{near:.2f}", f"{words:.2f}", f"{copying:+.2f}")


# Shares of an attention

Shares = dict[str, list[tuple[float, float, float, float]]]
"""By name: of each layer and step the mass that places look at their own style and the other one
with, in the small mask and in the large one."""


@dataclass(frozen=True, eq=False)
class WatchedPatch(MagicStylePatch):
    """Keeps what share of an attention two styles get. attended: of each layer and step."""

    masses: Shares = dataclasses.field(default_factory=dict)

    def open_run(self, start: SamplingStart) -> MagicStyleRun:
        self._start.check(start)
        return WatchedRun(self, start)


class WatchedRun(MagicStyleRun):
    _patch: WatchedPatch

    def _fuse(self, bank: FeatureBank[Features], view: LayerView) -> Tensor:
        features = [cast_features(one, view.q) for one in bank[view.layer]]
        [content], styles = self._places.place(features, view)
        share = self._patch.shares(view.grid).flatten(1) > 0.5
        for name, is_shared in (("one for each style", False), ("one for both styles", True)):
            masses = []
            for i, style in enumerate(styles):
                sharers = styles if is_shared else [style]
                masses.append(self._masses(view, content, style, sharers)[:, share[i]].mean(1))
            small, large = (mass.tolist() for mass in masses)
            own_small, other_small = (small[0], small[1] if is_shared else 0.0)
            own_large, other_large = (large[-1], large[0] if is_shared else 0.0)
            masses_of_both = (own_small, other_small, own_large, other_large)
            self._patch.masses.setdefault(name, []).append(masses_of_both)
        return super()._fuse(bank, view)

    def _masses(
        self, view: LayerView, content: Features, style: Features, sharers: Sequence[Features]
    ) -> Tensor:
        """How much of their attention the places, asking as in that style, give to each of the
        styles that share it: S N."""
        fusion = self._patch.fusion
        q = fusion.alpha * content.q
        q = q + fusion.beta * resample_tokens(style.q, style.grid, content.grid)
        keys = [view.k[:1, view.text], content.k, *(one.k for one in sharers)]
        sizes = [part.shape[1] for part in keys]
        bias = torch.cat(
            [torch.full((n,), fusion.style_scale * (i > 1)) for i, n in enumerate(sizes)]
        )
        queries, columns = (
            x.unflatten(-1, (view.heads, -1)).transpose(1, 2) for x in (q, torch.cat(keys, 1))
        )
        logits = queries @ columns.transpose(-1, -2) * queries.shape[-1] ** -0.5 + bias
        parts = logits.softmax(-1).mean(1)[0].split(sizes, -1)  # N M each
        return torch.stack([part.sum(-1) for part in parts[2:]])


def shares(world: FlowToy, report: Report, count: int) -> None:
    report.begin_table("an attention", "of the masks", "small: own", "other", "large: own", "other")
    first, second = prepare(world, 2)[:2]
    for side in (0.5, 0.25):
        mask = torch.zeros(world.side, world.side)
        edge = round(side * world.side)
        mask[:edge, :edge] = 1
        base = patch_of(world, first, Setting(near_balanced()))
        fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
        fields["styles"] = (
            Style(first.style, 1.0, mask),
            Style(second.style, 1.0, 1 - mask),
        )
        patch = WatchedPatch(**fields)
        start = patch.start_samples(world.model)
        model = patch.add_to(world.model)
        resample_with(model, first.content, start, world.empty_conds(), 1.0, None)
        for name, rows in patch.masses.items():
            means = torch.tensor(rows).mean(0).tolist()
            report.add_row(name, f"{side**2:g}", *(f"{mean:.3f}" for mean in means))


PARTS = ("styled", "edits", "negative", "shares")


@torch.inference_mode()
def main() -> None:
    parser = bench_parser(__doc__)
    parser.add_argument("--part", choices=PARTS, nargs="*", help="default: all")
    parser.add_argument("--pictures", type=int, default=2, help="of each kind")
    parser.add_argument("--steps", type=int, nargs="*", default=[8, 20], help="of inversions")
    parser.add_argument("--only", default="", help="only methods whose name has this in it")
    args = parse_with_quick(parser, pictures=1, steps=[4], only="warm")
    world = FlowToy(
        *transformer_checkpoint.load(), side=transformer_checkpoint.IMAGE_SIDE, scheduler=SCHEDULE
    )
    for part in args.part or PARTS:
        report = Report(
            f"style_candidates_{part}",
            f"MagicStyle beside what others publish, on the transformer toy: {part}",
            f"`{command_of('bench.style_candidates')}`: {STEPS} steps but for inversions, CFG"
            f" {CFG:g} for prompts",
        )
        if part == "styled":
            steppers(world, report, args.steps, args.pictures, args.only)
        elif part == "edits":
            edits(world, report, args.pictures)
        elif part == "negative":
            negative_queries(world, report, args.pictures)
        else:
            shares(world, report, args.pictures)
        report.finish(kept=not args.quick and not args.only)


if __name__ == "__main__":
    main()
