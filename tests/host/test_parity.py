"""The official algorithm, written naively as it is: references as extra rows of the batch, explicit
softmax everywhere. Ours must agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from magicportrait.tests.host.sampling import (
    NEGATIVE,
    PROMPT,
    Sampling,
    apply,
    concepts,
    encode,
    parts,
)
from magicportrait.tests.unit import naive_magicface as naive

SIDE = 32
UNCOND, COND, FIRST_REFERENCE = 0, 1, 2
CHOSEN = [("output", i) for i in range(6, 12)]
SPANS = ((6,), (10,))
"""hat and scarf in 'a man wearing a red hat and a striped scarf', start token = 0."""
LAYOUT_BLOCKS = (
    [("input", i) for i in (4, 5, 7, 8)] + [("middle", 0)] + [("output", i) for i in range(3, 9)]
)


class OfficialForm:
    """One batch of [uncond, cond, reference 1, reference 2]; only the cond row is altered."""

    def __init__(self, model: Any, chained: tuple[Any, ...], vae: Any, ca_scale: float):
        self.model, self.concepts, self.ca_scale = model, chained, ca_scale
        self.context = torch.cat(
            [
                encode(text)[0][0]
                for text in (NEGATIVE, PROMPT, *(concept.phrase for concept in chained))
            ]
        )
        self.clean = [
            model.model.process_latent_in(vae.encode(concept.images)) for concept in chained
        ]
        self.noise = [
            torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(i))
            for i in range(len(chained))
        ]
        self.layout: naive.NaiveLayout | None = None

    def denoise(self, x: Tensor, sigma: Tensor, by_region: bool) -> tuple[Tensor, Tensor]:
        """Unconditional and conditional prediction. Measures the layout of this call."""
        self.by_region = by_region and self.layout is not None
        self.maps: dict[tuple[str, int], dict[int, list[Any]]] = {}
        rows = torch.cat(
            [x, x, *(z + sigma * n for z, n in zip(self.clean, self.noise, strict=True))]
        )
        patches = {
            "attn1": {block: self.self_attention for block in {*CHOSEN, *LAYOUT_BLOCKS}},
            "attn2": dict.fromkeys(LAYOUT_BLOCKS, self.cross_attention),
        }
        options = {"patches_replace": patches, "cond_or_uncond": [0], "sigmas": sigma}
        out = self.model.model.apply_model(
            rows, sigma.expand(len(rows)), c_crossattn=self.context, transformer_options=options
        )
        layers = {
            row: [
                naive.NaiveLayer(maps[row][0].numpy(), maps[row][1].numpy(), maps[row][2])
                for maps in self.maps.values()
            ]
            for row in (UNCOND, COND)
        }
        self.layout = naive.layout(
            layers[COND], layers[UNCOND], (SIDE // 2, SIDE // 2), SPANS, self.ca_scale
        )
        return out[UNCOND : UNCOND + 1], out[COND : COND + 1]

    def self_attention(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        block, grid = tuple(options["block"]), tuple(options["activations_shape"][-2:])
        out = torch.empty_like(q)
        for row in range(len(q)):
            # Among all references the row is drawn anew: no plain one is needed.
            if row != COND or block not in CHOSEN or self.by_region:
                out[row] = self.attend(q[row], k[row], v[row], None, options)
        if block in LAYOUT_BLOCKS:
            self.maps[block] = {
                row: [self.head_mean(q[row], k[row], options), None, grid] for row in (UNCOND, COND)
            }
        if block in CHOSEN:
            out[COND] = (
                self.regions(q, k, v, grid, options, out[COND])
                if self.by_region
                else self.with_all(q, k, v, grid, options)
            )
        return out

    def cross_attention(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        for row in (UNCOND, COND):
            self.maps[tuple(options["block"])][row][1] = self.head_mean(q[row], k[row], options)
        return torch.cat(
            [self.attend(q[i], k[i], v[i], None, options)[None] for i in range(len(q))]
        )

    def reference(
        self, index: int, k: Tensor, v: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        coverage = torch.from_numpy(
            naive.area(self.concepts[index].mask[0].numpy(), grid)
        ).flatten()
        taken = coverage >= naive.MINIMUM_COVERAGE
        bias = coverage[taken].log() + self.concepts[index].strength
        return k[FIRST_REFERENCE + index][taken], v[FIRST_REFERENCE + index][taken], bias

    def blend(
        self,
        chosen: list[int],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: tuple[int, int],
        options: dict[str, Any],
    ) -> Tensor:
        found = [self.reference(i, k, v, grid) for i in chosen]
        bias = torch.cat(
            [torch.zeros(len(k[COND]), dtype=torch.float64), *(b for _, _, b in found)]
        )
        keys, values = (
            torch.cat([k[COND], *(rk for rk, _, _ in found)]),
            torch.cat([v[COND], *(rv for _, rv, _ in found)]),
        )
        return self.attend(q[COND], keys, values, bias, options)

    def with_all(
        self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], options: dict[str, Any]
    ) -> Tensor:
        return self.blend(list(range(len(self.concepts))), q, k, v, grid, options)

    def regions(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: tuple[int, int],
        options: dict[str, Any],
        plain: Tensor,
    ) -> Tensor:
        assert self.layout is not None
        owners = naive.nearest(naive.owners(self.layout.regions, SPANS), grid).reshape(-1)
        out = plain.clone()
        for i in range(len(self.concepts)):
            mine = torch.from_numpy(owners == i)
            out[mine] = self.blend([i], q, k, v, grid, options)[mine]
        return out

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        return torch.cat(
            [
                self.weights(q, k, head, bias, options) @ self.head(v, head, options)
                for head in range(options["n_heads"])
            ],
            1,
        ).to(q)

    def head_mean(self, q: Tensor, k: Tensor, options: dict[str, Any]) -> Tensor:
        return torch.stack(
            [self.weights(q, k, head, None, options) for head in range(options["n_heads"])]
        ).mean(0)

    def head(self, x: Tensor, head: int, options: dict[str, Any]) -> Tensor:
        width = options["dim_head"]
        return x[:, head * width : (head + 1) * width].double()

    def weights(
        self, q: Tensor, k: Tensor, head: int, bias: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        logits = (
            self.head(q, head, options) @ self.head(k, head, options).T / options["dim_head"] ** 0.5
        )
        return (logits if bias is None else logits + bias).softmax(-1)


@pytest.mark.parametrize("shape", ["sd15", "sd21v"])
@pytest.mark.parametrize("semantic_cfg", [False, True])
def test_every_step_agrees_with_the_official_form(shape, semantic_cfg):
    import comfy.samplers

    model, _, vae = parts(shape)
    chained = concepts(2, (SIDE * 8, SIDE * 8))
    patched, positive, record = apply(
        model, shape, chained, semantic_cfg=semantic_cfg, inject_at=0.4
    )
    steps: list[tuple[Tensor, Tensor]] = []
    sampling = Sampling(
        size=(SIDE, SIDE),
        steps=4,
        cfg=7.5,
        callback=lambda step, x0, x, total: steps.append((x0.clone(), x.clone())),
    )
    samples = sampling.run(patched, positive)
    recorded = record.run_of(samples).steps
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
    inject = model.get_model_object("model_sampling").percent_to_sigma(0.4)

    official = OfficialForm(model, chained, vae, ca_scale=0.6)
    phases = []
    for step, (x0, x) in enumerate(steps):
        by_region = float(sigmas[step]) < inject
        uncond, cond = official.denoise(x, sigmas[step], by_region)
        phases.append(official.by_region)
        rate = 1.0
        layout = official.layout
        if semantic_cfg:
            rate = torch.from_numpy(
                naive.semantic_rate(
                    (cond - uncond)[0].double().numpy(), layout.regions, layout.foreground, 7.5
                )
            ).float()
        expected = uncond + 7.5 * rate * (cond - uncond)
        assert naive.relative_error(x0, expected) <= 1e-4, f"step {step}"
        if step in recorded:
            decided = (layout.region_margin > 1e-4) & (layout.foreground_margin > 1e-4)
            ours, theirs = recorded[step].concepts[0], naive.owners(layout.regions, SPANS)
            assert decided.mean() > 0.95 and (ours == theirs)[decided].all(), f"step {step}"
    assert phases == [False, False, True, True], "both rules were exercised"
