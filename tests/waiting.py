"""Waiting for what comes true: for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def poll(
    condition: Callable[[], T],
    what: str | Callable[[], object] | None = None,
    seconds: float = 30.0,
) -> T:
    """Ask until the answer is truthy and return it; fail with `what` when it never is.

    The limit is for a machine that is busy: nothing that works waits so long.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() >= deadline:
            said = what() if callable(what) else what
            raise AssertionError(f"never came true: {said or condition}")
        time.sleep(0.02)
    return found
