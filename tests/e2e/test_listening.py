"""What a page is told: notices of nodes that go on, and POST /magicportrait/listen, by which a page
says that it listens to our events."""

from __future__ import annotations

import asyncio
import json
import struct
import urllib.error
import urllib.request

import aiohttp
import pytest

from comfy_server import ComfyServer
from devkit.client import finish, http
from workflow_files import Prompt

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


TEXT_ON_NODE = 3
"""The host's kind of binary message that a page shows as a text on a node."""

CUT_OUT: Prompt = {
    "portrait": {
        "class_type": "MagicToyPortrait",
        "inputs": {"seed": 3, "part": "hat", "style": "cartoon", "size": 64},
    },
    "transparent": {"class_type": "InvertMask", "inputs": {"mask": ["portrait", 1]}},
    "crop": {
        "class_type": "MagicPortraitCrop",
        "inputs": {
            "image": ["portrait", 0],
            "mask": ["transparent", 0],
            "margin": 0.3,
            "size": 64,
            "square": True,
        },
    },
    "show": {"class_type": "PreviewImage", "inputs": {"images": ["crop", 0]}},
}


async def texts_on_nodes(server: ComfyServer, prompt: Prompt) -> list[tuple[str, str]]:
    """Node and text of all messages to the page, until the prompt has run."""
    texts = []
    async with (
        aiohttp.ClientSession(server.url) as session,
        session.ws_connect("/ws?clientId=noticing") as events,
    ):
        body = {"prompt": prompt, "client_id": "noticing"}
        async with session.post("/prompt", json=body) as response:
            assert response.status == 200
        while True:
            message = await events.receive(60)
            if message.type == aiohttp.WSMsgType.BINARY:
                kind, length = struct.unpack(">II", message.data[:8])
                if kind == TEXT_ON_NODE:
                    node, text = message.data[8 : 8 + length], message.data[8 + length :]
                    texts.append((node.decode(), text.decode()))
            elif message.type == aiohttp.WSMsgType.TEXT:
                event = message.json()
                if event["type"] == "executing" and event["data"]["node"] is None:
                    return texts
            else:
                raise AssertionError("the server ended")


def test_a_notice_stands_on_the_node_that_runs(server: ComfyServer) -> None:
    [(node, text)] = finish(texts_on_nodes(server, CUT_OUT))
    assert node == "crop"
    assert text.startswith("the mask has the border of the picture and leaves out its middle")
    turned = {**CUT_OUT["crop"]["inputs"], "invert": True}
    upright = {**CUT_OUT, "crop": {**CUT_OUT["crop"], "inputs": turned}}
    assert finish(texts_on_nodes(server, upright)) == []
