"""The real page: a real server over a small trained bundle, and the Chromium that this machine has."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from twotower import steps
from twotower.recipe import load_recipe

TINY = Path(__file__).parents[1] / "tiny.toml"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
TOLD = re.compile(r"Failed to load resource: .* status of (400|401|404)")
"""What Chromium itself writes when the server refuses; that the page tells it is tested."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if program is None:
        pytest.skip("no Chromium on the path; on Debian: apt install chromium")
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # Whom Chromium gives no sandbox.
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"] if is_root else [])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts servers that end with the session: `serve(bundle, key=...)` gives the address."""
    with ExitStack() as stack:

        def start(bundle: Path, *, key: str = "") -> str:
            store = tmp_path_factory.mktemp("store") / "serving.db"
            command = [sys.executable, "-m", "twotower", "serve", str(bundle), "--port", "0", "--store", str(store)]
            environment = os.environ | {"TWOTOWER_API_KEY": key}
            process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
            stack.callback(process.terminate)
            assert process.stderr is not None
            told = ""
            for line in process.stderr:
                told += line
                if found := re.search(r"http://\S+", line):
                    return found[0]
            raise AssertionError(told)

        yield start


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny world, by a recipe that lets ranking have its say: without it both orders would be the same."""
    order = {"model.ranking.order": {"retrieval": 1.0, "rating": 1.0}, "name": "films"}
    directory = tmp_path_factory.mktemp("run") / "films"
    for _ in steps.run(load_recipe(TINY, order), out=directory):
        pass
    return directory / "bundle"


@pytest.fixture(scope="session")
def served(serve: Callable[..., str], bundle: Path) -> str:
    """The address of a server without a key."""
    return serve(bundle)


@dataclass
class Watched:
    """What must not happen while a page is looked at."""

    faults: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not TOLD.match(message.text):
            self.faults.append(message.text)

    def _request(self, request: Request) -> None:
        self.asked.append(request.url)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page: `visit(address, width=375, color_scheme="dark")`.

    In the end nothing may have gone wrong in the console, and nothing may have been asked for elsewhere.
    """
    with ExitStack() as stack:
        watched, addresses = Watched(), []

        def open_(address: str, fragment: str = "", *, width: int = 1280, **options: object) -> Page:
            context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(10_000)
            watched.follow(page)
            addresses.append(address)
            page.goto(f"{address}/{fragment}")
            return page

        yield open_
        assert watched.faults == []
        assert [url for url in watched.asked if not url.startswith(tuple(addresses))] == []
