"""MagicFace in a sampling run: references at every noise level or in bands of them, RSA then RBA in
the chosen layers, the layout, and semantic guidance (arXiv 2408.07433)."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...magic.blocks import Block
from ...magic.curves import Curve
from ...magic.guidance import guide_by_region
from ...magic.layout import SemanticLayout
from ...magic.messages import size_in_words
from ...magic.positions import Placement
from ...magic.reference_attention import (
    ReferenceTokens,
    RegionTokens,
    led_away,
    reference_attention,
    region_attention,
)
from ...magic.reference_passes import BandStarts
from ..layout.patch import LayoutPatch, LayoutRun
from ..sampling.backbone import LayerKey, LayerView
from ..sampling.feature_store import FeatureStore
from ..sampling.features import FeatureBank, StepFeatures
from ..sampling.observers import (
    ObservedPatch,
    ReferenceObserver,
    ReferenceRunObserver,
    ReferenceView,
)
from ..sampling.options import ModelOptions
from ..sampling.patch import PatchRun, Predict, SamplingStart
from ..sampling.range import (
    ALL_OF_SAMPLING,
    SamplingRange,
    SigmaRange,
    noise_bands,
    share_of_sampling,
    sigma_at,
)
from ..sampling.reference_memory import (
    ReferenceRoom,
    check_kept_room,
    feature_bytes,
)
from ..sampling.reference_pass import ReferencePass, SeededNoise
from ..sampling.references import Reference
from ..sampling.rows import SamplingRows
from .concept_lora import ConceptLoraRun, LoraOfConcept
from .placement import PlacedReferences
from .region_texts import RegionTextRun, TextOfConcept
from .regions import ConceptRegions, check_whole, stretches

_OFF = -math.inf
"""Added to the logits of what is not looked at."""


@dataclass(frozen=True)
class ReferenceTime:
    """When the references of a concept act. range: shares of sampling; curve: what is added to the
    logits of their tokens over sampling, or None; weights: of their tokens in some blocks."""

    range: SamplingRange = ALL_OF_SAMPLING
    curve: Curve | None = None
    weights: Mapping[Block, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MagicFacePatch(ObservedPatch["MagicFaceRun"]):
    """Everything a run needs.

    layout: the prompt, its phrases (one a concept) and the regions that the user painted;
    references: the images of all concepts; blocks: where they act; range: when; inject_at: the
    share of sampling from which each region looks at its own reference only (RBA), before it every
    place looks at all (RSA); semantic_cfg: whether every word's region is guided equally strongly;
    noise_seed: which noise the references are seen through; noise_per_step: another one in each
    step, as in the official code; store: features of earlier runs, None to compute them in each;
    bands: of noise levels that share a reference pass, None for one at each level; observers: who
    sees what the picture looks at; placement: where the references' keys lie, in models that turn
    them by position; loras: that act where their concepts are; texts: that are read there;
    times: for each concept when its references act and how strongly; none for always, as they are;
    away: of references behind those of the phrases' concepts, which the picture is led away from:
    the concept where each group of them is. They are concepts behind the others, in this order.
    """

    layout: LayoutPatch
    references: tuple[Reference, ...]
    blocks: tuple[Block, ...]
    range: SamplingRange = ALL_OF_SAMPLING
    inject_at: float = 0.0
    semantic_cfg: bool = False
    noise_seed: int = 0
    noise_per_step: bool = False
    store: FeatureStore | None = None
    bands: BandStarts | None = None
    observers: tuple[ReferenceObserver, ...] = ()
    placement: Placement = "region"
    loras: tuple[LoraOfConcept, ...] = ()
    texts: tuple[TextOfConcept, ...] = ()
    times: tuple[ReferenceTime, ...] = ()
    away: tuple[int, ...] = ()

    @property
    def references_to_match(self) -> tuple[Reference, ...]:
        """The references that the picture is to be like."""
        return tuple(own for own in self.references if own.concept < len(self.phrases))

    @property
    def key(self) -> str:
        return f"magicface_{self.layout.prompt.tag}"

    @property
    def phrases(self) -> tuple[str, ...]:
        return self.layout.prompt.phrases

    @property
    def pixels(self) -> int:
        return self.layout.backbone.pixels

    def with_observer(self, observer: ReferenceObserver) -> MagicFacePatch:
        return dataclasses.replace(self, observers=(*self.observers, observer))

    @property
    def downscales(self) -> set[int]:
        """Of the layers in which references act."""
        layers = self.layout.backbone.layers
        return {layer.downscale for layer in layers if layer.block in self.blocks}

    @property
    def places_by_layout(self) -> bool:
        """Whether keys go where the layout has their concept."""
        return self.layout.backbone.rotary is not None and self.placement == "region"

    def open_run(self, start: SamplingStart) -> MagicFaceRun:
        return MagicFaceRun(self, start)


class MagicFaceRun(PatchRun):
    """One sampling run with references."""

    def __init__(self, patch: MagicFacePatch, start: SamplingStart):
        self._patch, self._start, backbone = patch, start, patch.layout.backbone
        self._watching = [
            observer.open(start, patch.references_to_match, patch.downscales, patch.pixels)
            for observer in patch.observers
        ]
        self._layout = LayoutRun(patch.layout, start)
        self._range = patch.range.sigmas(start.model_sampling)
        self._times: tuple[SigmaRange, ...] = tuple(
            time.range.sigmas(start.model_sampling) for time in patch.times
        )
        self._inject = sigma_at(start.model_sampling, patch.inject_at)
        source = SeededNoise(patch.noise_seed, patch.noise_per_step)
        self._features: StepFeatures[ReferenceTokens] = StepFeatures(
            start.guider,
            backbone,
            patch.blocks,
            ReferencePass(patch.references, source, backbone, patch.blocks),
            patch.store,
            functools.partial(_ConceptTokens, self),
            noise_bands(patch.bands, start.model_sampling),
        )
        self._visible: dict[tuple[int, tuple[int, int]], tuple[Tensor, Tensor]] = {}
        self._room = ReferenceRoom(feature_bytes(patch.references, backbone, patch.blocks))
        if patch.store is not None:
            check_kept_room(self._room.size, start.steps)
        self._texts = RegionTextRun(patch.texts, patch.layout, start)
        self._report()
        # The last thing: it changes the model, and only a run that has begun is closed.
        self._loras = (
            ConceptLoraRun(patch.loras, patch.layout, start, f"{patch.key}_{uuid.uuid4().hex}")
            if patch.loras
            else None
        )

    def _report(self) -> None:
        """Says in the log what will happen in which step."""
        sigmas, patch = self._start.sigmas[:-1], self._patch
        if patch.loras:
            logging.info(
                "MagicFace: %d LoRAs of %d concepts, each where its concept is",
                len(patch.loras),
                len({lora.concept for lora in patch.loras}),
            )
        if patch.texts:
            logging.info("MagicFace: %d phrases with a text of their own", len(patch.texts))
        if not patch.references:
            return
        acting = [i for i, sigma in enumerate(sigmas, 1) if self._range.covers(sigma)]
        by_region = [
            i for i in acting if sigmas[i - 1] < self._inject and not self._has_no_layout(i)
        ]
        logging.info(
            "MagicFace: %d references in %d of %d layers%s; steps %s of %d look at all of them"
            " (RSA), steps %s at their region's own (RBA)%s",
            len(patch.references),
            len(patch.blocks),
            len(patch.layout.backbone.layers),
            f", {size_in_words(self._room.size)} a step" if self._room.size else "",
            stretches([i for i in acting if i not in by_region]),
            len(sigmas),
            stretches(by_region),
            "; CFG is 1: semantic_cfg idles" if patch.semantic_cfg and not self._guides else "",
        )

    def _has_no_layout(self, step: int) -> bool:
        """Whether a step, from 1, comes before there is a layout: the first, unless all regions are
        painted or the run goes on from another."""
        targets = self._patch.layout.targets
        is_painted = bool(targets) and all(target is not None for target in targets)
        return step == 1 and not is_painted and not self._layout.goes_on

    def predict(
        self,
        executor: Predict,
        x: Tensor,
        timestep: Tensor,
        model_options: ModelOptions,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        sigma = float(timestep.flatten()[0])
        changes = self._changes_at(sigma)
        is_acting = self._range.covers(sigma) and any(
            changes.get(reference.concept) != _OFF for reference in self._patch.references
        )
        is_measured = self._is_measured(sigma)
        has_texts = bool(self._patch.texts)
        if not is_acting and not is_measured and self._loras is None and not has_texts:
            return executor(x, timestep, model_options, *args, **kwargs)
        rows, options = self._layout.rows, model_options
        # Our prompt may be limited to other steps.
        is_acting = is_acting and bool(rows.active(sigma))
        if is_acting:
            self.expected += 1
            self._room.ensure(self._start.guider, x.device)
            hooks = rows.hooks_at(sigma)
            bank = self._features.at(sigma, timestep, model_options, hooks)
            rule = self._rule(sigma, rows, bank, x.shape, changes)
            options = self._patch.layout.backbone.with_rule(
                options, self._patch.blocks, rows.ours, x.shape[0], rule.attend
            )
        tracker = self._layout.tracker
        texts = self._texts.acting(rows, tracker, x, sigma) if has_texts else {}
        if self._loras is not None:
            options = self._loras.acting(rows, tracker, options, x, sigma, texts)
        if is_measured:
            options = self._layout.begin(sigma, options, x.shape, self._guide)
        if texts:
            options = self._patch.layout.backbone.with_texts(options, texts, x.shape[0])
        prediction = executor(x, timestep, options, *args, **kwargs)
        if is_measured:
            self._layout.end(sigma)
        if is_acting:
            self.has_reached |= rule.has_acted
        return prediction

    def finish(self, samples: Tensor) -> None:
        if self._features.calls:
            logging.info("MagicFace: %s", self._features.summary())
        if self._loras is not None:
            self._loras.finish()
        self._layout.finish(samples)
        for observer in self._watching:
            observer.finish(samples)

    def release(self) -> None:
        if self._loras is not None:
            self._loras.close()
        self._features.close()
        self._layout.close()
        self._visible = {}
        del self._start, self._features, self._watching, self._loras, self._texts

    def visible_tokens(
        self, reference: int, grid: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The tokens of a reference that take part, and what is added to their logits, both T."""
        if (reference, grid) not in self._visible:
            source = self._patch.references[reference]
            index, log_coverage = source.visible_tokens(grid)
            self._visible[reference, grid] = index.to(device), log_coverage.to(device)
        index, log_coverage = self._visible[reference, grid]
        return index, log_coverage + self._patch.references[reference].strength

    def concept_of(self, reference: int) -> int:
        return self._patch.references[reference].concept

    @property
    def concepts(self) -> int:
        """How many there are, with those that the picture is led away from."""
        return len(self._patch.phrases) + len(self._patch.away)

    def _rule(
        self,
        sigma: float,
        rows: SamplingRows,
        bank: FeatureBank[ReferenceTokens],
        shape: Sequence[int],
        changes: Mapping[int, float],
    ) -> _ReferenceRule:
        # Finishing this call's measurement replaces the layouts in mid-call.
        layouts = {cond: self._layout.tracker.layout_of(cond) for cond in rows.ours}
        step, size = self._start.step_at(sigma), (shape[-2], shape[-1])
        call = _Call(sigma, step, shape[0], size, sigma < self._inject)
        return _ReferenceRule(self._patch, rows, layouts, bank, call, self._watching, changes)

    def _changes_at(self, sigma: float) -> dict[int, float]:
        """What is added to the logits of the references of concepts at a noise level, where that
        is not nothing."""
        changes: dict[int, float] = {}
        for concept, (time, span) in enumerate(zip(self._patch.times, self._times, strict=True)):
            if not span.covers(sigma):
                changes[concept] = _OFF
            elif time.curve is not None:
                share = share_of_sampling(self._start.model_sampling, sigma)
                changes[concept] = time.curve.at(share)
        return changes

    @property
    def _guides(self) -> bool:
        """At CFG 1, which a node may set for some steps only, there is nothing to guide. Other
        nodes' guiders may have no CFG, or a list of them."""
        cfg = getattr(self._start.guider, "cfg", None)
        is_one = isinstance(cfg, (int, float)) and math.isclose(cfg, 1.0)
        return self._patch.semantic_cfg and not is_one

    def _is_measured(self, sigma: float) -> bool:
        """RBA and the placement of keys need the layout of the call before it, guidance that of its
        own call, and the user the last one."""
        patch = self._patch
        if self._guides or patch.places_by_layout or patch.loras or patch.texts or patch.away:
            return True
        step, last = self._start.step_at(sigma), self._start.steps - 1
        following = self._start.sigmas[min(step + 1, self._start.steps)]
        return following < self._inject or step >= last

    def _guide(self, arguments: dict[str, Any]) -> Tensor:
        denoised: Tensor = arguments["denoised"]
        layout, cond = self._layout.tracker.whole, arguments["cond_denoised"]
        # Without an unconditional prediction the host gives zeros in its place.
        guides = self._guides and arguments.get("uncond") is not None
        if not guides or layout is None or layout.regions.shape[0] != cond.shape[0]:
            return denoised
        # Some latents have a time, of one.
        base, cond, uncond = (
            x.flatten(1, -3) for x in (denoised, cond, arguments["uncond_denoised"])
        )
        return guide_by_region(base, cond, uncond, layout).view_as(denoised)


class _ConceptTokens:
    """Gathers the visible tokens of each concept's references, layer by layer."""

    def __init__(self, run: MagicFaceRun):
        self._run = run
        self._tokens: dict[LayerKey, dict[int, list[ReferenceTokens]]] = {}

    def take(self, reference: int, view: LayerView, row: int) -> None:
        index, bias = self._run.visible_tokens(reference, view.grid, view.k.device)
        k, v = (x[row, view.image][index] for x in (view.k, view.v))
        tokens = ReferenceTokens(k, v, bias)
        concept = self._run.concept_of(reference)
        self._tokens.setdefault(view.layer, {}).setdefault(concept, []).append(tokens)

    def bank(self) -> FeatureBank[ReferenceTokens]:
        return {layer: self._of_concepts(by_concept) for layer, by_concept in self._tokens.items()}

    def _of_concepts(
        self, by_concept: Mapping[int, Sequence[ReferenceTokens]]
    ) -> list[ReferenceTokens]:
        """One for each concept, empty for those of LoRAs alone."""
        some = next(iter(by_concept.values()))[0]
        nothing = ReferenceTokens(*(x[:0].clone() for x in (some.k, some.v, some.bias)))
        return [
            _join(by_concept[concept]) if concept in by_concept else nothing
            for concept in range(self._run.concepts)
        ]


@dataclass(frozen=True)
class _Call:
    """One model call. sigma: its noise level; step: of the run; batch: pictures; latent_size: rows
    and columns; is_by_region: whether each place looks at its own concept only (RBA)."""

    sigma: float
    step: int
    batch: int
    latent_size: tuple[int, int]
    is_by_region: bool


class _ReferenceRule:
    """Reference attention in one model call.

    layouts: by the id of each of our conds, as the call before has left them; changes: what is
    added to the logits of concepts in this call.
    has_acted: whether a layer was drawn by it.
    """

    def __init__(
        self,
        patch: MagicFacePatch,
        rows: SamplingRows,
        layouts: Mapping[Any, SemanticLayout | None],
        bank: FeatureBank[ReferenceTokens],
        call: _Call,
        observers: Sequence[ReferenceRunObserver],
        changes: Mapping[int, float],
    ):
        self._patch, self._rows, self._bank, self._changes = patch, rows, bank, changes
        self._call, self._observers = call, observers
        self.has_acted = False
        layers = patch.layout.backbone.layers
        self._downscales = {layer.block: layer.downscale for layer in layers}
        self._regions = ConceptRegions(
            rows,
            layouts,
            patch.layout.prompt.spans,
            patch.layout.targets,
            call.batch,
            call.latent_size,
        )
        self._places = PlacedReferences(
            patch.placement,
            patch.layout.backbone,
            patch.references,
            {len(patch.phrases) + i: home for i, home in enumerate(patch.away)},
        )

    def attend(self, view: LayerView) -> Tensor:
        """The `Rule` of the chosen layers."""
        self.has_acted = True
        check_whole(view, self._rows, self._call.latent_size, self._patch.pixels)
        downscale, owners = self._downscales[view.layer[0]], self._owners_of(view)
        bank = self._places.move(self._bank[view.layer], view, downscale, owners)
        every = self._at_this_time(_weigh(bank, view), view.layer[0])
        references = every[: len(self._patch.phrases)]
        away = self._away_from(every, view.layer[0])
        is_by_region = self._call.is_by_region
        groups = self._regions.groups(view) if is_by_region or any(away) else None
        regions = groups if is_by_region else None
        if regions is None:
            out = reference_attention(view.q, view.k, view.v, references, view.attend)
        else:
            out = region_attention(view.q, view.k, view.v, references, regions, view.attend)
        if groups is not None and any(away):
            q, k, v = view.q, view.k, view.v
            out = led_away(out, q, k, v, references, away, groups, view.attend, is_by_region)
        if view.cond not in self._rows.areas:
            for observer in self._observers:
                observer.see(self._view_of(view, references, regions))
        return out

    def _at_this_time(
        self, bank: Sequence[ReferenceTokens], block: Block
    ) -> Sequence[ReferenceTokens]:
        """What nobody looks at now, or in this block, stays among the keys, so that observers find
        it."""
        changes = [self._change(concept, block) for concept in range(len(bank))]
        if not any(changes):
            return bank
        return [
            dataclasses.replace(tokens, bias=tokens.bias + change)
            for tokens, change in zip(bank, changes, strict=True)
        ]

    def _change(self, concept: int, block: Block) -> float:
        """What is added to the logits of a concept's tokens."""
        change = self._changes.get(concept, 0.0)
        times = self._patch.times
        weight = times[concept].weights.get(block, 1.0) if times else 1.0
        return change + (math.log(weight) if weight else _OFF)

    def _away_from(
        self, bank: Sequence[ReferenceTokens], block: Block
    ) -> list[list[ReferenceTokens]]:
        """For each concept what it is led away from in this block, now."""
        first = len(self._patch.phrases)
        away: list[list[ReferenceTokens]] = [[] for _ in range(first)]
        for i, home in enumerate(self._patch.away):
            if self._change(first + i, block) != _OFF:
                away[home].append(bank[first + i])
        return away

    def _view_of(
        self,
        view: LayerView,
        references: Sequence[ReferenceTokens],
        regions: Sequence[RegionTokens] | None,
    ) -> ReferenceView:
        return ReferenceView(
            step=self._call.step,
            sigma=self._call.sigma,
            downscale=self._downscales[view.layer[0]],
            grid=view.grid,
            heads=view.heads,
            q=view.q,
            k=view.k,
            bank=references,
            regions=regions,
        )

    def _owners_of(self, view: LayerView) -> Tensor | None:
        """The concept at each token, B rows columns; None where that is not known, or not to
        matter."""
        if not (self._call.is_by_region or self._patch.places_by_layout):
            return None
        return self._regions.owners(view)


def _weigh(references: Sequence[ReferenceTokens], view: LayerView) -> Sequence[ReferenceTokens]:
    """References count against the picture's own tokens as strongly as ever, however many keys
    other nodes have added to these."""
    if not view.foreign_keys:
        return references
    keys = view.k.shape[1]
    crowd = math.log(keys / (keys - view.foreign_keys))
    return [dataclasses.replace(tokens, bias=tokens.bias + crowd) for tokens in references]


def _join(tokens: Sequence[ReferenceTokens]) -> ReferenceTokens:
    """The tokens of all references of a concept."""
    if len(tokens) == 1:
        return tokens[0]
    return ReferenceTokens(
        torch.cat([t.k for t in tokens]),
        torch.cat([t.v for t in tokens]),
        torch.cat([t.bias for t in tokens]),
    )
