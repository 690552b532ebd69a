"""Durations as Prometheus writes them: `500ms`, `10s`, `5m`, `1h30m`, `1d`; and moments."""

from __future__ import annotations

import re
from datetime import datetime

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+)(ms|s|m|h|d)")


def parse_duration(text: str) -> float:
    """Seconds of a Prometheus duration.

    Raises:
        ValueError: `text` is not one; the message says what one looks like.
    """
    if text == "0":
        return 0.0
    if not re.fullmatch(r"(\d+(ms|s|m|h|d))+", text):
        raise ValueError(f"{text!r} is not a duration; write it like 10s, 5m or 1h30m")
    return sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def parse_moment(text: str, now: float) -> float:
    """Unix seconds of a moment: `2h` is so long before `now`, or a date, or Unix seconds.

    Raises:
        ValueError: `text` is none of these; the message says what one looks like.
    """
    if re.fullmatch(r"\d{6,11}(\.\d{1,6})?", text):
        return float(text)
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        # Without a zone it is meant in this machine's own.
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is no moment; write 2h or 2026-01-31T12:00:00+00:00") from None


def format_duration(seconds: float) -> str:
    """`seconds` for a person: `0.4s`, `12s`, `5m`, `1h30m`."""
    if seconds < 1:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])
