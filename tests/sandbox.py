"""For tests that run code in the sandbox: skipped where there is none, or failed where there must be one.

`LLAMARL_REQUIRE_SANDBOX=1` says that there must be one; continuous integration does.
"""

import functools
import os
from typing import NoReturn

import pytest

from llamarl.core.errors import ConfigError
from llamarl.judges.code.sandbox import find_python


def need_sandbox() -> None:
    """Skips or fails the test that calls it, where no sandbox can be had."""
    if (reason := _why_none()) is not None:
        lack_sandbox(reason)


def lack_sandbox(reason: str) -> NoReturn:
    """Ends a test that has no sandbox."""
    if os.environ.get("LLAMARL_REQUIRE_SANDBOX") == "1":
        pytest.fail(f"no sandbox here, and LLAMARL_REQUIRE_SANDBOX wants one: {reason}", pytrace=False)
    pytest.skip(f"no sandbox here: {reason}")


@functools.cache
def _why_none() -> str | None:
    try:
        find_python(None, is_unsafe=False)
    except ConfigError as error:
        return str(error)
    return None
