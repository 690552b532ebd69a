"""When to replace the worker: decisions only, no process and no clock."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines of supervision, in seconds.

    Attributes:
        silence: a worker that sends nothing for so long is not working.
        stuck: every GPU stuck for so long is a stuck worker; a single one is left alone.
        grace: how long a worker that was asked to end may take before it counts as stuck.
        release: how long a worker may take to let go of the driver on request.
        stuck_call: a call that has been going on for so long reads nothing, and does not come back for a
            release.
        abandoned: how many stuck workers may be left alone before no more is started.
        backoff: the first pause before a replacement; it doubles up to `backoff_limit`.
        steady: a worker that lived so long was well: the pause starts from the beginning.
        handover: how long a successor may take to read all that its predecessor reads.
        settle: how long it may take when it wants a successor itself.
        handover_limit: the longest pause before the next successor; the first is `backoff`.
        calm: a worker that has not wanted a successor for so long is well.
    """

    silence: float = 10.0
    stuck: float = 30.0
    grace: float = 5.0
    release: float = 6.0
    stuck_call: float = 3.0
    abandoned: int = 2
    backoff: float = 0.5
    backoff_limit: float = 30.0
    steady: float = 60.0
    handover: float = 30.0
    settle: float = 3.0
    handover_limit: float = 60.0
    calm: float = 5.0


class Step(Enum):
    """What to do next."""

    NOTHING = "nothing"
    START = "start"
    ASK_TO_END = "ask to end"
    BURY = "bury"
    ABANDON = "abandon"


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known about the worker at `now` (all monotonic seconds).

    Attributes:
        running: there is a worker that has not exited.
        heard_at: when it last sent anything; its start when it has not yet.
        asked_at: when it was asked to end, None when it was not.
        all_stuck_since: since when no call of it has come back, None when one has.
        start_at: not before that a new one may be started.
        may_start: false while the driver is let go on request.
    """

    now: float
    present: bool
    exited: bool
    heard_at: float
    asked_at: float | None
    all_stuck_since: float | None
    start_at: float
    abandoned: int
    may_start: bool = True


def decide(situation: Situation, limits: Limits) -> Step:
    """Choose the next step."""
    now = situation.now
    if not situation.present:
        due = now >= situation.start_at and situation.abandoned < limits.abandoned
        return Step.START if due and situation.may_start else Step.NOTHING
    if situation.exited:
        return Step.BURY
    if situation.asked_at is not None:
        return Step.ABANDON if now - situation.asked_at >= limits.grace else Step.NOTHING
    stuck_since = situation.all_stuck_since
    silent = now - situation.heard_at >= limits.silence
    stuck = stuck_since is not None and now - stuck_since >= limits.stuck
    return Step.ASK_TO_END if silent or stuck else Step.NOTHING


def next_pause(last: float | None, lived: float, limits: Limits) -> float:
    """Pause before the next start, after a worker that lived `lived` seconds."""
    if last is None or lived >= limits.steady:
        return limits.backoff
    return min(last * 2, limits.backoff_limit)
