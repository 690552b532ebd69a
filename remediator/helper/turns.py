"""Whose turn it is: one request at a time on a card, and nothing beside a reset."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

ALL = "all cards"


class Turns:
    """A reset needs a driver that nobody else holds open, so it waits for all and all wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: set[str] = set()

    @contextlib.contextmanager
    def of(self, key: str, timeout: float) -> Iterator[bool]:
        """Take the turn of a card, or of ALL; False where it did not come within `timeout` seconds."""
        with self._changed:
            mine = self._changed.wait_for(lambda: self._is_free(key), timeout)
            if mine:
                self._taken.add(key)
        try:
            yield mine
        finally:
            if mine:
                with self._changed:
                    self._taken.discard(key)
                    self._changed.notify_all()

    def _is_free(self, key: str) -> bool:
        return not self._taken if key == ALL else not self._taken & {key, ALL}
