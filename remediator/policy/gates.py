"""The gate chain: fixed order, first "no" wins, every "no" has a reason and a sentence. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from remediator.config.model import Limits, Mode, Permission
from remediator.config.windows import WindowConfig
from remediator.durations import format_duration
from remediator.policy import windows
from remediator.policy.decision import Decision

_ASK_AGAIN = 60.0
_LOOK_AGAIN = 15.0
_SOME_TIME = 300.0
_HOUR = 3600.0
_DAY = 86400.0


@dataclass(frozen=True)
class PastRun:
    """A run of the last day, as the gates see it; `destructive` once such a step has begun."""

    playbook: str
    target: str
    destructive: bool
    outcome: str
    created_at: float
    ended_at: float | None
    safe: bool = False


@dataclass(frozen=True)
class GateInput:
    """Everything a gate may look at; times in Unix seconds.

    `safe` marks a stop for heat: the safe direction, which no budget may stand in the way of.
    `touches` are the targets that would be worked on, `near` the cards of their services too.
    """

    now: float
    mode: Mode
    paused: str | None
    allow: Sequence[Permission]
    needs: Sequence[Permission]
    destructive: bool
    playbook: str
    weight: int
    target: str
    starts_at: float
    alert_max_age: float
    acted: bool
    busy_with: str | None
    busy_weight: int
    past: Sequence[PastRun]
    settling_seconds: float
    limits: Limits
    breaker_open: str | None
    safe: bool = False
    killed: str | None = None
    windows: Sequence[WindowConfig] = ()
    opted_out: Collection[str] = ()
    touches: Collection[str] = ()
    near: Collection[str] = ()


Gate = Callable[[GateInput], Decision | None]


def decide(given: GateInput) -> Decision | None:
    """The first "no" of the chain; None when every gate lets it pass."""
    for gate in GATES:
        decision = gate(given)
        if decision is not None:
            return decision
    return None


def decide_step(given: GateInput) -> Decision | None:
    """The gates that a run must pass anew before each step that changes the world."""
    for gate in STEP_GATES:
        decision = gate(given)
        if decision is not None:
            return decision
    return None


def decide_late_start(given: GateInput) -> Decision | None:
    """The gates that a run must pass anew when it begins some time after it was decided on.

    Those of a start but two: a person may take longer to answer than an alert is fresh, and the
    run itself holds its target.
    """
    for gate in LATE_START_GATES:
        decision = gate(given)
        if decision is not None:
            return decision
    return None


def _mode(given: GateInput) -> Decision | None:
    if given.mode != "off":
        return None
    return Decision("ignore", "mode_off", f"{given.playbook} is switched off")


def _observing(given: GateInput) -> Decision | None:
    if given.mode != "observe":
        return None
    return Decision("refuse", "mode_observe", f"{given.playbook} only observes now")


def _duplicate(given: GateInput) -> Decision | None:
    if not given.acted:
        return None
    return Decision(
        "refuse", "duplicate", f"{given.playbook} already acted in this episode; it acts once"
    )


def _freshness(given: GateInput) -> Decision | None:
    age = given.now - given.starts_at
    if age <= given.alert_max_age:
        return None
    return Decision(
        "refuse",
        "stale_alert",
        f"the alert began {format_duration(age)} ago, longer than {format_duration(given.alert_max_age)}",
        # A clock that was set wrong is set right again.
        _SOME_TIME,
        evidence={"age_seconds": age, "alert_max_age_seconds": given.alert_max_age},
    )


def _paused(given: GateInput) -> Decision | None:
    if given.paused is None or given.mode == "observe":
        return None
    why = f"the remediator is paused: {given.paused}"
    return Decision("defer", "paused", why, _LOOK_AGAIN, evidence={"why": given.paused})


def _kill_switch(given: GateInput) -> Decision | None:
    if given.killed is None or given.mode == "observe":
        return None
    why = f"the kill switch is pulled: {given.killed}"
    return Decision("defer", "kill_switch", why, _LOOK_AGAIN, evidence={"why": given.killed})


def _window(given: GateInput) -> Decision | None:
    if given.mode == "observe":
        return None
    touched = {given.target, *given.touches, *given.near}
    window = windows.closing(
        given.windows, given.now, given.playbook, touched, stop_for_heat=given.safe
    )
    if window is None:
        return None
    left = window.until - given.now
    return Decision(
        "defer",
        "maintenance_window",
        f"the maintenance window {window.name} is open for another {format_duration(left)}",
        # Not its whole length: the clock may be set, or the window be taken away.
        min(left + 0.1, _ASK_AGAIN),
        evidence={"window": window.name, "until": window.until},
    )


def _opted_out(given: GateInput) -> Decision | None:
    found = sorted({given.target, *given.touches}.intersection(given.opted_out))
    if not found:
        return None
    return Decision(
        "refuse",
        "opted_out",
        f"{found[0]} is opted out: the configuration says that nothing is done to it",
        _ASK_AGAIN,
        evidence={"opted_out": found},
    )


def _allow(given: GateInput) -> Decision | None:
    missing = [permission for permission in given.needs if permission not in given.allow]
    if not missing or given.mode == "observe":
        return None
    return Decision(
        "refuse",
        "not_allowed",
        f"{given.playbook} needs allow: [{', '.join(missing)}], which the configuration does not give",
        # Whoever grants it and starts the remediator again means the alert that fires now, too.
        _ASK_AGAIN,
        # A card that needs a reset is of no use until somebody resets it.
        needs_human="gpu_reset" in given.needs,
        evidence={"needs": list(given.needs), "allow": list(given.allow)},
    )


def _busy(given: GateInput) -> Decision | None:
    # Who only observes waits for nobody, and must not ask anybody to stop.
    if given.busy_with is None or given.mode == "observe":
        return None
    if given.busy_weight >= given.weight:
        return Decision(
            "defer",
            "superseded",
            f"{given.busy_with} works on {given.target} and is at least as heavy",
            2.0,
            evidence={"by": given.busy_with},
        )
    if given.mode == "approve":
        # Nothing makes way for what only asks a person; it does when they say yes.
        return None
    return Decision(
        "defer",
        "target_busy",
        f"{given.busy_with} works on {given.target} and is asked to stop",
        0.5,
        evidence={"by": given.busy_with},
    )


def _settling(given: GateInput) -> Decision | None:
    if not _on_budget(given):
        return None
    for run in _mine(given):
        if run.destructive and run.ended_at is not None:
            left = run.ended_at + given.settling_seconds - given.now
            if left > 0:
                why = f"{given.target} settles after {run.playbook} for another {left:.0f} s"
                evidence = {"after": run.playbook, "left_seconds": left}
                return Decision("defer", "settling", why, left + 0.1, evidence=evidence)
    return None


def _cooldown(given: GateInput) -> Decision | None:
    if not _on_budget(given):
        return None
    ended = [
        run.ended_at
        for run in _mine(given)
        if run.playbook == given.playbook and run.destructive and run.ended_at is not None
    ]
    left = (max(ended) + given.limits.cooldown - given.now) if ended else 0.0
    if left <= 0:
        return None
    why = (
        f"{given.playbook} worked on {given.target} just now; it waits {format_duration(left)} more"
    )
    evidence = {"left_seconds": left, "cooldown_seconds": given.limits.cooldown}
    return Decision("defer", "cooldown", why, left + 0.1, evidence=evidence)


def _attempts(given: GateInput) -> Decision | None:
    if not _on_budget(given):
        return None
    mine = [run for run in _mine(given) if run.playbook == given.playbook and run.destructive]
    for count, window in (
        (given.limits.attempts_per_hour, _HOUR),
        (given.limits.attempts_per_day, _DAY),
    ):
        recent = [run for run in mine if run.created_at > given.now - window]
        if len(recent) >= count:
            return Decision(
                "refuse",
                "attempts",
                f"{given.playbook} tried {len(recent)} times on {given.target} within "
                f"{format_duration(window)}; a person has to look",
                _SOME_TIME,
                needs_human=True,
                evidence={"runs": len(recent), "limit": count, "window_seconds": window},
            )
    return None


def _rate(given: GateInput) -> Decision | None:
    if not _on_budget(given):
        return None
    recent = [
        run
        for run in given.past
        # Stops for heat are on no budget, and use none up.
        if run.destructive and not run.safe and run.created_at > given.now - _HOUR
    ]
    if len(recent) < given.limits.destructive_per_hour:
        return None
    return Decision(
        "refuse",
        "rate_limit",
        f"{len(recent)} destructive runs on this machine within an hour; a person has to look",
        _SOME_TIME,
        needs_human=True,
        evidence={"runs": len(recent), "limit": given.limits.destructive_per_hour},
    )


def _breaker(given: GateInput) -> Decision | None:
    if not given.destructive or given.breaker_open is None or given.mode == "observe":
        return None
    return Decision(
        "refuse",
        "breaker_open",
        f"the breaker is open: {given.breaker_open}; `gpu-remediator resume` closes it",
        30.0,
        needs_human=True,
        evidence={"why": given.breaker_open},
    )


def _on_budget(given: GateInput) -> bool:
    """Who only observes spends nothing, and a stop for heat is never too much."""
    return given.destructive and not given.safe and given.mode != "observe"


def _mine(given: GateInput) -> list[PastRun]:
    return [run for run in given.past if run.target == given.target]


STEP_GATES: tuple[Gate, ...] = (
    _mode,
    _observing,
    _allow,
    _kill_switch,
    _paused,
    _window,
    _opted_out,
    _attempts,
    _rate,
    _breaker,
)
# Settling comes before the budgets: it is over in seconds, and a spent budget calls a person.
GATES: tuple[Gate, ...] = (
    _mode,
    _allow,
    _kill_switch,
    _paused,
    _window,
    _opted_out,
    _freshness,
    _duplicate,
    _busy,
    _settling,
    _cooldown,
    _attempts,
    _rate,
    _breaker,
)
LATE_START_GATES: tuple[Gate, ...] = (
    _observing,
    *(gate for gate in GATES if gate not in (_freshness, _busy)),
)
