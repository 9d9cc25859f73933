from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from devkit.browser import find_browser
from devkit.comfyui import find_comfyui
from devkit.pack import DevError
from devkit.server import Server

sys.path.append(str(Path(__file__).parent))


RUN_IN_PAGE = {
    "classic": {
        "MagicFace-4-mask-to-comparison",
        "MagiCapture-1-learn-person-and-style",
        "MagicFace-3-where-it-looks",
        "MagicFace-1-one-concept",
        "MagicStyle-1-style-transfer",
        "MagicStyle-5-small-face",
        "MagicStyle-4-how-much-style",
        "MagicStyle-3-two-styles",
        "MagicFace-6-two-people",
        "MagicFace-8-on-an-edit-model",
    },
    "nodes2": {
        "MagicFace-1-one-concept",
        "MagicFace-2-three-concepts",
        "MagicFace-7-detail-pass",
        "MagicStyle-1-style-transfer",
        "MagicStyle-7-transformer-step-by-step",
        "Semantic-Layout",
        "MagicFace",
        "MagicStyle",
        "MagiCapture learn person and style",
    },
}
"""Every workflow fits its screen in both frontends (test_newcomer.py), and runs through the server
(test_workflows.py). In the page each runs in one frontend or both, and is saved and opened again in
one; MAGICPORTRAIT_RUN_ALL_IN_PAGE=1 does all in both."""


BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before `-m` selects: what drives a browser is marked as `page`."""
    import workflow_files

    run_all = os.environ.get("MAGICPORTRAIT_RUN_ALL_IN_PAGE") == "1"

    def is_kept(item: pytest.Item) -> bool:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            return True
        parameters = item.callspec.params
        if run_all:
            return True
        if item.originalname == "test_workflow_opens_as_it_was_saved_and_so_it_does_again":
            place = workflow_files.ALL.index(parameters["name"])
            return bool(parameters["frontend"] == ("classic", "nodes2")[place % 2])
        runs = item.originalname in (
            "test_workflow_from_the_gallery_runs_and_shows_its_pictures",
            "test_blueprint_is_offered_and_runs",
        )
        return not runs or parameters["name"] in RUN_IN_PAGE[parameters["frontend"]]

    items[:] = [item for item in items if is_kept(item)]
    for item in items:
        if isinstance(item, pytest.Function) and "browser" in item.fixturenames:
            item.add_marker("page")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from comfy_server import ComfyServer

    with ComfyServer(
        find_comfyui(),
        Path(sys.executable),
        tmp_path_factory.mktemp("comfyui"),
        cpu=True,
        others={"stub_pack": Path(__file__).parent / "stub_pack"},
    ) as started:
        yield started


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, Any]:
    return server.object_info()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        program = find_browser()
    except DevError as error:
        pytest.fail(str(error))
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=BROWSER_OPTIONS)
        yield started
        started.close()


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def frontend(browser: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page in each of its two ways of drawing nodes, large enough for everything."""
    from frontend import Frontend

    page = browser.new_page(viewport={"width": 2600, "height": 1500})
    yield Frontend(page, server, request.param)
    page.close()


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def screen(browser: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The same on the screen that most people have."""
    from frontend import Frontend

    page = browser.new_page(viewport={"width": 1920, "height": 1080})
    yield Frontend(page, server, request.param)
    page.close()
