"""What a page needs to show the list of saved concepts as pictures.

`GET /magicportrait/concept_picture?file=` answers with the JPEG that Save Concept put into a
file; 404 for a file that is not listed, is damaged, or has none.
"""

from __future__ import annotations

import asyncio

from ..models.concept_files import path_of, picture_in
from .listening_page import running_server

ROUTE = "/magicportrait/concept_picture"


def answer(file: str) -> bytes | None:
    """A JPEG; None for a file that has none, or that is not among the listed ones."""
    try:
        return picture_in(path_of(file))
    except ValueError:
        return None


def accept_picture_questions() -> None:
    """Adds the route to the host's server."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    async def concept_picture(request: web.Request) -> web.Response:
        # Other requests are answered while the disk is read.
        picture = await asyncio.to_thread(answer, request.query.get("file", ""))
        if picture is None:
            return web.Response(status=404)
        # A file of that name may be another one next time; a type that is not guessed.
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=picture, content_type="image/jpeg", headers=headers)

    server.routes.get(ROUTE)(concept_picture)
