"""What one card draws at work and at rest, learned from itself. Pure.

Watts are not portable: what hangs on one card draws more than what works on another (135 W of 600 W,
and 45 W of 140 W). So each card has bands of its own, for the power limit and the driver that were in
force when they were learned; another limit or driver discards them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

State = Literal["busy", "idle"]

# One sample in so many seconds, the newest so many of each state, none older than so many seconds.
_EVERY = 30.0
_KEPT = 240
_MAX_AGE = 14 * 86400.0
# Fewer samples of a state than these (10 min of it) are no band.
_ENOUGH = 20
# A twentieth of the samples may be odd, and the edge itself is not sharp.
_ODD = 0.05
_SLACK = 0.10


@dataclass(frozen=True)
class Conditions:
    """What a band holds for: the power limit in whole watts, and the driver's version."""

    limit_watts: int
    driver: str


@dataclass(frozen=True)
class Bands:
    """A card with nothing to do draws `idle_below` watts at most, one at work `busy_above` at least.

    `learned_at` is when the last sample was taken, of the state that was seen longer ago (Unix
    seconds); `samples` is how many there are of the state that was seen less often.
    """

    idle_below: float
    busy_above: float
    samples: int
    learned_at: float


@dataclass(frozen=True)
class Learned:
    """Samples of one card, (Unix seconds, watts), oldest first, under the same conditions."""

    conditions: Conditions
    idle: tuple[tuple[float, float], ...] = ()
    busy: tuple[tuple[float, float], ...] = ()

    def with_sample(self, state: State, now: float, watts: float) -> Learned:
        """With one more sample of a known state, unless it comes too soon after the one before."""
        known = self.idle if state == "idle" else self.busy
        if known and 0 <= now - known[-1][0] < _EVERY:
            return self
        if known and not (known[-1][0] <= now <= known[0][0] + _MAX_AGE):
            # After the clock was set back, what seems to come from the future is of no known age.
            known = tuple(one for one in known if 0 <= now - one[0] <= _MAX_AGE)
        samples = (*known, (round(now, 1), round(watts, 1)))[-_KEPT:]
        return replace(self, idle=samples) if state == "idle" else replace(self, busy=samples)

    def bands(self, now: float) -> Bands | None:
        """The bands; None where too little was seen, too long ago, or the two are not apart."""
        bands = self._bands
        return bands if bands is not None and now - bands.learned_at <= _MAX_AGE else None

    @cached_property
    def _bands(self) -> Bands | None:
        samples = min(len(self.idle), len(self.busy))
        if samples < _ENOUGH:
            return None
        idle_below = _quantile([watts for _, watts in self.idle], 1 - _ODD) * (1 + _SLACK)
        busy_above = _quantile([watts for _, watts in self.busy], _ODD) * (1 - _SLACK)
        if idle_below >= busy_above:
            return None
        return Bands(idle_below, busy_above, samples, min(self.idle[-1][0], self.busy[-1][0]))

    def to_json(self) -> dict[str, Any]:
        """For the store."""
        return {
            "limit_watts": self.conditions.limit_watts,
            "driver": self.conditions.driver,
            "idle": self.idle,
            "busy": self.busy,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Learned:
        """As `to_json` wrote it."""
        conditions = Conditions(int(raw["limit_watts"]), str(raw["driver"]))
        return cls(conditions, _samples(raw["idle"]), _samples(raw["busy"]))


def _samples(raw: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(at), float(watts)) for at, watts in raw)


def _quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of all is not above."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
