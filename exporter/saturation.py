"""Utilisation over time: for how long saturated, and how much busy in all."""

from __future__ import annotations

from collections.abc import Iterator

from exporter.policy import SaturationPolicy
from exporter.readings import Spans

# So many samples may be missed before what is known is too old to be said.
MISSED_LIMIT = 3
# The driver's newest sample is a little old: what it has not told of yet, it may the next time.
_LAG_SECONDS = 3.0


class UtilisationHistory:
    """Follows the utilisation of one GPU from sample to sample.

    A missed sample neither extends the saturated time nor ends it: only time that samples cover
    counts. After three missed in a row nothing is known, and saturation begins anew. Where the
    driver keeps samples of its own (`cover`), what they cover was not missed, however late it is
    read. Who begins to read while another still does tells of time that was told of: no time
    counts twice.
    """

    def __init__(self, policy: SaturationPolicy, interval: float) -> None:
        """Begin with nothing known; `interval` is the seconds between samples."""
        self._policy = policy
        self._interval = interval
        self._last: float | None = None
        # Up to when time has been counted.
        self._counted_to = float("-inf")
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
        self._last = self._counted_to = at
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
        told = sum(seconds for seconds, _ in spans)
        self._gap(elapsed - told)
        for seconds, ratio in self._uncounted(spans, told, at):
            if ratio is None:
                self._gap(seconds)
                continue
            self._busy += ratio * seconds
            self._was_saturated = ratio >= self._policy.ratio
            self._saturated = self._saturated + seconds if self._was_saturated else 0.0

    def _uncounted(
        self, spans: Spans, told: float, at: float
    ) -> Iterator[tuple[float, float | None]]:
        """Yield the spans without what was counted before, which is the oldest of them."""
        twice = max(0.0, self._counted_to + told - at)
        behind = at - (self._counted_to + told)
        self._counted_to = at if behind > _LAG_SECONDS else at - max(0.0, behind)
        for seconds, ratio in spans:
            left = max(0.0, seconds - twice)
            twice = max(0.0, twice - seconds)
            if left > 0:
                yield left, ratio

    def _gap(self, seconds: float) -> None:
        if self._too_long(seconds):
            self._saturated, self._was_saturated = 0.0, False

    def _too_long(self, elapsed: float) -> bool:
        # Half an interval of grace: a sample that comes a little late is not missed.
        return elapsed > (MISSED_LIMIT + 0.5) * self._interval
