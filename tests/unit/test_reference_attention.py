from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from magicportrait.magic.concepts import visible_tokens
from magicportrait.magic.reference_attention import (
    Attend,
    ReferenceTokens,
    RegionTokens,
    group_tokens,
    led_away,
    place_concepts,
    reference_attention,
    region_attention,
)
from magicportrait.tests.unit import naive_magicface as naive

POISON = 1e30


def attend_with(heads: int) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        mask = None if bias is None else bias[None, None, None, :]
        return F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)

    return attend


class Spy:
    """Attention that notes what it is given."""

    def __init__(self, heads: int = 1) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
        self._attend = attend_with(heads)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        self.calls.append((q, k, v, bias))
        return self._attend(q, k, v, bias)


@dataclass(frozen=True)
class Layer:
    """One attention layer of a batch: the fast code's view of the references, and the naive one."""

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    grid: tuple[int, int]
    references: list[ReferenceTokens]
    concepts: list[list[naive.NaiveReference]]

    def __repr__(self) -> str:
        seen = [
            (len(fast.bias), [(len(one.k), one.strength) for one in slow])
            for fast, slow in zip(self.references, self.concepts)
        ]
        return (
            f"Layer({list(self.q.shape)}, {self.heads} heads, grid {self.grid}, references {seen})"
        )


def random_mask(rng: np.random.Generator, grid: tuple[int, int], kind: str) -> np.ndarray | None:
    if kind == "none":
        return None
    enlarged = int(rng.integers(1, 4))
    size = (grid[0] * enlarged, grid[1] * enlarged)
    mask = rng.random(size) if kind == "soft" else (rng.random(size) > 0.6).astype(float)
    # Something is always seen.
    mask[:enlarged, :enlarged] = 1.0
    return mask.astype(np.float32)


def references_of_concept(
    rng: np.random.Generator, views: int, channels: int, kind: str, strength: float
) -> tuple[ReferenceTokens, list[naive.NaiveReference]]:
    fast: list[tuple[Tensor, Tensor, Tensor]] = []
    slow = []
    for _ in range(views):
        grid = (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
        tokens = grid[0] * grid[1]
        k, v = (rng.normal(size=(tokens, channels)).astype(np.float32) * 1.5 for _ in range(2))
        mask = random_mask(rng, grid, kind)
        coverage = np.ones(grid) if mask is None else naive.area(mask, grid)
        slow.append(naive.NaiveReference(k, v, coverage.reshape(-1), strength))

        index, log_coverage = visible_tokens(None if mask is None else torch.from_numpy(mask), grid)
        poisoned = [torch.full((tokens, channels), POISON), torch.full((tokens, channels), POISON)]
        for poison, real in zip(poisoned, (k, v)):
            poison[coverage.reshape(-1) >= naive.MINIMUM_COVERAGE] = torch.from_numpy(real)[
                coverage.reshape(-1) >= naive.MINIMUM_COVERAGE
            ]
        fast.append((poisoned[0][index], poisoned[1][index], log_coverage + strength))
    return ReferenceTokens(*(torch.cat(parts) for parts in zip(*fast))), slow


@st.composite
def layers(draw: Any) -> Layer:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    batch, heads, width = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    grid = (draw(st.integers(1, 5)), draw(st.integers(1, 6)))
    q, k, v = (
        torch.from_numpy(
            rng.normal(size=(batch, grid[0] * grid[1], heads * width)).astype(np.float32) * 1.5
        )
        for _ in range(3)
    )
    kinds = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["none", "hard", "soft"]), st.integers(1, 2), st.floats(0, 4)
            ),
            min_size=1,
            max_size=3,
        )
    )
    pairs = [
        references_of_concept(rng, views, heads * width, kind, strength)
        for kind, views, strength in kinds
    ]
    return Layer(q, k, v, heads, grid, [fast for fast, _ in pairs], [slow for _, slow in pairs])


def images(*tensors: Tensor) -> Any:
    return zip(*(tensor.numpy() for tensor in tensors))


# RSA


@given(layers())
def test_rsa_is_the_formula(layer: Layer) -> None:
    out = reference_attention(layer.q, layer.k, layer.v, layer.references, attend_with(layer.heads))
    expected = [
        naive.rsa(q, k, v, layer.concepts, layer.heads)
        for q, k, v in images(layer.q, layer.k, layer.v)
    ]
    assert naive.relative_error(out, np.stack(expected), layer.v) <= 1e-5


@given(layers())
def test_rsa_without_references_is_plain_attention(layer: Layer) -> None:
    spy = Spy(layer.heads)
    out = reference_attention(layer.q, layer.k, layer.v, [], spy)
    [(q, k, v, bias)] = spy.calls
    assert bias is None and q is layer.q and k is layer.k and v is layer.v
    expected = [
        naive.attention(q, k, v, layer.heads) for q, k, v in images(layer.q, layer.k, layer.v)
    ]
    assert naive.relative_error(out, np.stack(expected), layer.v) <= 1e-5


def reference(strength: float, *coverage: float, channels: int = 2) -> ReferenceTokens:
    generator = torch.Generator().manual_seed(len(coverage))
    k, v = torch.randn(2, len(coverage), channels, generator=generator)
    return ReferenceTokens(k, v, torch.tensor(coverage).log() + strength)


def test_the_bias_is_on_the_references_tokens_only() -> None:
    q, k, v = torch.randn(3, 2, 4, 2, generator=torch.Generator().manual_seed(0))
    first, second = reference(3.0, 1.0, 0.5), reference(1.5, 1.0)
    spy = Spy()
    reference_attention(q, k, v, [first, second], spy)
    [(queries, keys, values, bias)] = spy.calls
    assert torch.equal(queries, q)
    for image in range(2):
        assert torch.equal(keys[image], torch.cat([k[image], first.k, second.k]))
        assert torch.equal(values[image], torch.cat([v[image], first.v, second.v]))
    assert bias is not None
    torch.testing.assert_close(
        bias, torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0, 3.0 + np.log(0.5), 1.5], dtype=torch.float32)
    )


def test_a_strength_of_three_multiplies_the_odds_by_twenty() -> None:
    zero = torch.zeros(1, 1, 2)
    shown = ReferenceTokens(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([3.0]))
    share = float(reference_attention(zero, zero, zero, [shown], attend_with(1))[0, 0, 0])
    assert share / (1 - share) == pytest.approx(np.exp(3), rel=1e-5)


def test_the_references_take_the_type_of_the_layer() -> None:
    q, k, v = torch.randn(3, 1, 4, 2, dtype=torch.bfloat16)
    spy = Spy()
    assert reference_attention(q, k, v, [reference(2.0, 1.0)], spy).dtype == torch.bfloat16
    assert {tensor.dtype for tensor in spy.calls[0] if tensor is not None} == {torch.bfloat16}


# RBA


@given(layers(), st.integers(0, 10**6))
def test_rba_is_the_formula(layer: Layer, seed: int) -> None:
    # As many tokens without an owner as with one; a concept may own nothing.
    owners = (
        np.random.default_rng(seed)
        .integers(-len(layer.concepts), len(layer.concepts), (layer.q.shape[0], *layer.grid))
        .clip(-1)
    )
    regions = group_tokens(torch.from_numpy(owners))
    out = region_attention(
        layer.q, layer.k, layer.v, layer.references, regions, attend_with(layer.heads)
    )
    expected = [
        naive.rba(q, k, v, layer.concepts, owner, layer.heads)
        for (q, k, v), owner in zip(images(layer.q, layer.k, layer.v), owners)
    ]
    assert naive.relative_error(out, np.stack(expected), layer.v) <= 1e-5


@given(layers())
def test_rba_without_any_region_is_plain_attention(layer: Layer) -> None:
    nobody = group_tokens(torch.full((layer.q.shape[0], *layer.grid), -1))
    attend = attend_with(layer.heads)
    out = region_attention(layer.q, layer.k, layer.v, layer.references, nobody, attend)
    torch.testing.assert_close(out, attend(layer.q, layer.k, layer.v, None))


@given(layers(), st.integers(0, 10**6))
def test_rba_leaves_tokens_without_an_owner_alone(layer: Layer, seed: int) -> None:
    owners = torch.from_numpy(
        np.random.default_rng(seed).integers(
            -1, len(layer.concepts), (layer.q.shape[0], *layer.grid)
        )
    )
    attend = attend_with(layer.heads)
    out = region_attention(
        layer.q, layer.k, layer.v, layer.references, group_tokens(owners), attend
    )
    unowned = (owners < 0).flatten(1)
    torch.testing.assert_close(out[unowned], attend(layer.q, layer.k, layer.v, None)[unowned])


def test_rba_asks_for_every_query_once_and_for_no_concept_that_owns_nothing() -> None:
    q, k, v = torch.randn(3, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    references = [reference(1.0, 1.0), reference(2.0, 1.0, 1.0), reference(3.0, 1.0, 1.0, 1.0)]
    spy = Spy()
    region_attention(q, k, v, references, group_tokens(torch.tensor([[[-1, 2], [0, 2]]])), spy)
    asked = sorted(
        (queries.shape[1], None if bias is None else bias.tolist()[4:])
        for queries, _, _, bias in spy.calls
        if bias is not None
    )
    assert asked == [(1, [1.0]), (2, [3.0, 3.0, 3.0])]
    assert [queries.shape[1] for queries, _, _, bias in spy.calls if bias is None] == [1]


# Regions


@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(-1, 4),
    st.integers(0, 10**6),
)
def test_grouping_names_every_token_once(
    batch: int, rows: int, columns: int, most: int, seed: int
) -> None:
    owners = torch.from_numpy(
        np.random.default_rng(seed).integers(-1, most + 1, (batch, rows, columns))
    )
    named = [
        (region.image, token, region.concept)
        for region in group_tokens(owners)
        for token in region.index.tolist()
    ]
    assert all(len(region.index) for region in group_tokens(owners))
    expected = [
        (
            image,
            row * columns + column,
            None if owners[image, row, column] < 0 else int(owners[image, row, column]),
        )
        for image in range(batch)
        for row in range(rows)
        for column in range(columns)
    ]
    assert sorted(named, key=lambda place: place[:2]) == expected


def test_a_region_is_one_group() -> None:
    groups = group_tokens(torch.tensor([[[1, -1], [1, 1]]]))
    assert [(group.concept, group.index.tolist()) for group in groups] == [
        (None, [1]),
        (1, [0, 2, 3]),
    ]
    assert all(isinstance(group, RegionTokens) for group in groups)


@st.composite
def placements(
    draw: Any,
) -> tuple[np.ndarray | None, list[np.ndarray | None], int, tuple[int, int]]:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    batch, concepts = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    latent, level = (
        (draw(st.integers(1, 20)), draw(st.integers(1, 20))),
        draw(st.sampled_from([1, 2, 4, 8])),
    )
    half, grid = (tuple(-(-side // divisor) for side in latent) for divisor in (2, level))
    measured = rng.integers(-1, concepts, (batch, *half)) if draw(st.booleans()) else None
    targets: list[np.ndarray | None] = []
    for _ in range(concepts):
        size = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
        targets.append(
            draw(
                st.sampled_from(
                    [
                        None,
                        (rng.random(size) > 0.5).astype(np.float32),
                        rng.random(size).astype(np.float32),
                    ]
                )
            )
        )
    return measured, targets, batch, (grid[0], grid[1])


def place(measured: Any, targets: Sequence[Any], batch: int, grid: tuple[int, int]) -> Tensor:
    layout = None if measured is None else torch.as_tensor(measured)
    return place_concepts(
        layout,
        [None if target is None else torch.as_tensor(target)[None] for target in targets],
        batch,
        grid,
    )


@given(placements())
def test_placing_is_the_formula(case: tuple[Any, list[Any], int, tuple[int, int]]) -> None:
    measured, targets, batch, grid = case
    out = place(measured, targets, batch, grid)
    expected = [
        naive.regions_of(None if measured is None else measured[image], targets, grid)
        for image in range(batch)
    ]
    assert np.array_equal(out.numpy(), np.stack(expected))


def test_a_target_replaces_what_was_measured_of_its_concept_only() -> None:
    measured = [[[0, 0, 1], [0, 1, -1]]]
    target = [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    assert place(measured, [target, None], 1, (2, 3)).tolist() == [[[-1, -1, 1], [-1, 0, 0]]]


def test_the_last_of_two_overlapping_targets_wins() -> None:
    assert (
        place(None, [[[1.0, 1.0, 0.0]], [[0.0, 1.0, 1.0]]], 2, (1, 3)).tolist() == [[[0, 1, 1]]] * 2
    )


def test_an_empty_target_leaves_its_concept_nowhere() -> None:
    assert place([[[0, 1]]], [None, [[0.0, 0.0]]], 1, (1, 2)).tolist() == [[[0, -1]]]


def test_nothing_measured_and_nothing_painted_is_nobody_everywhere() -> None:
    out = place(None, [None, None], 2, (2, 3))
    assert out.shape == (2, 2, 3) and bool((out == -1).all())


@pytest.mark.parametrize("is_by_region", [False, True])
def test_away_is_out_less_what_the_reference_would_bring(is_by_region: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def tokens(count: int) -> ReferenceTokens:
        return ReferenceTokens(draw(count, 8), draw(count, 8), draw(count))

    q, k, v = (draw(2, 6, 8) for _ in range(3))
    references = [tokens(3), tokens(0), tokens(2)]
    # Keys of the third group lie elsewhere in each picture.
    moved = dataclasses.replace(tokens(2), k=draw(2, 2, 8))
    away = [[tokens(2), moved], [tokens(4)], []]
    owners = torch.tensor([[0, 0, 1, 1, 2, -1], [1, 1, 1, 0, 2, 2]])
    regions = group_tokens(owners[:, None])
    attend = attend_with(2)
    out = (
        region_attention(q, k, v, references, regions, attend)
        if is_by_region
        else reference_attention(q, k, v, references, attend)
    )
    before = out.clone()
    new = led_away(out, q, k, v, references, away, regions, attend, is_by_region)
    assert torch.equal(out, before)
    for picture in range(2):
        for place, owner in enumerate(owners[picture].tolist()):
            if owner < 0 or not away[owner]:
                assert torch.equal(new[picture, place], out[picture, place])
                continue
            seen = [references[owner]] if is_by_region else references
            beside = [own.of(picture) for own in (*seen, *away[owner])]
            keys = torch.cat([k[picture], *(own.k for own in beside)])
            values = torch.cat([v[picture], *(own.v for own in beside)])
            bias = torch.cat([keys.new_zeros(6), *(own.bias for own in beside)])
            brought = torch.cat(
                [
                    torch.softmax(keys[:, half] @ q[picture, place, half] / 2 + bias, 0)
                    @ values[:, half]
                    for half in (slice(0, 4), slice(4, 8))
                ]
            )
            expected = out[picture, place] + (out[picture, place] - brought)
            torch.testing.assert_close(new[picture, place], expected)
