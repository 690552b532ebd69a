"""Utilisation over time: for how long saturated, and how much busy in all."""

from __future__ import annotations

from exporter.policy import SaturationPolicy
from exporter.readings import Spans

# So many samples may be missed before what is known is too old to be said.
MISSED_LIMIT = 3


class UtilisationHistory:
    """Follows the utilisation of one GPU from sample to sample.

    A missed sample neither extends the saturated time nor ends it: only time that samples cover
    counts. After three missed in a row nothing is known, and saturation begins anew. Where the
    driver keeps samples of its own (`cover`), what they cover was not missed, however late it is
    read.
    """

    def __init__(self, policy: SaturationPolicy, interval: float) -> None:
        """Begin with nothing known; `interval` is the seconds between samples."""
        self._policy = policy
        self._interval = interval
        self._last: float | None = None
        self._saturated = 0.0
        self._was_saturated = False
        self._busy = 0.0

    @property
    def busy_seconds(self) -> float | None:
        """Utilisation integrated over all covered time; None before the first sample."""
        return None if self._last is None else self._busy

    def saturated_seconds(self, now: float) -> float | None:
        """Seconds of unbroken saturation; None when the last sample is too old or there is none."""
        if self._last is None or self._too_long(now - self._last):
            return None
        return self._saturated

    def add(self, utilization_ratio: float, at: float) -> None:
        """Take a sample, 0 to 1, read at `at` (monotonic seconds)."""
        elapsed = 0.0 if self._last is None else max(0.0, at - self._last)
        self._last = at
        if self._too_long(elapsed):
            elapsed = 0.0
            self._was_saturated = False
        # A longer gap had a missed sample in it, whose time nobody saw.
        seen = elapsed if elapsed <= 1.5 * self._interval else self._interval
        self._busy += utilization_ratio * seen
        saturated = utilization_ratio >= self._policy.ratio
        self._saturated = self._saturated + seen if saturated and self._was_saturated else 0.0
        self._was_saturated = saturated

    def cover(self, spans: Spans, at: float) -> None:
        """Take the driver's own samples, read at `at` (monotonic seconds)."""
        elapsed = 0.0 if self._last is None else max(0.0, at - self._last)
        self._last = at
        self._gap(elapsed - sum(seconds for seconds, _ in spans))
        for seconds, ratio in spans:
            if ratio is None:
                self._gap(seconds)
                continue
            self._busy += ratio * seconds
            self._was_saturated = ratio >= self._policy.ratio
            self._saturated = self._saturated + seconds if self._was_saturated else 0.0

    def _gap(self, seconds: float) -> None:
        if self._too_long(seconds):
            self._saturated, self._was_saturated = 0.0, False

    def _too_long(self, elapsed: float) -> bool:
        # Half an interval of grace: a sample that comes a little late is not missed.
        return elapsed > (MISSED_LIMIT + 0.5) * self._interval
