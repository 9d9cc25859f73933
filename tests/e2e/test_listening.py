"""POST /magicportrait/listen: how a page says that it listens to our events."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import aiohttp
import pytest

from comfy_server import ComfyServer
from devkit.client import finish, http

ROUTE = "/magicportrait/listen"
JSON = "application/json"


def status_of(server: ComfyServer, body: bytes, kind: str = JSON) -> int:
    request = urllib.request.Request(server.url + ROUTE, body, {"Content-Type": kind})
    try:
        with http.open(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"\xff\xfe",
        b"null",
        b"7",
        b"[]",
        b'"client"',
        b"{}",
        b'{"client_id": null}',
        b'{"client_id": ["a"]}',
        b'{"client_id": {"a": 1}}',
        b'{"client_id": 7}',
        b"[" * 100_000,
    ],
)
def test_an_odd_body_is_a_bad_request(server: ComfyServer, body: bytes) -> None:
    assert status_of(server, body) == 400


def test_an_unknown_character_set_is_a_bad_request(server: ComfyServer) -> None:
    assert status_of(server, b"{}", f"{JSON}; charset=nonsense") == 400


def test_a_page_must_have_a_websocket(server: ComfyServer) -> None:
    async def listen() -> int:
        async with (
            aiohttp.ClientSession(server.url) as session,
            session.ws_connect("/ws?clientId=a-page"),
        ):
            body = json.dumps({"client_id": "a-page"}).encode()
            return await asyncio.to_thread(status_of, server, body)

    assert status_of(server, b'{"client_id": "nobody"}') == 404
    assert finish(listen()) == 200
