"""Which cards our exporter reported a moment ago."""

from __future__ import annotations

import threading

from remediator.errors import NoEvidence
from remediator.exporter_client import GpuReader

# For so long an answer of the exporter, or that there is none, is news (seconds).
_A_MOMENT = 1.0


class Sightings:
    """The cards that our exporter reported a moment ago: many alerts about others ask it once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked_at: float | None = None
        self._uuids: frozenset[str] = frozenset()
        self._problem: NoEvidence | None = None

    def has(self, uuid: str, gpus: GpuReader, now: float) -> bool:
        """Whether the card is there; `now` in seconds of a monotonic clock.

        Raises:
            NoEvidence: the exporter does not answer.
        """
        with self._lock:
            if self._looked_at is None or not 0 <= now - self._looked_at < _A_MOMENT:
                self._problem = None
                try:
                    self._uuids = frozenset(one.uuid for one in gpus.all())
                except NoEvidence as error:
                    self._problem = error
                self._looked_at = now
            if self._problem is not None:
                raise NoEvidence(str(self._problem))
            return uuid in self._uuids
