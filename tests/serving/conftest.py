from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def busy_machine() -> Iterator[None]:
    """A disk that answers is waited for, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("serving.live._PATIENCE_SECONDS", 30.0)
        yield
