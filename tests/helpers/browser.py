"""A headless Chromium that watches what a page does."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from helpers.libraries import needed

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """Open Debian's browser. Without one, or without Playwright, a test fails in CI and is skipped elsewhere."""
    playwright = needed("playwright.sync_api")
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no chromium on PATH; run: apt-get install chromium")
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as running:
        # Containers have no sandbox of their own to give.
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def in_parts(first: bytes, rest: bytes) -> Iterator[tuple[str, Callable[[], None]]]:
    """Serve a page of which the rest comes later. Yield its address, and what sends the rest."""
    wanted = threading.Event()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(first)
            self.wfile.flush()
            wanted.wait(30)
            self.wfile.write(rest)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", wanted.set
        wanted.set()
        server.shutdown()


class Watched:
    """A report in a page, and everything that it asked for, said or showed.

    page: Playwright's. One page serves many reports, because a new one costs half a second.
    """

    def __init__(
        self,
        page: Any,
        url: str,
        *,
        wait_until: str = "load",
        size: tuple[int, int] = (1280, 900),
        **media: str,
    ) -> None:
        self._url = url
        self.page = page
        self.complaints: list[str] = []
        self._listening = {
            "console": lambda message: self.complaints.append(f"{message.type}: {message.text}"),
            "pageerror": lambda error: self.complaints.append(str(error)),
            "dialog": self._dismiss,
            "request": lambda request: self._judge(request.url),
        }
        for event, listener in self._listening.items():
            page.on(event, listener)
        page.set_default_timeout(10_000)
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(**{"media": "screen", "color_scheme": "light", "reduced_motion": "no-preference", **media})
        page.goto(url, wait_until=wait_until)

    def close(self) -> None:
        """Leave the report, and assert that it asked for nothing but itself, and complained of nothing."""
        self.page.evaluate("0")  # what the report has said so far arrives before the answer
        for event, listener in self._listening.items():
            self.page.remove_listener(event, listener)
        assert self.complaints == [], f"the page complained: {self.complaints}"

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _judge(self, url: str) -> None:
        if not url.startswith("data:") and url.partition("#")[0] != self._url:
            self.complaints.append(f"a request: {url[:100]}")
