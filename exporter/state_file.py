"""JSON files in the state directory that are there whole or not at all."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from exporter.errors import StorageError

PATIENCE_SECONDS = 0.5
AT_EASE_SECONDS = 10.0
"""Patience of who starts or stops: nobody waits for a page yet, or any more."""


def write(path: Path, body: Any, patience: float = PATIENCE_SECONDS) -> None:
    """Replace the file; it is durable when this returns.

    The disk has `patience` seconds: who writes holds what a page needs, and one that fails may not
    answer at all. What is late is written all the same when it does, and meanwhile nothing else is.

    Raises:
        StorageError: it is not written, or not yet; try again.
    """
    text = json.dumps(body, indent=1)
    with _lock:
        if path in _going_on:
            raise StorageError(f"cannot write {path}: its disk does not answer; look at `dmesg`")
        writing = _going_on[path] = _Writing(path, text)
    threading.Thread(target=writing.run, name="state", daemon=True).start()
    if not writing.done.wait(patience):
        raise StorageError(f"{path} is not written yet: its disk takes more than {patience:g} s")
    error = writing.error
    if error is not None:
        raise StorageError(
            f"cannot write {path}: {error.strerror}; choose another --storage.path"
        ) from error


class _Writing:
    """One file that is being written."""

    def __init__(self, path: Path, text: str) -> None:
        self.done = threading.Event()
        self.error: OSError | None = None
        self._path = path
        self._text = text

    def run(self) -> None:
        try:
            self._write()
        except OSError as error:
            self.error = error
        finally:
            with _lock:
                del _going_on[self._path]
            self.done.set()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".new")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            file.write(self._text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


_lock = threading.Lock()
_going_on: dict[Path, _Writing] = {}


def read(path: Path) -> str | None:
    """Return its text, None when it is not there.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
