"""A page in headless Chromium, and what it logged, raised or asked for from elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason=(
        "Chromium is not installed (Debian: apt-get install chromium), or playwright (pip install"
        " -e '.[dev]')"
    ),
)


@contextlib.contextmanager
def opened(browser: Any, page: Path, media: Path, **options: Any) -> Iterator[Any]:
    """The page in a tab. At the end nothing was logged or raised, and nothing was asked for but the
    page and files below `media`.
    """
    context = browser.new_context(**options)
    tab = context.new_page()
    logged, requests = [], []

    def log(message: Any) -> None:
        if message.type in ("error", "warning"):
            logged.append(message.text)

    tab.on("console", log)
    tab.on("pageerror", lambda error: logged.append(str(error)))
    tab.on("dialog", lambda dialog: (logged.append(f"dialog {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    yield tab
    assert logged == []
    own = (page.as_uri(), media.as_uri(), "data:", "blob:")
    assert [url for url in requests if not url.startswith(own)] == []
    context.close()


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Ask until it holds. (Playwright's own waiting evaluates text, which the page forbids.)"""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
