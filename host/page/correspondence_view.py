"""What a browser page needs to explore a finished MagicFace picture: it points at a place and asks
where in the references that looked.

`GET /magicportrait/correspondence/{key}?picture=&x=&y=&step=&group=` answers one place;
`Exploration` keeps what there is to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from ...magic.correspondence import coarse_size
from ...magic.heat import as_overlay, heat_colours
from ..analysis.exploration import Exploration
from ..pictures.conversion import as_base64, as_image
from .listening_page import running_server

ROUTE = "/magicportrait/correspondence/{key}"
_GONE = "what this run has seen is no longer kept: queue the workflow again"
_STRENGTH = 0.85
_MOST_PIXELS = 320
"""On the longer side of a reference as the page shows it."""
_PIXELS_A_CELL = 4
_SCALE_STEPS = 64
_NUMBERS = {"picture": int, "x": float, "y": float, "step": int}

# The host's routes are told a name only. Nothing is kept alive here: a run lives as long as the
# graph's cache holds its record.
_EXPLORATIONS: WeakValueDictionary[str, Exploration] = WeakValueDictionary()


def view_data(
    exploration: Exploration, pictures: Tensor, references: Sequence[tuple[str, Tensor]]
) -> dict[str, Any]:
    """What the page is told of a run, which can be asked for from now on. pictures: B H W 3;
    references: phrase and H W 3 of each."""
    _EXPLORATIONS[exploration.key] = exploration
    phrases = list(dict.fromkeys(phrase for phrase, _ in references))
    scale = heat_colours(torch.linspace(0, 1, _SCALE_STEPS))[None]
    return {
        "key": exploration.key,
        "pictures": _save(pictures[: exploration.pictures]),
        "references": [
            {
                "phrase": phrase,
                "colour": phrases.index(phrase),
                "picture": _save(_reduce(image)[None])[0],
            }
            for phrase, image in references
        ],
        "groups": [
            {"name": name, "rows": rows, "columns": columns}
            for name, (rows, columns) in exploration.grids.items()
        ],
        "steps": exploration.steps,
        "place": exploration.most_looking(),
        "total": exploration.total,
        "scale": as_base64(as_image(scale), "PNG"),
    }


def answer(key: str, query: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON for a question. 404: the run is gone; 400: the question makes no sense.
    Both have a sentence as `error`.

    Else `place`: x, y, width, height of the cell (0..1), and for each reference `share` (0..1),
    `peak` (x, y in 0..1, null without a share) and `heat`, a transparent PNG in base64. The heats
    of one answer share one scale.
    """
    exploration = _EXPLORATIONS.get(key)
    if exploration is None:
        return 404, {"error": _GONE}
    try:
        picture, x, y, step = (_number(query, name, kind) for name, kind in _NUMBERS.items())
        view = exploration.look(int(picture), x, y, int(step), query.get("group", ""))
    except ValueError as error:
        return 400, {"error": str(error)}
    most = max(max(float(heat.max()) for heat in view.maps), 1e-12)
    references = [
        {
            "share": round(share, 6),
            "peak": _peak(heat) if share > 0 else None,
            "heat": _overlay(heat / most),
        }
        for share, heat in zip(view.shares, view.maps, strict=True)
    ]
    return 200, {"place": view.place, "references": references}


def _number(query: Mapping[str, str], name: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(query[name])
    except (KeyError, ValueError):
        raise ValueError(f"{name} must be a number, not '{query.get(name, '')}'") from None


def accept_questions() -> None:
    """Adds the route to the host's server."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    async def correspondence(request: web.Request) -> web.Response:
        status, data = answer(request.match_info["key"], request.query)
        return web.json_response(data, status=status)

    server.routes.get(ROUTE)(correspondence)


def _peak(heat: Tensor) -> list[float]:
    height, width = heat.shape
    row, column = divmod(int(heat.argmax()), width)
    return [round((column + 0.5) / width, 4), round((row + 0.5) / height, 4)]


def _overlay(heat: Tensor) -> str:  # h w in 0..1
    size = [side * _PIXELS_A_CELL for side in heat.shape]
    smooth = F.interpolate(heat[None, None], size=size, mode="bicubic", align_corners=False)[
        0, 0
    ].clamp(0, 1)
    return as_base64(as_image(as_overlay(smooth, _STRENGTH)), "PNG")


def _reduce(image: Tensor) -> Tensor:  # H W 3
    size = coarse_size((image.shape[0], image.shape[1]), _MOST_PIXELS)
    return F.interpolate(image.movedim(-1, 0)[None].float(), size=size, mode="area")[0].movedim(
        0, -1
    )


def _save(pictures: Tensor) -> list[Any]:
    """Pictures in the host's temporary folder, as in `images`."""
    from comfy_api.latest import io, ui

    return list(
        ui.ImageSaveHelper.save_images(pictures, "magic_exploration", io.FolderType.temp, None)
    )
