from __future__ import annotations

import math

import pytest
import torch

from magicportrait.magic.sequence_references import SequenceReference, centred, seen_columns

KEYS = 20
PLACES = (slice(8, 12), slice(12, 18), slice(18, 20))


def references() -> list[SequenceReference]:
    half = torch.zeros(8, 8)
    half[:, :4] = 1
    return [
        SequenceReference.weighed(0, 2.0, None, (2, 2)),
        SequenceReference.weighed(1, 1.0, half, (3, 2)),
        SequenceReference.weighed(None, 1.0, None, (1, 2)),
    ]


def see(owner: int | None, **options: object) -> dict[int, float]:
    """Key -> what is added to its logit, of all keys that are seen."""
    columns = seen_columns(references(), PLACES, KEYS, owner, **options)  # type: ignore[arg-type]
    index = range(KEYS) if columns.index is None else columns.index.tolist()
    bias = torch.zeros(len(index)) if columns.bias is None else columns.bias
    return dict(zip(index, bias.tolist(), strict=True))


OWN, FIRST, SECOND, FOR_ALL = range(8), range(8, 12), (12, 14, 16), range(18, 20)


@pytest.mark.parametrize(
    ("owner", "options", "expected"),
    [
        (None, {}, [*OWN, *FIRST, *SECOND, *FOR_ALL]),
        (0, {"is_by_region": True}, [*OWN, *FIRST, *FOR_ALL]),
        (1, {"is_by_region": True}, [*OWN, *SECOND, *FOR_ALL]),
        (None, {"is_by_region": True}, [*OWN, *FIRST, *SECOND, *FOR_ALL]),
        (None, {"is_by_region": True, "outside": "none"}, [*OWN, *FOR_ALL]),
    ],
)
def test_places_see_their_own_and_what_is_for_all(owner, options, expected) -> None:
    found = see(owner, **options)
    assert list(found) == expected
    for key, bias in found.items():
        assert bias == pytest.approx(math.log(2) if key in FIRST else 0.0, abs=1e-6)


def test_what_changes_nothing_has_neither_index_nor_bias() -> None:
    plain = [SequenceReference.weighed(0, 1.0, None, (2, 2))]
    assert plain[0].is_plain and not plain[0].is_hidden
    columns = seen_columns(plain, PLACES[:1], 12, 0, True)
    assert columns.index is None and columns.bias is None


def test_strength_zero_hides_and_soft_masks_count_softly() -> None:
    assert SequenceReference.weighed(0, 0.0, None, (2, 2)).is_hidden
    soft = SequenceReference.weighed(0, 1.0, torch.full((4, 4), 0.25), (2, 2))
    assert soft.bias.tolist() == pytest.approx([math.log(0.25)] * 4)
    assert not soft.is_plain


def test_a_mask_follows_what_a_scaled_picture_shows() -> None:
    mask = torch.zeros(60, 100)
    mask[:, 20:80] = 1
    assert bool(centred(mask, (64, 64)).all())
    assert centred(mask, (60, 100)).shape == (60, 100)
    assert centred(mask, (30, 100)).shape == (30, 100)
