"""What goes wrong: counted each time, said once."""

from __future__ import annotations

import logging
from collections import Counter

_log = logging.getLogger(__name__)


class Complaints:
    """Errors by (collector, reason), and the last line that was logged about each subject.

    Its owner guards it against other threads.
    """

    def __init__(self) -> None:
        self._errors: Counter[tuple[str, str]] = Counter()
        self._said: dict[str, str] = {}

    def count(self, collector: str, reason: str, times: int = 1) -> None:
        """Count a failure."""
        self._errors[collector, reason] += times

    def counts(self) -> dict[tuple[str, str], int]:
        """Return the failures since the start, by (collector, reason)."""
        return dict(self._errors)

    def say(self, subject: str, message: str) -> None:
        """Log what is new about a subject, once; an empty message says that it is well again."""
        before = self._said.get(subject, "")
        if message == before:
            return
        self._said[subject] = message
        if message:
            _log.warning("%s", message)
        else:
            _log.info("%s: well again", subject)
