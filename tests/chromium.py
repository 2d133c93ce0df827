"""A browser for tests that look at pages: the system's Chromium, driven by Playwright.

`LLAMARL_REQUIRE_BROWSER=1` says that there must be one; continuous integration does.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def why_no_browser() -> str:
    """What is missing here; empty where a browser can start."""
    if shutil.which("chromium") is None:
        return "no chromium on this machine; apt-get install chromium"
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "no playwright; pip install 'llamarl[dev]'"
    return ""


def require_browser() -> None:
    """Skips where no browser is, or fails where one is wanted."""
    if reason := why_no_browser():
        if os.environ.get("LLAMARL_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{reason}, and LLAMARL_REQUIRE_BROWSER wants a browser", pytrace=False)
        pytest.skip(reason)


@contextmanager
def open_browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # no sandbox: continuous integration runs as root, and the pages are ours
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()
