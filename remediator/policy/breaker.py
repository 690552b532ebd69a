"""When does the breaker open? Absolute numbers, for one to eight GPUs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from remediator.config.model import Limits
from remediator.durations import format_duration
from remediator.policy.gates import PastRun

_BAD = ("failed", "ineffective", "ambiguous")
_HOUR = 3600.0


def why_open(now: float, past: Sequence[PastRun], asking: str, limits: Limits) -> str | None:
    """The sentence that opens the breaker before a destructive step on `asking`; None to go on.

    `past` holds only runs since the breaker was last closed by a person.
    """
    storm = why_storm(now, past, asking, limits)
    if storm is not None:
        return storm
    bad = [
        run
        for run in past
        if run.destructive and not run.safe and run.outcome in _BAD and run.created_at > now - _HOUR
    ]
    if len(bad) >= limits.breaker_failures:
        return f"{len(bad)} destructive runs within an hour failed or did not help"
    return why_relapse(now, past, asking, limits)


def why_relapse(now: float, past: Sequence[PastRun], asking: str, limits: Limits) -> str | None:
    """Whether what helped on `asking` did not last: it is asked for again and again; None to go on."""
    helped = [
        run
        for run in past
        if run.destructive
        and not run.safe
        and run.target == asking
        and run.outcome == "succeeded"
        and run.created_at > now - limits.breaker_relapse_window
    ]
    if len(helped) < limits.breaker_relapses:
        return None
    return (
        f"{len(helped)} runs on {asking} within {format_duration(limits.breaker_relapse_window)} "
        "helped, and it did not last"
    )


def why_too_many(stopped: Collection[str], asking: str, limits: Limits) -> str | None:
    """The same where no run could be kept: only what was stopped is known, by its key."""
    targets = sorted({*stopped, asking})
    if len(targets) <= limits.breaker_targets:
        return None
    return f"{len(targets)} targets asked to be stopped ({', '.join(targets)})"


def why_storm(now: float, past: Sequence[PastRun], asking: str, limits: Limits) -> str | None:
    """Whether too many targets ask at once; None to go on.

    That usually means the exporter, the driver or the cooling, not so many bad cards.
    """
    window = [r for r in past if r.destructive and r.created_at > now - limits.breaker_window]
    targets = sorted({run.target for run in window} | {asking})
    if len(targets) <= limits.breaker_targets:
        return None
    return (
        f"{len(targets)} targets asked for a destructive action within "
        f"{format_duration(limits.breaker_window)} ({', '.join(targets)})"
    )
