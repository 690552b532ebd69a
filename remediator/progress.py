"""Since when a service's progress counter stands still, and since when requests are there. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from remediator.managers import ProcessIdentity


@dataclass(frozen=True)
class Look:
    """What a serving server said once.

    `at` in monotonic seconds; `progress` is its real-time counter; `demand` the requests that run
    or wait, None where it does not say.
    """

    at: float
    process: ProcessIdentity
    progress: float
    demand: int | None


@dataclass(frozen=True)
class Standing:
    """What looks without a break have shown of one process.

    `moved` is how far the counter went since the look before, None without one. For
    `still_seconds` it has not moved; for `demand_seconds` there have been requests, None where that
    is not known.
    """

    moved: float | None
    still_seconds: float
    demand_seconds: float | None


@dataclass(frozen=True)
class _Track:
    """Looks at one process, each soon after the one before."""

    last: Look
    still_since: float
    demand_since: float | None
    moved: float | None = None

    @property
    def standing(self) -> Standing:
        now = self.last.at
        demand = None if self.demand_since is None else now - self.demand_since
        if self.last.demand == 0:
            demand = 0.0
        return Standing(self.moved, now - self.still_since, demand)


class ProgressLog:
    """The newest track of each service; written by its probing thread only.

    A look that failed is neither progress nor a stall. When none succeeded for `max_gap` seconds,
    what happened meanwhile is not known, and the track begins anew, as it does for another process
    or a counter that went back.
    """

    def __init__(self) -> None:
        self._tracks: dict[str, _Track] = {}

    def saw(self, service: str, look: Look, max_gap: float) -> None:
        """Keep a look."""
        self._tracks[service] = _follow(self._tracks.get(service), look, max_gap)

    def forget(self, service: str) -> None:
        """It does not serve now, so that it stands still proves nothing."""
        self._tracks.pop(service, None)

    def kept(self, service: str) -> Standing | None:
        """What the kept looks show, as of the last one; None where there is none."""
        track = self._tracks.get(service)
        return None if track is None else track.standing

    def age(self, service: str, now: float) -> float | None:
        """How long ago the last kept look was, in seconds; `now` by the monotonic clock."""
        track = self._tracks.get(service)
        return None if track is None else now - track.last.at

    def standing(self, service: str, look: Look, max_gap: float) -> Standing:
        """What the kept looks and this new one show; keeps nothing."""
        return _follow(self._tracks.get(service), look, max_gap).standing


def _follow(track: _Track | None, look: Look, max_gap: float) -> _Track:
    if (
        track is None
        or not track.last.process.same(look.process)
        or look.progress < track.last.progress
        or look.at - track.last.at > max_gap
    ):
        return _Track(look, still_since=look.at, demand_since=look.at if look.demand else None)
    demand_since = None
    if look.demand:
        demand_since = look.at if track.demand_since is None else track.demand_since
    moved = look.progress - track.last.progress
    following = replace(track, last=look, demand_since=demand_since, moved=moved)
    return replace(following, still_since=look.at) if moved else following
