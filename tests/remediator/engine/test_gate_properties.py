"""For every sequence of events: no budget is exceeded, and nothing is done that is kept back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.config.model import Limits
from remediator.config.windows import WindowConfig
from remediator.durations import format_duration
from remediator.policy import breaker, gates, windows
from remediator.policy.gates import GateInput, PastRun
from remediator.run_ages import Ages
from remediator.store import Run
from remediator.targets import Target

START = 1_763_769_600.0  # a midnight in UTC
HOUR, DAY = 3600.0, 86400.0
TARGETS = ("a", "b", "c")
NIGHT = WindowConfig("night", "22:00", "06:00")
OF_B = WindowConfig("b", "00:00", "12:00", services=("b",))
STRICT = WindowConfig("strict", "03:00", "04:00", also_stops=True)


@dataclass(frozen=True)
class Event:
    """`kind` happens `after` so many seconds; `value` is a target, a reason or a step of the clock."""

    kind: Literal["ask", "stop", "pause", "kill", "resume", "step"]
    after: float
    target: str = "a"
    took: float = 1.0
    outcome: str = "succeeded"
    step: float = 0.0


events = st.lists(
    st.builds(
        Event,
        st.sampled_from(
            ["ask", "ask", "ask", "ask", "ask", "stop", "pause", "kill", "resume", "step"]
        ),
        st.one_of(st.floats(0, 120), st.floats(0, 2 * HOUR)),
        target=st.sampled_from(TARGETS),
        took=st.floats(0, 300),
        outcome=st.sampled_from(["succeeded", "failed", "ineffective", "cancelled"]),
        step=st.sampled_from([-DAY, -HOUR, HOUR, DAY]),
    ),
    min_size=6,
    max_size=50,
)


class Time:
    """A wall clock that may be set, and one that cannot be."""

    def __init__(self) -> None:
        self.passed, self.stepped = 0.0, 0.0

    def now(self) -> float:
        return START + self.passed + self.stepped

    def monotonic(self) -> float:
        return self.passed

    def wait(self, event: Any, seconds: float) -> bool:
        raise AssertionError("nothing waits here")


@dataclass
class Machine:
    """What the gates are asked about, one event after the other."""

    limits: Limits
    time: Time = field(default_factory=Time)
    ages: Ages = field(default_factory=Ages)
    runs: list[Run] = field(default_factory=list)
    began: list[tuple[float, Run]] = field(default_factory=list)
    paused: str | None = None
    killed: str | None = None
    opened: str | None = None
    closed_after: int = 0
    windows: tuple[WindowConfig, ...] = (NIGHT, OF_B, STRICT)

    def happen(self, event: Event) -> None:
        self.time.passed += event.after
        if event.kind == "step":
            self.time.stepped += event.step
        elif event.kind == "pause":
            self.paused = "a person works here"
        elif event.kind == "kill":
            self.killed = "KILL exists"
        elif event.kind == "resume":
            self.paused = self.killed = self.opened = None
            self.closed_after = len(self.runs)
        else:
            self.ask(event, safe=event.kind == "stop")

    def past(self) -> list[tuple[int, PastRun]]:
        found = []
        for run in self.runs:
            created_at, ended_at = self.ages.dated(run, self.time)
            past = PastRun(
                run.playbook, run.target.key, True, run.state, created_at, ended_at, run.safe
            )
            found.append((run.id, past))
        return found

    def ask(self, event: Event, *, safe: bool) -> None:
        now, key = self.time.now(), f"service:{event.target}"
        past = self.past()
        counted = [run for number, run in past if number > self.closed_after]
        if not safe and self.opened is None:
            self.opened = breaker.why_open(now, counted, key, self.limits)
        given_ = GateInput(
            now=now,
            mode="auto",
            paused=self.paused,
            allow=("service_restart",),
            needs=("service_restart",),
            destructive=True,
            playbook="emergency-stop" if safe else "recover-oom",
            weight=50,
            target=key,
            starts_at=now,
            alert_max_age=DAY,
            acted=False,
            busy_with=None,
            busy_weight=0,
            past=[run for _, run in past],
            settling_seconds=15.0,
            limits=self.limits,
            breaker_open=None if safe else self.opened,
            safe=safe,
            killed=self.killed,
            windows=self.windows,
            opted_out=("service:c",),
            touches=(key,),
        )
        decision = gates.decide(given_)
        assert (decision is None) <= (gates.decide_step(given_) is None)
        if decision is not None:
            assert decision.sentence
            assert decision.evidence or decision.reason in ("mode_off", "duplicate")
            return
        self._begin(event, now, safe)

    def _begin(self, event: Event, now: float, safe: bool) -> None:
        """Everything that must never be."""
        assert self.paused is None
        assert self.killed is None
        assert event.target != "c", "it is opted out"
        held_by = (STRICT,) if safe else (NIGHT, OF_B, STRICT)
        touches = (f"service:{event.target}",)
        if self.windows:
            assert windows.closing(held_by, now, "x", touches, stop_for_heat=safe) is None
        assert safe or self.opened is None
        self.time.passed += event.took
        self.runs.append(made(len(self.runs) + 1, event, safe, now, self.time.now()))
        self.began.append((self.time.passed - event.took, self.runs[-1]))


def made(number: int, event: Event, safe: bool, now: float, ended_at: float) -> Run:
    return Run(
        id=number,
        episode_id=None,
        playbook="emergency-stop" if safe else "recover-oom",
        weight=50,
        destructive=True,
        safe=safe,
        trigger="x",
        target=Target("service", event.target),
        state=event.outcome,  # type: ignore[arg-type]
        reason="",
        sentence="",
        plan=[],
        rung=0,
        cancel_reason=None,
        created_at=now,
        updated_at=now,
        ended_at=ended_at,
        expires_at=None,
        boot_id="",
    )


def play(machine: Machine, happened: list[Event]) -> None:
    for event in happened:
        machine.happen(event)
        # Each look dates every run, as the remediator does whenever it is asked.
        machine.past()


@given(events, st.sampled_from([(), (NIGHT, OF_B, STRICT)]))
@settings(max_examples=200, deadline=None)
def test_no_sequence_of_events_acts_where_it_is_kept_back(
    happened: list[Event], closed: tuple[WindowConfig, ...]
) -> None:
    play(Machine(Limits(cooldown=0.0), windows=closed), happened)


# Somebody asks again and again, fails or not, sets the clock, and closes the breaker each time.
insistent = st.lists(
    st.builds(
        Event,
        st.sampled_from(["ask"] * 8 + ["stop", "step"]),
        st.sampled_from([0.0, 1.0, 20.0, 70.0, 300.0, 1200.0]),
        target=st.sampled_from(("a", "b")),
        took=st.sampled_from([0.0, 1.0, 200.0]),
        outcome=st.sampled_from(["succeeded", "failed", "cancelled"]),
        step=st.sampled_from([-DAY, -HOUR, HOUR, DAY]),
    ),
    min_size=10,
    max_size=60,
)


@given(insistent, st.integers(1, 4), st.integers(1, 8), st.sampled_from([0.0, 60.0, 600.0]))
@settings(max_examples=150, deadline=None)
def test_no_sequence_of_events_exceeds_a_budget(
    happened: list[Event], per_target: int, per_machine: int, cooldown: float
) -> None:
    limits = Limits(
        attempts_per_hour=per_target,
        destructive_per_hour=per_machine,
        cooldown=cooldown,
        # Otherwise it would be the breaker that keeps every budget.
        breaker_relapses=50,
        breaker_failures=50,
    )
    machine = Machine(limits, windows=())
    play(machine, happened)
    on_budget = [(at, run) for at, run in machine.began if not run.safe]
    for at, run in on_budget:
        hour = [other for when, other in on_budget if at - HOUR < when <= at]
        day = [other for when, other in on_budget if at - DAY < when <= at]
        assert len(hour) <= per_machine
        assert len([o for o in hour if o.target == run.target]) <= per_target
        assert len([o for o in day if o.target == run.target]) <= limits.attempts_per_day
        before = [
            when + (other.ended_at or 0.0) - other.created_at
            for when, other in on_budget
            if other.target == run.target and when < at
        ]
        assert at >= max(before, default=at) + (cooldown if before else 0.0) - 1e-3


@given(insistent)
@settings(max_examples=60, deadline=None)
def test_no_sequence_of_events_acts_while_the_breaker_is_open(happened: list[Event]) -> None:
    limits = Limits(attempts_per_hour=50, destructive_per_hour=50, cooldown=0.0)
    play(Machine(limits, windows=()), happened)


@given(st.sampled_from([-DAY, -HOUR, HOUR, DAY]), st.floats(1, 30))
@settings(max_examples=30, deadline=None)
def test_a_clock_that_is_set_neither_ends_a_cooldown_nor_prolongs_it(
    step: float, after: float
) -> None:
    machine = Machine(Limits(cooldown=60.0))
    machine.time.passed = 12 * HOUR  # no window is open
    machine.ask(Event("ask", 0, took=0.0), safe=False)
    machine.past()
    machine.time.passed += after
    # By whole days: the windows stay where they are on the clock.
    machine.time.stepped += step if abs(step) == DAY else 0.0
    machine.limits = Limits(cooldown=60.0 if abs(step) == DAY else 3600.0)
    began = len(machine.runs)
    machine.ask(Event("ask", 0), safe=False)
    assert len(machine.runs) == began, f"it waits, {format_duration(after)} after"
    machine.time.passed += 3601.0
    machine.ask(Event("ask", 0), safe=False)
    assert len(machine.runs) == began + 1


def test_what_helped_three_times_and_did_not_last_opens_the_breaker() -> None:
    machine = Machine(Limits(breaker_relapses=3))
    machine.time.passed = 12 * HOUR
    for _ in range(3):
        machine.happen(Event("ask", 4000.0))
    assert len(machine.runs) == 3
    machine.happen(Event("ask", 4000.0))
    assert len(machine.runs) == 3
    assert machine.opened is not None
    assert "did not last" in machine.opened
    machine.happen(Event("resume", 60.0))
    machine.happen(Event("ask", 60.0))
    assert len(machine.runs) == 4


def test_what_helped_long_ago_or_elsewhere_is_no_relapse() -> None:
    limits = Limits(breaker_relapses=3)

    def ran(ago: float, target: str = "service:a", **more: Any) -> PastRun:
        return PastRun("x", target, True, "succeeded", START - ago, START - ago + 1, **more)

    old = [ran(5 * HOUR), ran(2 * HOUR), ran(HOUR)]
    assert breaker.why_open(START, old, "service:a", limits) is None
    elsewhere = [ran(3 * HOUR, "service:b"), ran(2 * HOUR), ran(1.5 * HOUR)]
    assert breaker.why_open(START, elsewhere, "service:a", limits) is None
    stops = [ran(n * HOUR, safe=True) for n in (1, 2, 3)]
    assert breaker.why_open(START, stops, "service:a", limits) is None
    again = [ran(n * HOUR) for n in (1, 2, 3)]
    assert "did not last" in (breaker.why_open(START, again, "service:a", limits) or "")
