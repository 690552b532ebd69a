"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable

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
