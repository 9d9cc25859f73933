"""The browser page that queued what is running. A page that wants our events says so once for each
of its connections."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from .kept_events import KeptEvents

LISTEN_ROUTE = "/magicportrait/listen"
_LISTENS = "magicportrait"
_EVENTS = web.AppKey("magicportrait_events", KeptEvents)


@dataclass(frozen=True)
class ListeningPage:
    """A browser page that shows our events.

    server: the host's; client: the id of the page's connection, which it keeps when it is loaded
    again; workflow: the id of the one that it queued, None when the page did not say; events: where
    they are kept for a page that is loaded again, None where they are not.
    """

    server: Any
    client: str
    workflow: str | None
    events: KeptEvents | None = None

    def send(self, event: str, data: dict[str, Any]) -> None:
        """Sends the event, with the workflow: by now the page may show another, which has nodes of
        the same ids. data['run'] tells runs apart."""
        payload = {**data, "workflow": self.workflow}
        if self.events is not None:
            self.events.add(self.client, event, payload)
        self.server.send_sync(event, payload, self.client)

    def keep_output(self, node: str, output: dict[str, Any]) -> None:
        """Keeps what the host sends to the page as a node's output: it sends it once, and a page
        that is loaded again asks us."""
        if self.events is not None:
            result = {"node": node, "output": output, "workflow": self.workflow}
            self.events.put(self.client, f"{self.workflow} {node}", "executed", result)


def running_server() -> Any:
    """The host's server; None in tests and scripts, which have not imported it."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def listening_page() -> ListeningPage | None:
    """The page that queued what is running; None when it was not a page, or one without our
    frontend."""
    server = running_server()
    client = getattr(server, "client_id", None)
    if client is None or not server.sockets_metadata.get(client, {}).get(_LISTENS):
        return None
    events = server.app.get(_EVENTS) if hasattr(server, "app") else None
    return ListeningPage(server, client, _running_workflow(server), events)


def output_on_page(page: ListeningPage, name: str, values: list[Any]) -> dict[str, Any]:
    """What the page shows on the node that runs, as the host takes it from a node."""
    from comfy_execution.utils import get_executing_context

    output, context = {name: values}, get_executing_context()
    if context is not None:
        page.keep_output(context.node_id, output)
    return output


def running_inputs(server: Any, node: str | None) -> tuple[str, dict[str, Any]]:
    """The class of a node of the prompt that runs, and its inputs as they were queued; '' and
    nothing for a node that is not in it."""
    for _, _, prompt, *_ in server.prompt_queue.currently_running.values():
        match prompt.get(node) if isinstance(prompt, dict) else None:
            case {"class_type": str(kind), "inputs": dict(inputs)}:
                return kind, inputs
    return "", {}


def _running_workflow(server: Any) -> str | None:
    """The id of the workflow that runs: pages put it into a prompt, for the metadata of its
    pictures."""
    for _, _, _, extra_data, *_ in server.prompt_queue.currently_running.values():
        match extra_data:
            case {"extra_pnginfo": {"workflow": {"id": str(workflow)}}}:
                return workflow
    return None


def accept_listeners() -> None:
    """Lets pages say that they listen, by POST of {"client_id"}: for as long as their websocket is
    open. The answer is {"events": [[name, data]]}, what the page was told before; 400 to a body
    that is no such thing, 404 to a page without a websocket."""
    server = running_server()
    if server is None:
        return
    events = server.app[_EVENTS] = KeptEvents()

    async def listen(request: web.Request) -> web.Response:
        try:
            body = await request.json()
        # No JSON, nested too deep, in a character set that nobody knows.
        except (ValueError, RecursionError, LookupError):
            body = None
        client = body.get("client_id") if isinstance(body, dict) else None
        if not isinstance(client, str):
            return web.Response(status=400)
        socket = server.sockets_metadata.get(client)
        if socket is None:
            return web.Response(status=404)
        socket[_LISTENS] = True
        return web.json_response({"events": events.of(client)})

    server.routes.post(LISTEN_ROUTE)(listen)
