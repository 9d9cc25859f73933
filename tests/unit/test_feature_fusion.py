from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from magicportrait.magic.feature_fusion import (
    KEYS,
    PRESETS,
    Features,
    Fusion,
    StyledTokens,
    adapt_statistics,
    feature_fusion_attention,
    fuse,
    resample_tokens,
    style_shares,
    styled_tokens,
)
from magicportrait.tests.unit import naive_magicface, naive_magicstyle
from magicportrait.tests.unit.naive_magicface import relative_error


class Spy:
    """Multi-head attention that notes what it is given."""

    def __init__(self, heads: int = 1) -> None:
        self.heads = heads
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        self.calls.append((q, k, v, bias))
        split = [x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v)]
        mask = None if bias is None else bias[None, None, None, :]
        return F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)


def features(
    rng: np.random.Generator, grid: tuple[int, int], channels: int
) -> tuple[Features, naive_magicstyle.NaiveFeatures]:
    """The same for the fast and for the naive code."""
    q, k, v = rng.normal(size=(3, grid[0] * grid[1], channels)) * 1.5
    fast = Features(*(torch.from_numpy(x)[None].float() for x in (q, k, v)), grid)
    return fast, naive_magicstyle.NaiveFeatures(q, k, v, grid)


@dataclass(frozen=True)
class Case:
    seed: int
    heads: int
    width: int
    grid: tuple[int, int]
    style_grids: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    masks: tuple[np.ndarray[Any, Any] | None, ...]
    fusion: Fusion

    def features(self) -> tuple[list[Features], list[naive_magicstyle.NaiveFeatures]]:
        """The picture's own, the content's, the styles'."""
        rng = np.random.default_rng(self.seed)
        pairs = [
            features(rng, grid, self.heads * self.width)
            for grid in (self.grid, self.grid, *self.style_grids)
        ]
        return [fast for fast, _ in pairs], [slow for _, slow in pairs]

    def numbers(self) -> tuple[Any, ...]:
        return (
            self.fusion.alpha,
            self.fusion.beta,
            self.fusion.keys,
            self.fusion.style_scale,
            self.fusion.temperature,
            self.heads,
        )


def values_of(parts: Sequence[naive_magicstyle.NaiveFeatures]) -> np.ndarray[Any, Any]:
    """What the numbers of an attention are means of."""
    return np.concatenate([part.v.ravel() for part in parts])


GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def cases(draw: Any, styles: int = 1) -> Case:
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(styles):
        # No share comes near the thousandth below which a rule is left out.
        soft = rng.uniform(0.1, 0.9, (int(rng.integers(1, 7)), int(rng.integers(1, 7)))).astype(
            np.float32
        )
        masks.append(draw(st.sampled_from([None, soft, (soft > 0.5).astype(np.float32)])))
    alpha = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    # What both leave of 1 is the picture's own: none, some, all.
    beta = round((1 - alpha) * draw(st.sampled_from([0.0, 0.5, 1.0])), 4)
    scale, temperature = (
        draw(st.sampled_from([0.0, 1.0, -2.0])),
        draw(st.sampled_from([1.0, 1.5, 0.6])),
    )
    fusion = Fusion(alpha, beta, draw(st.sampled_from(KEYS)), scale, temperature)
    return Case(
        seed,
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        draw(GRIDS),
        tuple(draw(GRIDS) for _ in range(styles)),
        tuple(draw(st.sampled_from([0.0, 0.4, 1.0])) for _ in range(styles)),
        tuple(masks),
        fusion,
    )


# One style


@pytest.mark.parametrize("keys", KEYS)
@given(case=cases())
def test_fusion_is_the_formula(keys: Any, case: Case) -> None:
    case = Case(**{**vars(case), "fusion": Fusion(**{**vars(case.fusion), "keys": keys})})
    fast, slow = case.features()
    out = fuse(*fast, case.fusion, Spy(case.heads))
    expected = naive_magicstyle.fuse(*slow, *case.numbers())
    assert relative_error(out[0], expected, values_of(slow)) <= 1e-5


@given(cases())
def test_some_tokens_are_those_of_all(case: Case) -> None:
    (own, content, style), _ = case.features()
    index = torch.randperm(content.q.shape[1], generator=torch.Generator().manual_seed(case.seed))[
        : 1 + content.q.shape[1] // 2
    ]
    spy = Spy(case.heads)
    some = fuse(own, content, style, case.fusion, spy, index)
    torch.testing.assert_close(
        some, fuse(own, content, style, case.fusion, Spy(case.heads))[:, index]
    )
    assert all(q.shape[1] == len(index) for q, *_ in spy.calls), (
        "tokens were computed that nobody asked for"
    )


def test_a_neutral_style_scale_needs_no_bias() -> None:
    (own, content, style), _ = Case(
        0, 1, 2, (2, 2), ((3, 1),), (1.0,), (None,), PRESETS["balanced"].fusion
    ).features()
    spy = Spy()
    fuse(own, content, style, Fusion(0.8, 0.2, "content+style", 0.0), spy)
    fuse(own, content, style, Fusion(0.8, 0.2, "content+style", 2.0), spy)
    assert spy.calls[0][3] is None
    assert spy.calls[1][3] is not None and spy.calls[1][3].tolist() == [0, 0, 0, 0, 2, 2, 2]


def test_a_style_scale_of_two_multiplies_the_odds_of_the_style_by_seven() -> None:
    zero, one = torch.zeros(1, 4, 2), torch.ones(1, 4, 2)
    content, style = Features(zero, zero, zero, (2, 2)), Features(zero, zero, one, (2, 2))
    share = float(
        fuse(content, content, style, Fusion(0.8, 0.2, "content+style", 2.0), Spy())[0, 0, 0]
    )
    assert share / (1 - share) == pytest.approx(np.exp(2), rel=1e-5)


def test_alpha_and_beta_of_one_together_do_not_look_at_the_picture_itself() -> None:
    (_, content, style), _ = Case(
        0, 1, 2, (2, 3), ((3, 1),), (1.0,), (None,), PRESETS["balanced"].fusion
    ).features()
    poison = Features(*(torch.full((1, 6, 2), float("nan")) for _ in range(3)), (2, 3))
    for keys in KEYS:
        assert fuse(poison, content, style, Fusion(0.8, 0.2, keys), Spy()).isfinite().all()


# Several styles


CANCELLING = Case(
    seed=10835,
    heads=1,
    width=1,
    grid=(1, 1),
    style_grids=((4, 4), (3, 3), (1, 1)),
    weights=(0.0, 1.0, 0.0),
    masks=(None, np.array([[0.48326135, 0.5167845, 0.8838339, 0.7964626]], np.float32), None),
    fusion=Fusion(0.0, 0.5, "blend", 0.0, 0.6),
)
"""One number, 2.5e-5, of a picture's -.55 and others of that size."""


@example(CANCELLING)
@given(cases(styles=3))
def test_several_styles_with_soft_masks_are_the_formula(case: Case) -> None:
    (own, content, *styles), (slow_own, slow_content, *slow_styles) = case.features()
    masks = [None if mask is None else torch.from_numpy(mask) for mask in case.masks]
    areas = styled_tokens(style_shares(case.weights, masks, case.grid))
    out = feature_fusion_attention(own, content, styles, areas, case.fusion, Spy(case.heads))
    expected = naive_magicstyle.ffa(
        slow_own, slow_content, slow_styles, case.weights, case.masks, *case.numbers()
    )
    values = values_of([slow_own, slow_content, *slow_styles])
    assert relative_error(out[0], expected, values) <= 1e-5


def test_a_style_is_not_asked_where_it_does_not_act() -> None:
    mask = torch.zeros(4, 4)
    mask[:, 2:] = 1
    (own, content, *styles), _ = Case(
        1, 1, 2, (4, 4), ((2, 2), (3, 3)), (1.0, 1.0), (None, None), PRESETS["balanced"].fusion
    ).features()
    spy = Spy()
    feature_fusion_attention(
        own,
        content,
        styles,
        styled_tokens(style_shares([1, 1], [mask, 1 - mask], (4, 4))),
        Fusion(1, 0, "style"),
        spy,
    )
    assert [(q.shape[1], k.shape[1]) for q, k, _, _ in spy.calls] == [(8, 4), (8, 9)]


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_a_place_gets_all_of_its_style_however_small_its_mask_is(scale: float) -> None:
    """Each style has an attention of its own: they do not share one softmax, in which a style with
    fewer tokens, or a smaller mask, would get less of it (MAST, arXiv 2604.12281)."""
    rng = np.random.default_rng(0)
    (content, _), (small, _), (large, _) = (
        features(rng, grid, 8) for grid in ((8, 8), (4, 4), (16, 8))
    )
    fusion, corner = Fusion(0.8, 0.2, "content+style", scale), torch.zeros(8, 8)
    corner[:2, :2] = 1
    shares = style_shares([1.0, 1.0], [corner, 1 - corner], (8, 8))
    out = feature_fusion_attention(
        content, content, [small, large], styled_tokens(shares), fusion, Spy()
    )
    place = corner.flatten() > 0
    for style, tokens in ((small, place), (large, ~place)):
        alone = fuse(content, content, style, fusion, Spy())
        torch.testing.assert_close(out[:, tokens], alone[:, tokens])


def test_the_content_alone_is_drawn_as_it_was() -> None:
    (own, content, style), (_, slow, _) = Case(
        2, 2, 3, (3, 4), ((2, 2),), (0.0,), (None,), PRESETS["balanced"].fusion
    ).features()
    out = feature_fusion_attention(
        own,
        content,
        [style],
        styled_tokens(style_shares([0.0], [None], (3, 4))),
        PRESETS["strong"].fusion,
        Spy(2),
    )
    assert relative_error(out[0], naive_magicface.attention(slow.q, slow.k, slow.v, 2)) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_type_stays(dtype: torch.dtype) -> None:
    (own, content, style), _ = Case(
        3, 1, 2, (2, 2), ((3, 1),), (0.5,), (None,), PRESETS["balanced"].fusion
    ).features()
    own, content, style = (
        Features(f.q.to(dtype), f.k.to(dtype), f.v.to(dtype), f.grid) for f in (own, content, style)
    )
    spy = Spy()
    out = feature_fusion_attention(
        own,
        content,
        [style],
        styled_tokens(style_shares([0.5], [None], (2, 2))),
        PRESETS["balanced"].fusion,
        spy,
    )
    assert out.dtype == dtype
    assert {tensor.dtype for call in spy.calls for tensor in call if tensor is not None} == {dtype}


# Shares and areas


@given(cases(styles=3))
def test_shares_are_the_formula(case: Case) -> None:
    masks = [None if mask is None else torch.from_numpy(mask) for mask in case.masks]
    out = style_shares(case.weights, masks, case.grid)
    assert relative_error(out, naive_magicstyle.shares(case.weights, case.masks, case.grid)) <= 1e-6
    assert bool((out >= 0).all()) and bool((out.sum(0) <= 1 + 1e-6).all())


@given(cases(styles=3))
def test_areas_cover_every_token_and_add_up_to_one(case: Case) -> None:
    masks = [None if mask is None else torch.from_numpy(mask) for mask in case.masks]
    total = torch.zeros(case.grid[0] * case.grid[1])
    for area in styled_tokens(style_shares(case.weights, masks, case.grid)):
        index = slice(None) if area.index is None else area.index
        assert area.share.shape == total[index].shape and bool((area.share > 0).all())
        total[index] += area.share
    torch.testing.assert_close(total, torch.ones_like(total))


def test_what_is_left_out_is_a_millionth_of_a_token_at_most() -> None:
    mask = torch.tensor([[0.9e-6, 1.1e-6, 1 - 0.5e-6]])
    style, rest = styled_tokens(style_shares([1.0], [mask], (1, 3)))
    assert style.index is not None and style.index.tolist() == [1, 2]
    assert rest.index is not None and rest.index.tolist() == [0, 1]


def test_an_area_that_is_everything_needs_no_index() -> None:
    [everywhere] = styled_tokens(style_shares([1.0], [None], (2, 3)))
    assert (
        isinstance(everywhere, StyledTokens) and everywhere.style == 0 and everywhere.index is None
    )
    torch.testing.assert_close(everywhere.share, torch.ones(6))
    style, rest = styled_tokens(style_shares([0.25], [None], (2, 3)))
    assert (style.style, rest.style) == (0, None)
    torch.testing.assert_close(rest.share, torch.full((6,), 0.75))


def test_styles_that_ask_for_more_than_everything_share_it() -> None:
    mask = torch.tensor([[1.0, 0.0]])
    shares = style_shares([1.0, 0.5], [None, mask], (1, 2))
    torch.testing.assert_close(shares, torch.tensor([[[2 / 3, 1.0]], [[1 / 3, 0.0]]]))


# Tokens of another grid


@given(GRIDS, GRIDS, st.integers(0, 10**6))
def test_resampling_is_bilinear(grid: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(grid[0] * grid[1], 3))
    out = resample_tokens(torch.from_numpy(x)[None], grid, size)
    assert out.shape == (1, size[0] * size[1], 3)
    assert relative_error(out[0], naive_magicstyle.resample(x, grid, size)) <= 1e-12


def test_the_same_grid_is_left_alone() -> None:
    x = torch.rand(1, 6, 2)
    assert resample_tokens(x, (2, 3), (2, 3)) is x


# The start latent


@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 2), st.sampled_from([0.0, 0.5, 1.0])
)
def test_adapting_statistics_is_the_formula(
    seed: int, batch: int, styles: int, amount: float
) -> None:
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(batch, 4, 5, 6)) * 3 + 1
    others = [rng.normal(size=(1, 4, 7, 3)) * rng.uniform(0.2, 2) - 2 for _ in range(styles)]
    shares = rng.random((styles, 5, 6)) / styles
    out = adapt_statistics(
        torch.from_numpy(content),
        [torch.from_numpy(x) for x in others],
        torch.from_numpy(shares),
        amount,
    )
    expected = [
        naive_magicstyle.adapt(image, [other[0] for other in others], shares, amount)
        for image in content
    ]
    assert relative_error(out, np.stack(expected)) <= 1e-6


def test_a_full_adaptation_has_the_styles_statistics_and_none_the_contents() -> None:
    generator = torch.Generator().manual_seed(0)
    content, style = (
        torch.randn(2, 4, 8, 8, generator=generator) * 3,
        torch.randn(1, 4, 6, 9, generator=generator) + 5,
    )
    everywhere = torch.ones(1, 8, 8)
    out = adapt_statistics(content, [style], everywhere, 1.0)
    for image in out:
        torch.testing.assert_close(image.mean((1, 2)), style[0].mean((1, 2)))
        torch.testing.assert_close(image.std((1, 2)), style[0].std((1, 2)))
    kept = content.clone()
    assert torch.equal(adapt_statistics(content, [style], everywhere, 0.0), kept) and torch.equal(
        content, kept
    )


# Presets


def test_presets_are_valid_and_distinct() -> None:
    for preset in PRESETS.values():
        assert preset.fusion.alpha + preset.fusion.beta == pytest.approx(1.0)
        assert 0 <= preset.start < preset.end <= 1 and 0 <= preset.adain <= 1
    assert len(set(PRESETS.values())) == len(PRESETS)
