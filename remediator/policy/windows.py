"""Is a maintenance window open, and does it hold for this? Pure.

A time that the clocks skip in spring begins when they jump; one that they show twice in autumn
begins the first time and ends the second: a window is never shorter than it says.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache

from remediator.config.windows import Once, Weekly, WindowConfig, times_of

ANY_GPU = "gpu:*"
"""Stands for every card, where a service may use all of them."""


@dataclass(frozen=True)
class Open:
    """An open window, and when it ends; Unix seconds."""

    name: str
    until: float


def open_now(windows: Sequence[WindowConfig], now: float) -> tuple[Open, ...]:
    """Every window that is open, whatever it holds for."""
    found = ((window, until(window, now)) for window in windows)
    return tuple(Open(window.name, end) for window, end in found if end is not None)


def closing(
    windows: Sequence[WindowConfig],
    now: float,
    playbook: str,
    touches: Collection[str],
    *,
    stop_for_heat: bool = False,
) -> Open | None:
    """The open window that keeps `playbook` from what it `touches`; None where none does.

    `touches` are keys of targets, like `gpu:GPU-1` or `service:vllm`.
    """
    for window in windows:
        if stop_for_heat and not window.also_stops:
            continue
        end = until(window, now) if holds_for(window, playbook, touches) else None
        if end is not None:
            return Open(window.name, end)
    return None


def holds_for(window: WindowConfig, playbook: str, touches: Collection[str]) -> bool:
    """Whether the window is about this at all; without a scope it is about everything."""
    if not (window.playbooks or window.services or window.gpus):
        return True
    cards = {f"gpu:{uuid}" for uuid in window.gpus}
    return (
        playbook in window.playbooks
        or any(f"service:{name}" in touches for name in window.services)
        or not cards.isdisjoint(touches)
        or (bool(cards) and ANY_GPU in touches)
    )


def until(window: WindowConfig, now: float) -> float | None:
    """When the window that is open now ends (Unix seconds); None while it is closed."""
    times = _times(window)
    if isinstance(times, Once):
        return times.end if times.start <= now < times.end else None
    today = datetime.fromtimestamp(now, times.zone).date()
    ends = []
    for back in range(times.span + 2):
        day = today - timedelta(days=back - 1)
        if day.weekday() in times.days:
            begins, end = _occurrence(times, day)
            if begins <= now < end:
                ends.append(end)
    return max(ends, default=None)


@lru_cache(maxsize=256)
def _times(window: WindowConfig) -> Weekly | Once:
    return times_of(window, f"window {window.name}")


@lru_cache(maxsize=1024)
def _occurrence(times: Weekly, day: date) -> tuple[float, float]:
    begins = _first(day, times.start, times.zone)
    return begins, _last(day + timedelta(days=times.span), times.end, times.zone)


def _moments(day: date, minute: int, zone: tzinfo) -> tuple[float, float]:
    """The moment at which the clocks show this, by the offset before and after a change."""
    wall = datetime.combine(day, time()) + timedelta(minutes=minute)
    before, after = (wall.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    return before.timestamp(), after.timestamp()


def _first(day: date, minute: int, zone: tzinfo) -> float:
    before, after = _moments(day, minute, zone)
    if before <= after:
        return before
    # Skipped: the clocks jump between the two.
    early, late = after, before
    offset = _offset(early, zone)
    while late - early > 1.0:
        middle = (early + late) // 2
        if _offset(middle, zone) == offset:
            early = middle
        else:
            late = middle
    return late


def _last(day: date, minute: int, zone: tzinfo) -> float:
    return max(_moments(day, minute, zone))


def _offset(moment: float, zone: tzinfo) -> timedelta | None:
    return datetime.fromtimestamp(moment, UTC).astimezone(zone).utcoffset()
