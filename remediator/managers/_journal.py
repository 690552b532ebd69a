"""The log of a systemd unit: what its own processes wrote, from the journal (systemd 239 to 257)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from remediator import runner
from remediator.errors import ManagerError, OutcomeUnknown
from remediator.managers._server_log import LONGEST_LINE, PAGE_BYTES, LogLine, LogPage

_NOT_ALLOWED = ("insufficient permissions", "not seeing messages")
_MAX_SENTENCE = 300


class Journal:
    """`ServerLog` over `journalctl`, with a fixed argv."""

    def __init__(self, unit: str, journalctl: Path, timeout: float) -> None:
        self.where = f"{journalctl} _SYSTEMD_UNIT={unit}"
        self._unit = unit
        self._journalctl = str(journalctl)
        self._timeout = timeout

    def read(self, position: Mapping[str, Any], since: float) -> LogPage:
        """The next lines of the unit's processes; what systemd says about the unit is not theirs."""
        after = max(float(position.get("at", 0.0)), since)
        argv = [self._journalctl, "--no-pager", "--output=json", "--output-fields=MESSAGE"]
        argv += [f"--since=@{after:.6f}", f"_SYSTEMD_UNIT={self._unit}"]
        try:
            found = runner.read_some(argv, timeout=self._timeout, limit=PAGE_BYTES)
        except OutcomeUnknown as error:
            raise ManagerError(f"the journal does not answer: {error}") from None
        if any(text in found.stderr for text in _NOT_ALLOWED):
            raise ManagerError(
                "the journal may not be read by this user: add it to the group systemd-journal"
            )
        if not found.cut and found.returncode != 0:
            said = found.stderr.strip().splitlines() or [f"exit status {found.returncode}"]
            raise ManagerError(f"journalctl: {said[0][:_MAX_SENTENCE]}")
        lines = tuple(line for line in _lines(found.stdout) if (line.at or 0.0) > after)
        last = max((line.at or 0.0 for line in lines), default=after)
        if found.cut and not lines:
            # One entry fills a page, or a page is one moment: it is passed over.
            return LogPage((), {"at": after + 1.0}, more=True, skipped=True)
        return LogPage(lines, {"at": last}, more=found.cut)


def _lines(output: bytes) -> Iterator[LogLine]:
    """One for each whole line of output; what is not an entry (`-- No entries --`) is none."""
    for raw in output[: output.rfind(b"\n") + 1].splitlines():
        if not raw.startswith(b"{"):
            continue
        try:
            entry = json.loads(raw)
            at = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
        except (ValueError, KeyError, TypeError):
            continue
        yield LogLine(_text(entry.get("MESSAGE"))[:LONGEST_LINE], at)


def _text(message: Any) -> str:
    """A message that is not UTF-8 comes as a list of bytes, one that is too long as null."""
    if isinstance(message, list):
        try:
            return bytes(message).decode("utf-8", "replace")
        except (ValueError, TypeError):
            return ""
    return message if isinstance(message, str) else ""
