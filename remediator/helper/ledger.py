"""Which writes were begun and how they ended, on disk: it survives a helper that dies half way.

One JSON object a line, in the helper's own folder. A reset is not begun where it cannot be written.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from remediator.clock import Clock
from remediator.helper.protocol import Outcome

log = logging.getLogger(__name__)

_FILE = "writes.jsonl"
_DAY = 86400.0
_MINUTE = 60.0
_COMPACT_ABOVE = 256 * 1024
_CUT_OFF = "the helper ended before this did"


@dataclass(frozen=True)
class Entry:
    """One write. `told`: its client, or one that asked later, was given the outcome."""

    number: int
    time: float
    verb: str
    uuid: str
    outcome: Outcome = "unknown"
    said: str = _CUT_OFF
    told: bool = False

    def to_client(self, now: float) -> dict[str, Any]:
        """For the answer to somebody who asks later."""
        ago = max(0, round(now - self.time))
        return {"verb": self.verb, "outcome": self.outcome, "said": self.said, "seconds_ago": ago}


class Ledger:
    """The resets of the last day, the other writes of the last minute, and each card's newest.

    Each change of an entry is its line again; the last one counts.
    """

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        """`folder` keeps the file; None keeps it in memory only."""
        self._path = folder / _FILE if folder else None
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[int, Entry] = {}
        if self._path is not None and self._path.exists():
            self._load(self._path)

    @property
    def lasting(self) -> bool:
        """Whether it is kept on disk."""
        return self._path is not None

    def begin(self, verb: str, uuid: str) -> Entry:
        """Note, durably, that a write begins.

        Raises:
            OSError: a reset could not be noted. Other writes go on: a limit can be read back.
        """
        with self._lock:
            self._forget()
            number = max(self._entries, default=0) + 1
            entry = Entry(number, self._clock.now(), verb, uuid)
            try:
                self._append(entry)
            except OSError as error:
                if verb == "reset":
                    raise
                _complain(error)
            self._entries[number] = entry
            return entry

    def end(self, entry: Entry, outcome: Outcome, said: str) -> None:
        """Note how it ended; where that cannot be kept, whoever asks a helper that lives is told."""
        self._change(replace(entry, outcome=outcome, said=said))

    def tell(self, uuid: str) -> None:
        """Note that somebody has heard what became of the card's writes."""
        entry = self.untold(uuid)
        if entry is not None:
            self._change(replace(entry, told=True))

    def untold(self, uuid: str) -> Entry | None:
        """The card's newest write, where nobody has heard its outcome."""
        with self._lock:
            newest = max(self._of(uuid), key=lambda one: one.number, default=None)
        return None if newest is None or newest.told else newest

    def begun(self, verb: str | None, uuid: str, within: float) -> int:
        """How many writes to the card began within the last `within` seconds."""
        with self._lock:
            self._forget()
            since = self._clock.now() - within
            found = self._of(uuid)
            return sum(one.time > since and verb in (None, one.verb) for one in found)

    def resets_today(self, uuid: str) -> int:
        """How often the card was to be reset within a day; also resets that were refused then."""
        return self.begun("reset", uuid, _DAY)

    def writes_just_now(self, uuid: str) -> int:
        """How often the card was written to within a minute."""
        return self.begun(None, uuid, _MINUTE)

    def _change(self, entry: Entry) -> None:
        with self._lock:
            self._entries[entry.number] = entry
            try:
                self._append(entry)
            except OSError as error:
                _complain(error)

    def _of(self, uuid: str) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.uuid == uuid]

    def _forget(self) -> bool:
        """Let go of what counts no more; whether something lay ahead of the clock.

        That counts as happening now: where the clock was set back it would count for ever, and
        keep an undo from being written.
        """
        now = self._clock.now()
        ahead = {n: replace(one, time=now) for n, one in self._entries.items() if one.time > now}
        found = self._entries | ahead
        newest = {one.uuid: n for n, one in sorted(found.items())}
        # As many as may be asked for in a day would be written anew with each write.
        self._entries = {
            n: one
            for n, one in found.items()
            if now - one.time < (_DAY if one.verb == "reset" or newest[one.uuid] == n else _MINUTE)
        }
        return bool(ahead)

    def _append(self, entry: Entry) -> None:
        if self._path is None:
            return
        if self._path.exists() and self._path.stat().st_size > _COMPACT_ABOVE:
            self._compact(self._path)
        _write(self._path, os.O_APPEND, [entry])

    def _compact(self, path: Path) -> None:
        new = path.with_suffix(".new")
        _write(new, os.O_TRUNC, self._entries.values())
        new.replace(path)

    def _load(self, path: Path) -> None:
        text = path.read_bytes()
        for line in text.splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                # Half a line: the machine went down while it was written.
                continue
            self._entries[entry.number] = entry
        if self._forget() or (text and not text.endswith(b"\n")):
            self._compact(path)


def _complain(error: OSError) -> None:
    log.warning("the ledger of writes cannot be written: %s", error)


def _write(path: Path, flag: int, entries: Iterable[Entry]) -> None:
    text = "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
