from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magicportrait.magic.layout import (
    SemanticLayout,
    column_attention,
    foreground_columns,
    head_mean_attention,
    is_described,
    is_described_by_phrases,
    joined,
    layout_downscales,
    propagate,
    semantic_layout,
    smooth,
    token_maps,
)
from magicportrait.tests.unit import naive_magicface as naive

ROUNDING = 3e-6
"""What float64 decides by less than this (relative) float32 may decide otherwise: on tiny grids,
where maps are nearly flat."""


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))


@dataclass(frozen=True)
class Row:
    """What a row of the batch shows in one layer: queries and keys of self- and cross-attention."""

    q: np.ndarray
    k: np.ndarray
    cross_q: np.ndarray
    cross_k: np.ndarray


def random_row(rng: np.random.Generator, grid: tuple[int, int], channels: int, tokens: int) -> Row:
    n = grid[0] * grid[1]
    # Sharp, so that neighbours differ.
    return Row(
        *((rng.normal(size=(rows, channels)) * 2).astype(np.float32) for rows in (n, n, n, tokens))
    )


def naive_layer(row: Row, grid: tuple[int, int], heads: int) -> naive.NaiveLayer:
    return naive.NaiveLayer(
        naive.head_mean(row.q, row.k, heads), naive.head_mean(row.cross_q, row.cross_k, heads), grid
    )


def maps_of(rows: list[Row], heads: int) -> tuple[Tensor, Tensor]:
    q, k, cross_q, cross_k = (
        tensor(np.stack([getattr(row, name) for row in rows]))
        for name in ("q", "k", "cross_q", "cross_k")
    )
    return head_mean_attention(q, k, heads), head_mean_attention(cross_q, cross_k, heads)


@dataclass(frozen=True)
class Case:
    """Two branches of a batch, seen by layers of some grids."""

    seed: int
    batch: int
    heads: int
    channels: int
    grids: list[tuple[int, int]]
    size: tuple[int, int]
    chunks: int
    spans: list[tuple[int, ...]]
    ca_scale: float

    @property
    def starts(self) -> range:
        return range(0, 77 * self.chunks, 77)

    def rows(self, branch: int) -> list[list[Row]]:
        """For each layer the rows of the batch. branch: 0 for cond, 1 for uncond."""
        rng = np.random.default_rng([self.seed, branch])
        return [
            [random_row(rng, grid, self.channels, 77 * self.chunks) for _ in range(self.batch)]
            for grid in self.grids
        ]


@st.composite
def cases(draw: Any) -> Case:
    seed = draw(st.integers(0, 10**6))
    heads, width, batch, chunks = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 2)),
    )
    latent = (draw(st.integers(1, 16)), draw(st.integers(1, 16)))
    levels = draw(st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=3))
    grids = [(-(-latent[0] // level), -(-latent[1] // level)) for level in levels]
    size = (-(-latent[0] // 2), -(-latent[1] // 2))
    words = (
        np.random.default_rng(seed)
        .permutation([token for token in range(77 * chunks) if token not in (0, 76, 77)])
        .tolist()
    )
    spans, at = [], 0
    for length in draw(st.sampled_from([(6,), (1, 5), (2, 1, 1)])):
        spans.append(tuple(words[at : at + length]))
        at += length
    return Case(
        seed,
        batch,
        heads,
        heads * width,
        grids,
        size,
        chunks,
        spans,
        draw(st.sampled_from([0.3, 0.5, 0.89, 0.9, 1.0])),
    )


def measure(case: Case) -> tuple[Tensor, Tensor, Tensor, SemanticLayout]:
    """As the host does it: the mean over layers of the cond rows' maps and of the uncond rows'
    foreground."""
    tokens, foreground, own_foreground = [], [], []
    for grid, rows, negative in zip(case.grids, case.rows(0), case.rows(1)):
        own, cross = maps_of(rows, case.heads)
        propagated = propagate(own, cross)
        tokens.append(token_maps(propagated, grid, case.size))
        own_foreground.append(
            token_maps(foreground_columns(propagated, case.starts), grid, case.size)
        )
        own, cross = maps_of(negative, case.heads)
        foreground.append(
            token_maps(propagate(own, foreground_columns(cross, case.starts)), grid, case.size)
        )
    maps, columns, own_columns = (
        torch.stack(parts).mean(0) for parts in (tokens, foreground, own_foreground)
    )
    layout = semantic_layout(maps, is_described(columns), case.spans, case.ca_scale)
    return maps, columns, own_columns, layout


def check_layout(case: Case) -> int:
    """Compares with the transcription; returns how many places were too close to call."""
    maps, columns, own_columns, out = measure(case)
    undecided = 0
    for image in range(case.batch):
        layers = [
            naive_layer(rows[image], grid, case.heads)
            for grid, rows in zip(case.grids, case.rows(0))
        ]
        negative = [
            naive_layer(rows[image], grid, case.heads)
            for grid, rows in zip(case.grids, case.rows(1))
        ]
        expected = naive.layout(layers, negative, case.size, case.spans, case.ca_scale, case.starts)
        assert naive.relative_error(maps[image], expected.token_maps) <= 1e-5
        assert naive.relative_error(columns[image], expected.foreground_maps) <= 1e-5
        assert (
            naive.relative_error(
                own_columns[image], naive.foreground_maps(layers, case.size, case.starts)
            )
            <= 1e-5
        )
        assert naive.relative_error(out.phrase_maps[image], expected.phrase_maps) <= 1e-5
        decided = (expected.region_margin > ROUNDING) & (expected.foreground_margin > ROUNDING)
        assert np.array_equal(out.regions[image].numpy()[decided], expected.regions[decided])
        assert np.array_equal(out.foreground[image].numpy()[decided], expected.foreground[decided])
        owners = out.concepts(case.spans)[image].numpy()
        assert np.array_equal(owners[decided], naive.owners(expected.regions, case.spans)[decided])
        undecided += int((~decided).sum())
    return undecided


@given(cases())
def test_the_layout_is_the_formula(case: Case) -> None:
    check_layout(case)


@pytest.mark.parametrize("latent", [(16, 16), (15, 9), (10, 18)])
@pytest.mark.parametrize(("chunks", "ca_scale"), [(1, 0.9), (1, 0.5), (2, 0.6)])
def test_regions_are_identical(latent: tuple[int, int], chunks: int, ca_scale: float) -> None:
    grids = [(-(-latent[0] // level), -(-latent[1] // level)) for level in (2, 4, 8, 4, 2)]
    case = Case(
        1, 2, 2, 16, grids, grids[0], chunks, [(5, 6, 30, 50), (7, 8, 77 * chunks - 3)], ca_scale
    )
    assert check_layout(case) == 0
    layout = measure(case)[-1]
    assert 0.2 < layout.foreground.float().mean() < 0.8
    assert {0, 1} <= set(layout.concepts(case.spans).flatten().tolist())


# Attention maps


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 12),
    st.sampled_from([1, 77, 154]),
    st.integers(0, 10**6),
)
def test_the_mean_over_heads(heads: int, width: int, queries: int, keys: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k = (rng.normal(size=(2, n, heads * width)).astype(np.float32) * 2 for n in (queries, keys))
    out = head_mean_attention(tensor(q), tensor(k), heads)
    assert (
        naive.relative_error(out, np.stack([naive.head_mean(q[i], k[i], heads) for i in range(2)]))
        <= 1e-5
    )


def test_attention_maps_are_float32_whatever_comes_in() -> None:
    q, k = torch.randn(2, 1, 6, 4, dtype=torch.float16, generator=torch.Generator().manual_seed(0))
    out = head_mean_attention(q, k, 2)
    assert out.dtype == torch.float32
    assert naive.relative_error(out[0], naive.head_mean(q[0].numpy(), k[0].numpy(), 2)) <= 1e-5


def test_propagating_weighs_the_square_three_times() -> None:
    a = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    c = torch.tensor([[[1.0], [10.0], [100.0]]])
    assert propagate(a, c).flatten().tolist() == [
        (10 + 3 * 100) / 4,
        (100 + 3 * 1) / 4,
        (1 + 3 * 10) / 4,
    ]


# Pictures


def test_the_kernel() -> None:
    x = torch.zeros(1, 2, 5, 5)
    x[0, 0, 2, 2] = 1.0
    out = smooth(x)
    assert float(out.sum()) == pytest.approx(1)
    assert float(out[0, 0, 2, 2] / out[0, 0, 2, 1]) == pytest.approx(math.e)
    assert float(out[0, 0, 2, 2] / out[0, 0, 1, 1]) == pytest.approx(math.e**2)
    assert not out[0, 1].any() and not out[0, 0, 0].any()


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(0, 10**6),
)
def test_smoothing_is_the_formula(
    batch: int, channels: int, height: int, width: int, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(size=(batch, channels, height, width)).astype(np.float32)
    assert (
        naive.relative_error(smooth(tensor(x)), np.stack([naive.smooth(picture) for picture in x]))
        <= 1e-5
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (1, 7), (7, 1), (2, 2), (2, 5)])
def test_smoothing_keeps_what_is_flat(size: tuple[int, int]) -> None:
    torch.testing.assert_close(
        smooth(torch.full((2, 3, *size), 0.7)), torch.full((2, 3, *size), 0.7)
    )


def test_smoothing_a_single_row() -> None:
    out = smooth(torch.tensor([[[[0.0, 0.0, 1.0, 0.0]]]])).flatten()
    e = math.exp(-1)
    torch.testing.assert_close(out, torch.tensor([0.0, e, 1.0, e]) / (1 + 2 * e))


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 3),
    st.integers(0, 10**6),
)
def test_token_maps_are_the_formula(
    grid: tuple[int, int], size: tuple[int, int], batch: int, seed: int
) -> None:
    propagated = (
        np.random.default_rng(seed).random((batch, grid[0] * grid[1], 4)).astype(np.float32)
    )
    out = token_maps(tensor(propagated), grid, size)
    pictures = propagated.astype(np.float64).transpose(0, 2, 1).reshape(batch, 4, *grid)
    expected = [
        naive.over_mean(naive.smooth(naive.bilinear(picture, size))) for picture in pictures
    ]
    assert naive.relative_error(out, np.stack(expected)) <= 1e-5


def test_a_token_that_nothing_looks_at_has_an_empty_map() -> None:
    assert not token_maps(torch.zeros(1, 4, 1), (2, 2), (4, 4)).any()


@pytest.mark.parametrize("starts", [(0,), (0, 77)])
def test_the_foreground_counts_every_chunks_start_token(starts: tuple[int, ...]) -> None:
    attention = torch.rand(1, 3, 154, generator=torch.Generator().manual_seed(0))
    out = foreground_columns(attention, starts)
    torch.testing.assert_close(out[..., 0], sum(attention[..., start] for start in starts))
    torch.testing.assert_close(out.sum(-1), attention.sum(-1))


# Regions

START, HAT, RED, OTHER = range(4)


def decide(
    *,
    ca_scale: float,
    spans: list[tuple[int, ...]],
    maps: list[list[float]],
    foreground: list[list[float]],
) -> SemanticLayout:
    """Pictures of one row: maps token by place, foreground channel by place."""
    return semantic_layout(
        tensor(maps)[None, :, None],
        is_described(tensor(foreground)[None, :, None]),
        spans,
        ca_scale,
    )


MAPS = [[1.0, 1.0, 1.0], [0.7, 0.2, 0.6], [0.1, 0.95, 0.2], [0.2, 0.9, 0.2]]
FOREGROUND = [[0.9, 1.0, 1.1], [1.0, 1.0, 0.9]]


@pytest.mark.parametrize(
    ("ca_scale", "spans", "regions"),
    [
        # At 1 the start token wins everywhere; nothing is cut.
        (1.0, [(HAT,)], [START, START, START]),
        (0.9, [(HAT,)], [START, START, START]),
        (0.9, [(HAT, RED)], [START, RED, START]),
        # Below .9 the third place is background.
        (0.89, [(HAT,)], [START, START, -1]),
        (0.5, [(HAT,)], [HAT, START, -1]),
        (0.5, [(HAT, RED)], [HAT, RED, -1]),
        (0.5, [(HAT,), (RED,)], [HAT, RED, -1]),
        (0.5, [(HAT,), (OTHER,)], [HAT, OTHER, -1]),
    ],
)
def test_who_owns_a_place(
    ca_scale: float, spans: list[tuple[int, ...]], regions: list[int]
) -> None:
    layout = decide(ca_scale=ca_scale, spans=spans, maps=MAPS, foreground=FOREGROUND)
    assert layout.regions.flatten().tolist() == regions
    # A tie is foreground: the start token is not the larger.
    assert layout.foreground.flatten().tolist() == [True, True, False]


def test_phrase_maps_are_not_scaled_and_take_the_strongest_token() -> None:
    layout = decide(ca_scale=0.5, spans=[(HAT, RED), (OTHER,)], maps=MAPS, foreground=FOREGROUND)
    torch.testing.assert_close(
        layout.phrase_maps[0, :, 0], torch.tensor([[0.7, 0.95, 0.6], [0.2, 0.9, 0.2]])
    )


def test_concepts_of_a_layout() -> None:
    regions = torch.tensor([[[0, 5, 6], [-1, 9, 5]], [[9, 9, 9], [1, 2, 3]]])
    layout = SemanticLayout(regions, regions >= 0, torch.zeros(2, 0, 2, 3))
    assert layout.concepts([(9,), (5, 6)]).tolist() == [
        [[-1, 1, 1], [-1, 0, 1]],
        [[0, 0, 0], [-1, -1, -1]],
    ]


def test_a_prompt_without_phrases_has_a_layout_too() -> None:
    layout = semantic_layout(torch.rand(1, 77, 3, 4), torch.rand(1, 3, 4) > 0.5, [], 0.5)
    assert layout.phrase_maps.shape == (1, 0, 3, 4)
    assert bool((layout.concepts([]) == -1).all())


# Levels


@pytest.mark.parametrize(
    ("available", "latent", "levels"),
    [
        ([1, 2, 4, 8], (64, 64), (2, 4, 8)),  # SD1.5 at 512
        ([8, 4, 2, 1, 2, 4, 8], (64, 64), (2, 4, 8)),
        ([2, 4], (128, 128), (2, 4)),  # SDXL at 1024
        ([1, 2, 4, 8], (32, 32), (2, 4, 8)),
        ([1, 2, 4, 8], (32, 31), (1, 2)),  # /2 has fewer than 16x16 tokens, /4 fewer than 8x8
        ([1, 2, 4], (16, 16), (1, 2)),
        ([2, 4], (16, 16), (2,)),
        ([1, 2, 4, 8], (128, 128), (2, 4, 8)),  # /2 has 64x64 tokens
        ([1, 2, 4, 8], (128, 129), (4, 8)),
        ([1, 2, 4, 8], (512, 512), (8,)),
        ([1, 2, 4, 8], (512, 520), (8,)),  # none is small enough: the coarsest
        ([1], (64, 64), (1,)),
        ([2, 4, 8, 16], (64, 64), (2, 4, 8)),
    ],
)
def test_levels_of_the_layout(
    available: list[int], latent: tuple[int, int], levels: tuple[int, ...]
) -> None:
    assert layout_downscales(available, latent[0] * latent[1]) == levels


@given(
    st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=8),
    st.integers(1, 600),
    st.integers(1, 600),
)
@settings(max_examples=100)
def test_levels_are_there_finest_first_and_affordable(
    available: list[int], height: int, width: int
) -> None:
    levels = layout_downscales(available, height * width)
    assert 1 <= len(levels) <= 3
    assert list(levels) == sorted(set(levels)) and set(levels) <= set(available)
    assert all(height * width <= level**2 * 64**2 for level in levels) or levels == (
        max(available),
    )


def test_parts_are_joined_in_their_places():
    def part(region: int) -> SemanticLayout:
        return SemanticLayout(
            torch.full((2, 4, 8), region),
            torch.ones(2, 4, 8, dtype=torch.bool),
            torch.full((2, 1, 4, 8), region + 1.0),
        )

    # In a picture of 16x32 a cell is four pixels; the last part reaches beyond it.
    found = joined(
        [(part(0), (16, 8, 0, 0)), (part(1), (8, 8, 8, 4)), (part(2), (99, 99, 14, 28))], (16, 32)
    )
    assert found.regions[1].tolist() == [
        [0, 0, -1, -1, -1, -1, -1, -1],
        [0, 0, -1, -1, -1, -1, -1, -1],
        [0, 1, 1, -1, -1, -1, -1, -1],
        [0, 1, 1, -1, -1, -1, -1, 2],
    ]
    assert torch.equal(found.foreground, found.regions >= 0) and torch.equal(
        found.phrase_maps[:, 0], found.regions + 1.0
    )


def test_a_part_of_less_than_a_cell_has_one():
    dot = SemanticLayout(
        torch.zeros(1, 2, 2, dtype=torch.long),
        torch.ones(1, 2, 2, dtype=torch.bool),
        torch.zeros(1, 0, 2, 2),
    )
    assert joined([(dot, (1, 1, 15, 0))], (16, 16)).regions.tolist() == [[[-1, -1], [0, -1]]]


def test_without_a_negative_prompt_phrases_tell_what_is_described() -> None:
    """Relative to its own mean: a word that gets little everywhere counts as much as one that gets
    much."""
    maps = torch.zeros(1, 5, 1, 4)
    maps[0, 1, 0] = torch.tensor([8.0, 0.0, 0.0, 0.0])
    maps[0, 2, 0] = torch.tensor([0.1, 0.1, 0.3, 0.1])
    maps[0, 4, 0] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    described = is_described_by_phrases(maps, [(1,), (2,)])
    assert described.flatten().tolist() == [True, False, True, False]
    assert is_described_by_phrases(maps, [(1, 2), (4,)]).flatten().tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert is_described_by_phrases(maps, []).all()


def naive_joint(q: Tensor, k: Tensor, columns: slice, heads: int) -> Tensor:
    """The joint softmax over all keys in float64, its columns, each head's divided by their sum."""
    out = torch.zeros(q.shape[0], q.shape[1], len(range(k.shape[1])[columns]), dtype=torch.float64)
    width = q.shape[-1] // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = q[..., part].double() @ k[..., part].double().transpose(1, 2) / width**0.5
        shares = logits.softmax(-1)[..., columns]
        out += shares / shares.sum(-1, keepdim=True) / heads
    return out


@pytest.mark.parametrize("chunk", [1, 4, 1024])
@pytest.mark.parametrize("columns", [slice(0, 7), slice(7, 20), slice(0, 20)])
def test_columns_of_a_joint_attention_are_renormalised_head_by_head(columns, chunk):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, n, 24, generator=generator) * 2 for n in (13, 20))
    out = column_attention(q, k[:, columns], 3, chunk)
    assert (out - naive_joint(q, k, columns, 3)).abs().max() < 1e-6
    assert (out.sum(-1) - 1).abs().max() < 1e-6


def test_columns_of_half_precision_queries_are_weighed_in_float32():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, n, 16, generator=generator).bfloat16() for n in (5, 9))
    out = column_attention(q, k, 2)
    assert out.dtype == torch.float32
    assert (out - naive_joint(q, k, slice(None), 2)).abs().max() < 1e-6


def test_columns_never_hold_more_than_a_chunk_of_one_head(monkeypatch):
    shapes = []
    softmax = Tensor.softmax

    def measure(self, *args):
        shapes.append(tuple(self.shape))
        return softmax(self, *args)

    monkeypatch.setattr(Tensor, "softmax", measure)
    column_attention(torch.randn(2, 10, 8), torch.randn(2, 6, 8), 2, chunk=4)
    assert shapes == [(2, 4, 6), (2, 4, 6), (2, 2, 6)] * 2
