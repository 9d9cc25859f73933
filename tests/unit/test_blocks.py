from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magicportrait.host.sampling.backbone.unet import UNet
from magicportrait.magic.blocks import AttentionBlock, Block, format_blocks, parse_weights


def attention(letter: str, index: int, downscale: int = 1, depth: int = 1) -> AttentionBlock:
    return AttentionBlock(Block(letter, index), downscale, depth)


SD15 = [
    *(
        attention("i", index, downscale)
        for index, downscale in ((1, 1), (2, 1), (4, 2), (5, 2), (7, 4), (8, 4))
    ),
    attention("m", 0, 8),
    *(attention("o", index, 4 if index < 6 else 2 if index < 9 else 1) for index in range(3, 12)),
]
SDXL = [
    *(attention("i", index, downscale) for index, downscale in ((4, 2), (5, 2), (7, 4), (8, 4))),
    attention("m", 0, 4, 10),
    *(attention("o", index, 4 if index < 3 else 2) for index in range(6)),
]


def parse(text: str, available: list[AttentionBlock]) -> tuple[Block, ...]:
    return UNet(tuple(available), native_side=512).parse_layers(text)


def names_of(text: str, available: list[AttentionBlock] = SD15) -> list[str]:
    return [str(block) for block in parse(text, available)]


def names(letter: str, first: int, last: int) -> list[str]:
    return [f"{letter}{index}" for index in range(first, last + 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fine", names("o", 6, 11)),
        (" FINE ", names("o", 6, 11)),
        ("decoder", names("o", 3, 11)),
        ("all", ["i1", "i2", "i4", "i5", "i7", "i8", "m0", *names("o", 3, 11)]),
        ("up", names("o", 3, 11)),
        ("mid", ["m0"]),
        ("down", ["i1", "i2", "i4", "i5", "i7", "i8"]),
        ("o6-11", names("o", 6, 11)),
        ("m0", ["m0"]),
        ("o7,i2", ["i2", "o7"]),  # forward order
        ("o5, O3-4 ,o4,", ["o3", "o4", "o5"]),
        ("i3-6", ["i4", "i5"]),  # a range takes what is there
        ("i0-99,m0-9", ["i1", "i2", "i4", "i5", "i7", "i8", "m0"]),
        ("o10", ["o10"]),
    ],
)
def test_what_a_text_names(text: str, expected: list[str]) -> None:
    assert names_of(text) == expected


def test_a_range_that_goes_backwards_is_named() -> None:
    with pytest.raises(ValueError, match="'o11-6' goes backwards: write the smaller number first"):
        parse("m0,o11-6", SD15)


@pytest.mark.parametrize("text", ["x" * 5000, "o" + "9" * 3000])
def test_a_long_text_is_cut_in_messages(text: str) -> None:
    with pytest.raises(ValueError, match=rf"'{text[:200]}\.\.\.' ") as refusal:
        parse(text, SD15)
    assert len(str(refusal.value)) < 400


def test_fine_is_the_two_finest_levels_of_the_decoder_of_any_model() -> None:
    assert names_of("fine", SDXL) == names("o", 0, 5)
    deep = [attention("o", 0, 8), attention("o", 1, 4), attention("o", 2, 2), attention("i", 0, 1)]
    assert names_of("fine", deep) == ["o1", "o2"]
    assert names_of("fine", deep[:1]) == ["o0"]


@pytest.mark.parametrize(
    "text", ["x3", "o", "3", "o6-", "o-6", "o6-11-12", "o6;o7", "o 6", "finest", "o6,all", "o6.5"]
)
def test_what_is_not_understood_is_named(text: str) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"is not understood: expected 'fine', 'decoder', 'all', 'down', 'mid', 'up' or blocks"
            r" such as 'o6-11,m0,i7-8'"
        ),
    ) as caught:
        parse(text, SD15)
    assert any(f"layers: '{part}' is not" in str(caught.value) for part in text.split(","))


@pytest.mark.parametrize("text", ["i3", "m1", "o0-2", "o12", "o6,i99"])
def test_a_block_without_attention_is_named_with_those_that_have_it(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text, SD15)
    assert (
        str(caught.value)
        == f"layers: '{text.split(',')[-1]}' has no self-attention in this model: it has"
        " i1-2,i4-5,i7-8,m0,o3-11"
    )


@pytest.mark.parametrize("text", ["", "  ", ",", " , ,"])
def test_no_block_at_all(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"layers: no block given: this model has i1-2,i4-5,i7-8,m0,o3-11"
    ):
        parse(text, SD15)


def test_formatting() -> None:
    assert format_blocks([]) == ""
    # A range never spans two kinds, even when the numbers go on.
    assert format_blocks([Block("i", 8), Block("m", 9), Block("o", 10)]) == "i8,m9,o10"
    assert format_blocks([Block("o", 3), Block("o", 5), Block("o", 6)]) == "o3,o5-6"


@st.composite
def models(draw: st.DrawFn) -> list[AttentionBlock]:
    indices = st.lists(st.integers(0, 14), unique=True, max_size=8).map(sorted)
    found = [attention(letter, index) for letter in "imo" for index in draw(indices)]
    return found or [attention("m", 0)]


@given(models(), st.data())
@settings(max_examples=200)
def test_formatted_blocks_are_read_back(
    available: list[AttentionBlock], data: st.DataObject
) -> None:
    chosen = data.draw(
        st.lists(st.sampled_from([layer.block for layer in available]), unique=True, min_size=1)
    )
    chosen.sort(key=[layer.block for layer in available].index)
    text = format_blocks(chosen)
    assert parse(text, available) == tuple(chosen)
    shuffled = ",".join(data.draw(st.permutations(text.upper().split(","))))
    assert parse(shuffled, available) == tuple(chosen)


def test_a_block_is_a_key() -> None:
    block = Block("o", 6)
    assert block == ("o", 6) and hash(block) == hash(("o", 6))
    assert block.kind == "o" and block.index == 6 and str(block) == "o6"


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("", []),
        ("mid: 0.5", [("mid", 0.5)]),
        ("o6-8, m0 : 0; decoder:1,\n i7: 2.5", [("o6-8,m0", 0), ("decoder", 1), ("i7", 2.5)]),
        ("o6－8，m0：0；decoder：１、i7：2.5", [("o6-8,m0", 0), ("decoder", 1), ("i7", 2.5)]),
    ],
)
def test_weights_of_layers(text: str, weights: list[tuple[str, float]]) -> None:
    assert parse_weights(text) == weights


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mid: much", "'mid: much' is not understood"),
        ("mid: -1", "a weight from 0 to 10"),
        ("mid: 11", "is not understood"),
        ("mid: nan", "is not understood"),
        (": 1", "is not understood"),
        ("mid: 1, up", "'up' has no weight"),
    ],
)
def test_weights_that_are_none_are_named(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_weights(text)
