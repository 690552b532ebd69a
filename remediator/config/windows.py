"""Maintenance windows as the configuration has them, and what their texts mean."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Literal

from remediator.config.strict import Uuid, one_of
from remediator.errors import ConfigError

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_CLOCK = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")
_DAY_AND_CLOCK = re.compile(rf"({'|'.join(DAYS)}) (\S+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_MINUTES_OF_A_DAY = 24 * 60


@dataclass(frozen=True)
class WindowConfig:
    """A time in which nothing is done.

    `start` and `end` are both `22:00` (each of `days`, or every day), both `fri 18:00` (each week), or
    both a date with a time (once), all in `timezone` where they name no offset. Without `playbooks`,
    `services` and `gpus` it holds for everything, else for whatever any of them names.
    """

    name: str
    start: str
    end: str
    days: tuple[Day, ...] = ()
    timezone: str = "UTC"
    playbooks: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    gpus: tuple[Uuid, ...] = ()
    also_stops: bool = False


@dataclass(frozen=True)
class Weekly:
    """Begins on each of `days` (0 is Monday) at minute `start`; ends `span` days later at `end`."""

    days: frozenset[int]
    start: int
    end: int
    span: int
    zone: tzinfo


@dataclass(frozen=True)
class Once:
    """From one moment to another; Unix seconds."""

    start: float
    end: float


def times_of(window: WindowConfig, where: str) -> Weekly | Once:
    """When the window is.

    Raises:
        ConfigError: one of its texts is not understood.
    """
    zone = _zone(window.timezone, where)
    for form in (_daily, _weekly, _once):
        times = form(window, zone, where)
        if times is not None:
            return times
    raise ConfigError(
        f"{where}: start and end must both be like 22:00, like fri 18:00, or like 2026-11-28 20:00; "
        f"not {window.start!r} and {window.end!r}"
    )


def check(windows: Sequence[WindowConfig], services: Sequence[str]) -> None:
    """Whether every window can be used; a scope that names nothing would never hold.

    Raises:
        ConfigError: one cannot.
    """
    names = [window.name for window in windows]
    for i, window in enumerate(windows):
        where = f"windows[{i}]"
        if not _NAME.fullmatch(window.name):
            raise ConfigError(
                f"{where}.name {window.name!r} is not a name of at most 64 characters"
            )
        if names.count(window.name) > 1:
            raise ConfigError(f"windows: two are called {window.name!r}")
        times_of(window, where)
        _check_scope(f"{where}.services", window.services, services)


def check_playbooks(windows: Sequence[WindowConfig], playbooks: Sequence[str]) -> None:
    """Whether every playbook that a window names is there.

    Raises:
        ConfigError: one is not.
    """
    for i, window in enumerate(windows):
        _check_scope(f"windows[{i}].playbooks", window.playbooks, playbooks)


def _check_scope(where: str, named: Sequence[str], known: Sequence[str]) -> None:
    for name in named:
        one_of(name, known, where)


def _daily(window: WindowConfig, zone: tzinfo, where: str) -> Weekly | None:
    start, end = _minutes(window.start), _minutes(window.end)
    if start is None or end is None:
        return None
    if start in (end, _MINUTES_OF_A_DAY):
        raise ConfigError(f"{where} has no length; a whole day is 00:00 to 24:00")
    days = frozenset(DAYS.index(day) for day in window.days or DAYS)
    return Weekly(days, start, end, int(end < start), zone)


def _weekly(window: WindowConfig, zone: tzinfo, where: str) -> Weekly | None:
    start, end = _day_and_minutes(window.start), _day_and_minutes(window.end)
    if start is None or end is None:
        return None
    _no_days(window, where)
    if start == end or start[1] == _MINUTES_OF_A_DAY:
        raise ConfigError(f"{where} has no length; a day is at most 24:00")
    span = (end[0] - start[0]) % 7
    if span == 0 and end[1] < start[1]:
        span = 7
    return Weekly(frozenset({start[0]}), start[1], end[1], span, zone)


def _once(window: WindowConfig, zone: tzinfo, where: str) -> Once | None:
    start, end = _moment(window.start, zone), _moment(window.end, zone)
    if start is None or end is None:
        return None
    _no_days(window, where)
    if end <= start:
        raise ConfigError(f"{where} ends before it begins")
    return Once(start, end)


def _no_days(window: WindowConfig, where: str) -> None:
    if window.days:
        raise ConfigError(f"{where}.days is for windows of each day (start: '22:00') only")


def _minutes(text: str) -> int | None:
    found = _CLOCK.fullmatch(text)
    if found is None:
        return None
    minutes = 60 * int(found[1]) + int(found[2])
    return minutes if minutes <= _MINUTES_OF_A_DAY else None


def _day_and_minutes(text: str) -> tuple[int, int] | None:
    found = _DAY_AND_CLOCK.fullmatch(text)
    minutes = None if found is None else _minutes(found[2])
    if found is None or minutes is None:
        return None
    return [str(day) for day in DAYS].index(found[1]), minutes


def _moment(text: str, zone: tzinfo) -> float | None:
    if len(text) <= len("2026-11-28"):
        # A bare date does not say whether its day belongs to the window.
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        return moment.timestamp()
    except (ValueError, OverflowError):
        return None


def _zone(name: str, where: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        pass
    if zoneinfo.available_timezones():
        raise ConfigError(f"{where}.timezone {name!r} is not known; write it like Europe/Berlin")
    raise ConfigError(
        f"{where}.timezone {name!r}: this machine has no time zones; install the package tzdata, or "
        "write the window in UTC"
    )
