"""Talks to a ComfyUI: asks it things, and follows a prompt to its end. Runs in .venv: aiohttp is
among ComfyUI's requirements."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from devkit.pack import PACK_NAME, PACK_NODE, DevError
from devkit.progress import Progress

Answer = TypeVar("Answer")
Prompt = dict[str, Any]
Picture = dict[str, str]
Watch = Callable[[str, dict[str, Any]], None]
"""Is called with the type and the data of each event of a prompt."""

SILENCE = 600.0
"""The longest that a server may say nothing while it works, in seconds."""

# A proxy set in the environment must not get between us and the loopback interface.
http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Result:
    """What a prompt did.

    prompt_id: the server's name for it.
    outputs: what each output node shows, by node.
    executed: the nodes that ran, in order.
    cached: the nodes whose result the server had already.
    steps_of: how often each node reported progress, as sampling and inverting do: at least the
        first step and the last.
    """

    prompt_id: str
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: set[str] = field(default_factory=set)
    steps_of: Counter[str] = field(default_factory=Counter)

    @property
    def steps(self) -> int:
        """How often any node reported progress."""
        return self.steps_of.total()

    @property
    def images(self) -> list[Picture]:
        """References to the pictures, for `Client.fetch`."""
        return [picture for output in self.outputs.values() for picture in output.get("images", [])]


class ValidationFailed(DevError):
    """ComfyUI refused the prompt; `body` is its answer, with `error` and `node_errors`."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(describe_rejection(body))
        self.status, self.body = status, body


class ExecutionFailed(DevError):
    """A node raised; `details` is ComfyUI's execution_error message, `result` what happened until
    then."""

    def __init__(self, details: dict[str, Any], result: Result) -> None:
        super().__init__(describe_failure(details))
        self.details, self.result = details, result


class Client:
    """A ComfyUI at an address, for code that is not asynchronous."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> bytes:
        with http.open(self.url + path, timeout=60) as answer:
            content: bytes = answer.read()
            return content

    def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer, whatever the status is."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with http.open(request, timeout=60) as answer:
                return answer.status, read_answer(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, read_answer(error.read())

    def object_info(self) -> dict[str, Any]:
        """What nodes there are, and their inputs and outputs."""
        info: dict[str, Any] = json.loads(self.get("/object_info"))
        return info

    def info_with_pack(self) -> dict[str, Any]:
        """`object_info`, with our nodes in it: DevError without them."""
        info = self.object_info()
        if PACK_NODE not in info:
            raise self.failure(f"ComfyUI runs, but {PACK_NAME} did not load")
        return info

    def fetch(self, picture: Picture) -> bytes:
        """The file that one entry of a node's `images` output refers to."""
        return self.get(f"/view?{urllib.parse.urlencode(picture)}")

    def failure(self, reason: str) -> DevError:
        return DevError(reason)

    def run(self, prompt: Prompt, watch: Watch | None = None, silence: float = SILENCE) -> Result:
        """Runs an API prompt to its end. ValidationFailed, ExecutionFailed, or DevError when it is
        interrupted or the server ends or is silent for too long."""
        return finish(self._run(prompt, watch, silence))

    async def _run(self, prompt: Prompt, watch: Watch | None, silence: float) -> Result:
        client = uuid.uuid4().hex
        async with (
            aiohttp.ClientSession(self.url) as session,
            session.ws_connect(f"/ws?clientId={client}", max_msg_size=0) as events,
        ):
            body = {"prompt": prompt, "client_id": client}
            async with session.post("/prompt", json=body) as response:
                answer = read_answer(await response.read())
                # Status 200 with node errors means that ComfyUI would run only a part of it.
                if response.status != 200 or answer.get("node_errors"):
                    raise ValidationFailed(response.status, answer)
            return await self._follow(events, Result(answer["prompt_id"]), watch, silence)

    async def _follow(
        self,
        events: aiohttp.ClientWebSocketResponse[bool],
        result: Result,
        watch: Watch | None,
        silence: float,
    ) -> Result:
        failure: DevError | None = None
        while True:
            try:
                message = await events.receive(silence)
            except asyncio.TimeoutError:
                raise self.failure(f"ComfyUI has said nothing for {silence:.0f} seconds") from None
            if message.type == aiohttp.WSMsgType.BINARY:  # a preview picture
                continue
            if message.type != aiohttp.WSMsgType.TEXT:
                raise self.failure("ComfyUI ended during the execution")
            event = message.json()
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != result.prompt_id:
                continue
            if watch:
                watch(kind, data)
            if kind == "execution_cached":
                result.cached.update(data["nodes"])
            elif kind == "executed":
                result.outputs[data["node"]] = data["output"] or {}
            elif kind == "execution_error":
                failure = ExecutionFailed(data, result)
            elif kind == "execution_interrupted":
                failure = DevError("the execution was interrupted")
            elif kind == "progress":
                result.steps_of[data["node"]] += 1
            elif kind == "executing" and data["node"] is not None:
                result.executed.append(data["node"])
            elif kind == "executing":
                # The last message of every execution; only now does the server take the next
                # prompt.
                if failure:
                    raise failure
                return result


def read_answer(content: bytes) -> dict[str, Any]:
    """The JSON of an answer; an error that is no JSON in the form of one that is."""
    try:
        answer = json.loads(content or b"{}")
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    return {"error": {"message": content.decode(errors="replace").strip()}}


def finish(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Runs a coroutine to its end, also where an event loop is running in this thread, as under
    Playwright."""
    if not is_loop_running():
        return asyncio.run(work)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def run_prompt(client: Client, prompt: Prompt) -> list[Picture]:
    """Runs an API prompt to its end, shows how far it is, and returns references to its
    pictures."""
    progress = Progress()

    def watch(kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data["node"] is not None:
            node = data.get("display_node", data["node"])
            progress.node(prompt.get(node, {}).get("class_type", node))
        elif kind == "progress":
            progress.step(data["value"], data["max"])

    try:
        return client.run(prompt, watch).images
    finally:
        progress.end()


def describe_rejection(answer: dict[str, Any]) -> str:
    """ComfyUI's answer to an invalid prompt, one line for each complaint."""
    lines = ["ComfyUI rejects the workflow"]
    if error := answer.get("error"):
        lines[0] += f": {error['message']} {error.get('details') or ''}".rstrip()
    for node_id, node in (answer.get("node_errors") or {}).items():
        for error in node["errors"]:
            lines.append(
                f"  {node['class_type']} (node {node_id}): {error['message']}:"
                f" {error.get('details') or ''}".rstrip(": ")
            )
    return "\n".join(lines)


def describe_failure(error: dict[str, Any]) -> str:
    """What went wrong in which node, and the innermost calls; the whole traceback is in the
    server's log."""
    where = f"{error['node_type']} (node {error['node_id']})"
    calls = re.sub(r"^[ ~^]+\n", "", "".join(error["traceback"][-3:]), flags=re.MULTILINE)
    message = f"{error['exception_type']}: {error['exception_message'].strip()}"
    return f"{where} failed: {message}\n{calls}".rstrip()
