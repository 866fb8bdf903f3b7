"""A page in headless Chromium, for tests of what people see."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
LONGEST = 300_000  # milliseconds to wait for what may never come; a busy machine is slow


@contextmanager
def open_page(url: str, width: int = 1200, height: int = 900) -> Iterator[Page]:
    """A page of a browser that is closed afterwards; what its scripts throw fails the test.

    Args:
        url: what to open.
        width: of the window, pixels.
        height: of the window, pixels.
    """
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        # Not a Python package: make install cannot bring it; .ci/run does.
        assert not os.environ.get("CI"), "Chromium is not installed"
        pytest.skip("Chromium is not installed")
    errors: list[str] = []
    with sync_playwright() as play:
        running = play.chromium.launch(
            executable_path=browser, args=["--no-sandbox"], timeout=LONGEST
        )
        try:
            page = running.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(LONGEST)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(url)
            yield page
        finally:
            running.close()
    assert not errors, errors
