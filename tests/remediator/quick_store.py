"""The store as tests open it by the hundred."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from pathlib import Path

from remediator.clock import SystemClock
from remediator.store import Store


@functools.cache
def _empty_database() -> bytes:
    """One that nothing was written to yet: to make it anew costs more than most tests do with it."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), b"k" * 64, SystemClock())
        store.close()
        return store.path.read_bytes()


class QuickStore(Store):
    """It begins with a copy, and never waits for the disk, which no test takes the power from."""

    def _connect(self, *, read_only: bool) -> sqlite3.Connection:
        if not self.path.exists():
            self.path.write_bytes(_empty_database())
        connection = super()._connect(read_only=read_only)
        connection.execute("PRAGMA synchronous = OFF")
        return connection
