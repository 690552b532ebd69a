"""For how long each card has drawn no more than at rest, or less than at work, by its own bands."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from remediator.policy.power_bands import Bands, Conditions, Learned
from remediator.readings import GpuReading


@dataclass(frozen=True)
class CardPower:
    """What a card draws now, and since when it is not what work draws.

    `idle_seconds`: it has drawn no more than with nothing to do, without a break;
    `below_busy_seconds`: less than at work. Both are None where its bands are not learned, or where
    it gives no power.
    """

    uuid: str
    age_seconds: float | None
    watts: float | None
    limit_watts: float | None
    idle_below: float | None = None
    busy_above: float | None = None
    bands_age_seconds: float | None = None
    idle_seconds: float | None = None
    below_busy_seconds: float | None = None


@dataclass(frozen=True)
class _Track:
    """Looks without a break; `since` by the monotonic clock, None where it is not so."""

    at: float
    bands: Bands | None = None
    idle_since: float | None = None
    below_since: float | None = None


class PowerLog:
    """What was learned of each card, and the newest track of each."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._learned: dict[str, Learned] = {}
        self._tracks: dict[str, _Track] = {}

    def learned(self, uuid: str) -> Learned | None:
        """What is known of the card."""
        return self._learned.get(uuid)

    def keep(self, uuid: str, learned: Learned) -> None:
        """Put it in the place of what was known."""
        with self._guard:
            self._learned[uuid] = learned

    def saw(
        self, reading: GpuReading, conditions: Conditions, now: float, at: float, max_gap: float
    ) -> None:
        """Keep a fresh reading; `now` in Unix seconds, `at` by the monotonic clock."""
        with self._guard:
            learned = self._learned.get(reading.uuid)
            if learned is None or learned.conditions != conditions:
                # What was learned under another limit says nothing of this one.
                self._learned[reading.uuid] = learned = Learned(conditions)
            track = self._follow(reading, learned, now, at, max_gap)
            self._tracks[reading.uuid] = track

    def of(self, reading: GpuReading, now: float, at: float, max_gap: float) -> CardPower:
        """What the kept looks and this reading show; keeps nothing."""
        with self._guard:
            learned = self._learned.get(reading.uuid)
            if learned is None or learned.conditions.limit_watts != limit_of(reading):
                learned = None
            track = self._follow(reading, learned, now, at, max_gap)
        bands = track.bands
        known = CardPower(
            reading.uuid, reading.age_seconds, reading.power_watts, reading.power_limit_watts
        )
        if bands is None or reading.power_watts is None:
            return known
        return CardPower(
            reading.uuid,
            reading.age_seconds,
            reading.power_watts,
            reading.power_limit_watts,
            round(bands.idle_below, 1),
            round(bands.busy_above, 1),
            max(0.0, now - bands.learned_at),
            0.0 if track.idle_since is None else at - track.idle_since,
            0.0 if track.below_since is None else at - track.below_since,
        )

    def _follow(
        self, reading: GpuReading, learned: Learned | None, now: float, at: float, max_gap: float
    ) -> _Track:
        bands = None if learned is None else learned.bands(now)
        watts = reading.power_watts
        if bands is None or watts is None:
            return _Track(at)
        before = self._tracks.get(reading.uuid)
        if before is None or before.bands is None or at - before.at > max_gap:
            before = _Track(at)
        return _Track(
            at,
            bands,
            _since(before.idle_since, at, watts <= bands.idle_below),
            _since(before.below_since, at, watts < bands.busy_above),
        )


def limit_of(reading: GpuReading) -> int | None:
    """The power limit that holds now, in whole watts: drivers round."""
    limit = reading.power_limit_watts
    return None if limit is None else round(limit)


def _since(before: float | None, at: float, is_so: bool) -> float | None:
    if not is_so:
        return None
    return at if before is None else before
