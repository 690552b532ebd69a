"""What holds for all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.waiting import poll

# At a desk each run looks elsewhere. What stops a change from landing must be what the change did.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def eventually() -> Callable[..., object]:
    """`poll`, for tests."""
    return poll


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that runs in this process says what is logged: not what the next test sees of the log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
