"""What was done while the database could not be written: kept elsewhere, and taken over once.

A file of authenticated lines on another path, each synced before what it announces. Only what may
not wait is ever journaled here: a stop for heat, and an undo.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MERGED = "emergency_merged:"
"""Before the id of an entry that was taken over."""

_RUNTIME = Path("/run/gpu-remediator-emergency")
_FILE = "emergency.jsonl"


def folder_for(state_dir: Path) -> Path:
    """Where nothing is said: a folder of /run that is ours, or else the state directory."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    for folder in filter(None, (given, str(_RUNTIME))):
        if os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    return state_dir


class EmergencyJournal:
    """Entries in the order in which they were made; each has an `id` of its own."""

    def __init__(self, folder: Path, key: bytes) -> None:
        self.path = folder / _FILE
        self._key = key
        self.entries: list[Mapping[str, Any]] = []
        self.unreadable = 0
        self._lock = threading.Lock()
        self._read()

    def append(self, what: str, **more: Any) -> None:
        """Keep an entry. Where not even this file can be written, memory and the log have it."""
        entry = {"id": uuid.uuid4().hex, "what": what, **more}
        with self._lock:
            self.entries = [*self.entries, entry]
        text = json.dumps(entry, sort_keys=True)
        log.critical("the store cannot be written; meanwhile: %s", text)
        raw = (json.dumps({"entry": text, "mac": self._mac(text)}) + "\n").encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path, flags, 0o600)
            try:
                os.write(descriptor, raw)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.critical("not even %s can be written: %s", self.path, error)

    def of(self, what: str) -> list[Mapping[str, Any]]:
        """The entries of one kind."""
        return [entry for entry in self.entries if entry["what"] == what]

    def clear(self, taken: Sequence[Mapping[str, Any]]) -> None:
        """These have been taken over; what came meanwhile stays, and the file with it."""
        gone = {entry["id"] for entry in taken}
        with self._lock:
            self.unreadable = 0
            left = [entry for entry in self.entries if entry["id"] not in gone]
            if left:
                return
            self.entries = []
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the emergency journal %s cannot be removed: %s", self.path, error)

    def _read(self) -> None:
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                one = json.loads(line)
                text = str(one["entry"])
                ours = hmac.compare_digest(str(one["mac"]), self._mac(text))
                entry = json.loads(text)
            except (ValueError, LookupError, TypeError):
                ours = False
            if ours:
                self.entries.append(entry)
            else:
                # Torn, or from somebody without the key.
                self.unreadable += 1

    def _mac(self, text: str) -> str:
        return hmac.digest(self._key, b"emergency\n" + text.encode(), "sha256").hex()
