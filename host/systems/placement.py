"""Where the keys of references lie to the picture's queries, in models that turn both by
position."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...magic.boxes import Box, box_of_most
from ...magic.feature_fusion import Features, resample_tokens
from ...magic.positions import Coordinates, Placement, ReferencePlace, Turn, turned
from ...magic.reference_attention import ReferenceTokens
from ..sampling.backbone import Backbone, LayerView
from ..sampling.references import Reference, ReferenceImage, places_of_concept


class PlacedReferences:
    """The references of one model call, moved to where a placement puts them.

    Layers have the same positions: what turns a concept's keys is made once. homes: for concepts
    that lie where another one is, which.
    """

    def __init__(
        self,
        placement: Placement,
        backbone: Backbone,
        references: Sequence[Reference],
        homes: Mapping[int, int] | None = None,
    ):
        self._placement, self._backbone, self._references = placement, backbone, references
        self._homes = homes or {}
        self._turns: dict[tuple[Any, tuple[int, int]], Sequence[Turn | None]] = {}

    def move(
        self,
        bank: Sequence[ReferenceTokens],
        view: LayerView,
        downscale: int,
        owners: Tensor | None,
    ) -> Sequence[ReferenceTokens]:
        """A layer's references, concept by concept, as `view` is to meet them. downscale: side of
        its tokens in latent pixels; owners: the concept at each of its places, B rows columns, None
        where it is not known yet."""
        rotary = self._backbone.rotary
        if rotary is None or view.coordinates is None:
            return bank
        key = (view.cond, view.grid)
        if key not in self._turns:
            device = view.k.device
            self._turns[key] = [
                None
                if tokens.is_empty
                else Turn.by(self._angles(concept, view.coordinates, downscale, owners), device)
                for concept, tokens in enumerate(bank)
            ]
        return [
            tokens
            if turn is None
            else dataclasses.replace(tokens, k=turned(tokens.k, turn, rotary.pairing, view.heads))
            for tokens, turn in zip(bank, self._turns[key], strict=True)
        ]

    def _angles(
        self, concept: int, picture: Coordinates, downscale: int, owners: Tensor | None
    ) -> Tensor:
        """T D/2, or B T D/2 where the pictures of the batch differ."""
        if self._placement != "region" or owners is None:
            return self._angles_for(None, concept, picture, downscale)
        home = self._homes.get(concept, concept)
        boxes = [box_of_most((owner == home).float()) for owner in owners]
        each = {
            box: self._angles_for(box, concept, picture, downscale) for box in dict.fromkeys(boxes)
        }
        return each[boxes[0]] if len(each) == 1 else torch.stack([each[box] for box in boxes])

    def _angles_for(
        self, region: Box | None, concept: int, picture: Coordinates, downscale: int
    ) -> Tensor:
        rotary = self._backbone.rotary
        assert rotary is not None
        before, parts = self._columns_before(downscale), []
        for i, index, grid in places_of_concept(self._references, concept, downscale):
            reference = self._references[i]
            own = self._backbone.coordinates(
                (reference.latent.shape[-2], reference.latent.shape[-1]),
                reference.conditioning[0][0].shape[1],
            )
            assert own is not None
            place = ReferencePlace(
                self._placement,
                columns_before=before[i],
                number=i,
                index_step=self._backbone.index_step,
                mask_box=_box_of_cells(index, grid),
                region_box=region,
            )
            parts.append(place.angles(rotary, own, picture)[index])
        return torch.cat(parts)

    def _columns_before(self, downscale: int) -> Mapping[int, int]:
        """Columns of tokens of the references that come before each."""
        before, total = {}, 0
        for i, reference in enumerate(self._references):
            before[i] = total
            total += reference.grid(downscale)[1]
        return before


def _box_of_cells(index: Tensor, grid: tuple[int, int]) -> Box | None:
    """The box around most of some cells of a grid."""
    cells = torch.zeros(grid[0] * grid[1])
    cells[index.cpu()] = 1
    return box_of_most(cells.view(grid))


@dataclass(frozen=True)
class _Move:
    """What has to be done to the features of a picture so that another one may meet them.

    unturn: takes the positions off its queries; turn: gives them those of the other picture; keys:
    moves its keys. None for nothing.
    """

    unturn: Turn | None
    turn: Turn | None
    keys: Turn | None


class PlacedPictures:
    """Whole pictures beside the one that is made: contents, which lie where it lies, and styles,
    whose keys lie where a placement puts them and whose queries ask from the picture's places.

    In models that turn nothing by position only the queries are brought onto the picture's grid.
    """

    def __init__(
        self,
        placement: Placement,
        backbone: Backbone,
        contents: Sequence[ReferenceImage],
        styles: Sequence[ReferenceImage],
    ):
        self._placement, self._backbone = placement, backbone
        self._contents, self._styles = contents, styles
        self._moves: dict[Coordinates, tuple[list[_Move], list[_Move]]] = {}

    def place(
        self, features: Sequence[Features], view: LayerView
    ) -> tuple[list[Features], list[Features]]:
        """What a layer saw of contents and styles, in this order, as `view` is to meet it: contents
        and styles."""
        count = len(self._contents)
        contents, styles = list(features[:count]), list(features[count:])
        picture, rotary = view.coordinates, self._backbone.rotary
        if picture is None or rotary is None:
            return contents, styles
        if picture not in self._moves:
            self._moves[picture] = self._moves_to(picture, view.k.device)
        return tuple(  # type: ignore[return-value]
            [self._turn_features(one, move, view) for one, move in zip(entries, moves, strict=True)]
            for entries, moves in zip((contents, styles), self._moves[picture], strict=True)
        )

    def _turn_features(self, features: Features, move: _Move, view: LayerView) -> Features:
        rotary = self._backbone.rotary
        assert rotary is not None
        q, k = features.q, features.k
        if move.unturn is not None and move.turn is not None:
            q = turned(q, move.unturn, rotary.pairing, view.heads)
            q = resample_tokens(q, features.grid, view.grid)
            q = turned(q, move.turn, rotary.pairing, view.heads)
        if move.keys is not None:
            k = turned(k, move.keys, rotary.pairing, view.heads)
        # Only the queries lie on a grid.
        return dataclasses.replace(features, q=q, k=k, grid=view.grid)

    def _moves_to(
        self, picture: Coordinates, device: torch.device
    ) -> tuple[list[_Move], list[_Move]]:
        contents = [self._move(one, ReferencePlace(), picture, device) for one in self._contents]
        styles, columns = [], 0
        for number, style in enumerate(self._styles):
            place = ReferencePlace(
                self._placement,
                columns_before=columns,
                number=number,
                index_step=self._backbone.index_step,
            )
            styles.append(self._move(style, place, picture, device))
            columns += self._own(style).grid[1]
        return contents, styles

    def _own(self, image: ReferenceImage) -> Coordinates:
        own = self._backbone.coordinates(
            (image.latent.shape[-2], image.latent.shape[-1]), image.conditioning[0][0].shape[1]
        )
        assert own is not None
        return own

    def _move(
        self,
        image: ReferenceImage,
        place: ReferencePlace,
        picture: Coordinates,
        device: torch.device,
    ) -> _Move:
        rotary, own = self._backbone.rotary, self._own(image)
        assert rotary is not None
        axes, unturn, turn, keys = len(rotary.axes), None, None, None
        if own != picture:
            unturn = Turn.by(-rotary.angles(own.positions(axes)), device)
            turn = Turn.by(rotary.angles(picture.positions(axes)), device)
        angles = place.angles(rotary, own, picture)
        if bool(angles.any()):
            keys = Turn.by(angles, device)
        return _Move(unturn, turn, keys)


def beside_itself(
    features: Features, placement: Placement, backbone: Backbone, view: LayerView
) -> Features:
    """What a layer sees of a picture that is being made, as others of its batch are to meet it:
    its keys lie where the placement puts them to a picture of the same size."""
    picture, rotary = view.coordinates, backbone.rotary
    if picture is None or rotary is None:
        return features
    place = ReferencePlace(placement, index_step=backbone.index_step)
    angles = place.angles(rotary, picture, picture)
    if not bool(angles.any()):
        return features
    turn = Turn.by(angles, view.k.device)
    return dataclasses.replace(features, k=turned(features.k, turn, rotary.pairing, view.heads))
