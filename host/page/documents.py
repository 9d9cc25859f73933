"""The pack's own documents, which its help pages link to: `docs/` is no part of what the host
serves of a pack.

`GET /magicportrait/{file}` answers with a page as HTML, or with a picture of one; 404 for what is
not there. A page's links to other pages are relative, and so lead here too.
"""

from __future__ import annotations

import html
import mimetypes
import posixpath
import re
from pathlib import Path

from .listening_page import running_server
from .markdown import as_html

ROUTE = "/magicportrait/{file:.+\\.(?:md|png|jpg|webp)}"
_ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("docs", "js/docs", "demo", "bench", "bench/results", "workflows")
"""Where pages and their pictures are. What else lies in the pack's folder is nobody's to read."""
_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 60em; margin: 2em auto; padding: 0 1.5em; font: 16px/1.55 sans-serif; }
h1, h2, h3 { line-height: 1.25; margin-top: 1.8em; }
h1 { margin-top: 0; }
img { display: block; max-width: 100%; border-radius: 4px; }
code, pre { font: 0.88em/1.5 monospace; background: #8882; border-radius: 4px; }
code { padding: 0.15em 0.35em; }
pre { padding: 0.8em 1em; overflow-x: auto; }
table { display: block; overflow-x: auto; border-collapse: collapse; }
th, td { padding: 0.35em 0.7em; border: 1px solid #8886; text-align: left; vertical-align: top; }
li { margin: 0.35em 0; }
"""


def answer(file: str) -> tuple[bytes, str] | None:
    """Content and type of a page or picture, by its path in the pack's folder; None for what is not
    there. Without markdown-it-py a page is text as it was written."""
    folder, name = posixpath.split(file)
    if folder not in _FOLDERS or not (_ROOT / folder).is_dir():
        return None
    # By what is listed: no name leads out of the folder.
    if name not in {path.name for path in (_ROOT / folder).iterdir() if path.is_file()}:
        return None
    content = (_ROOT / folder / name).read_bytes()
    if name.endswith(".md"):
        try:
            return _page(content.decode("utf-8"), folder).encode(), "text/html"
        except ImportError:
            # Whoever has not installed requirements.txt anew reads it as it is written.
            return content, "text/plain"
    return content, mimetypes.guess_type(name)[0] or "application/octet-stream"


def _page(text: str, folder: str) -> str:
    def link(address: str) -> str | None:
        """Not to what the archive of the registry leaves out, such as large pictures."""
        if re.match(r"(?:https?:|#)", address):
            return address
        file, _, _ = address.partition("#")
        target = posixpath.normpath(posixpath.join(folder, file))
        is_served = posixpath.dirname(target) in _FOLDERS and (_ROOT / target).is_file()
        return address if is_served else None

    title = html.escape(text.partition("\n")[0].lstrip("# "), quote=False)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body>\n{as_html(text, link)}\n</body></html>\n"
    )


def accept_document_questions() -> None:
    """Adds the route to the host's server."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    async def send(request: web.Request) -> web.Response:
        document = answer(request.match_info["file"])
        if document is None:
            return web.Response(status=404)
        content, kind = document
        charset = "utf-8" if kind.startswith("text/") else None
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=content, content_type=kind, charset=charset, headers=headers)

    server.routes.get(ROUTE)(send)
