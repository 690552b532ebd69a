"""The gate chain: fixed order, first "no" wins, budgets that hold for any sequence of requests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.config.model import Limits
from remediator.config.windows import WindowConfig
from remediator.policy import breaker, gates
from remediator.policy.gates import GateInput, PastRun

NOW = 1_763_760_000.0
HOUR = 3600.0
PASS = GateInput(
    now=NOW,
    mode="auto",
    paused=None,
    allow=("service_restart",),
    needs=("service_restart",),
    destructive=True,
    playbook="recover-oom",
    weight=50,
    target="service:ollama",
    starts_at=NOW - 10,
    alert_max_age=86400.0,
    acted=False,
    busy_with=None,
    busy_weight=0,
    past=(),
    settling_seconds=15.0,
    limits=Limits(),
    breaker_open=None,
)


def ran(ago: float, *, took: float = 1.0, **more: object) -> PastRun:
    values = {
        "playbook": "recover-oom",
        "target": "service:ollama",
        "destructive": True,
        "outcome": "succeeded",
        "created_at": NOW - ago,
        "ended_at": NOW - ago + took,
    }
    return PastRun(**{**values, **more})


ALWAYS = WindowConfig("always", "00:00", "24:00")

# One violation of each gate, in the order of the chain.
VIOLATIONS: list[tuple[str, dict[str, object]]] = [
    ("mode_off", {"mode": "off"}),
    ("not_allowed", {"allow": ()}),
    ("kill_switch", {"killed": "/run/gpu-remediator/KILL exists"}),
    ("paused", {"paused": "a person works here"}),
    ("maintenance_window", {"windows": (ALWAYS,)}),
    ("opted_out", {"opted_out": ("service:ollama",)}),
    ("stale_alert", {"starts_at": NOW - 100_000}),
    ("duplicate", {"acted": True}),
    ("superseded", {"busy_with": "run 1 (emergency-stop)", "busy_weight": 90}),
    ("settling", {"past": (ran(5), ran(100), ran(200), ran(300))}),
    ("cooldown", {"past": (ran(30), ran(100), ran(200), ran(300))}),
    ("attempts", {"past": (ran(100), ran(200), ran(300))}),
    ("rate_limit", {"past": tuple(ran(500 + i, target=f"service:{i}") for i in range(6))}),
    ("breaker_open", {"breaker_open": "three targets at once"}),
]


def test_what_violates_nothing_passes() -> None:
    assert gates.decide(PASS) is None


@pytest.mark.parametrize(("reason", "change"), VIOLATIONS)
def test_each_gate_says_no_in_words(reason: str, change: dict[str, object]) -> None:
    decision = gates.decide(replace(PASS, **change))
    assert decision is not None
    assert decision.reason == reason
    assert decision.kind in ("ignore", "refuse", "defer")
    assert len(decision.sentence) > 20
    assert decision.evidence or reason in ("mode_off", "duplicate")


@pytest.mark.parametrize("first", range(len(VIOLATIONS)))
def test_the_first_no_wins(first: int) -> None:
    given_ = PASS
    for _, change in reversed(VIOLATIONS[first:]):
        given_ = replace(given_, **change)
    decision = gates.decide(given_)
    assert decision is not None
    assert decision.reason == VIOLATIONS[first][0]


def test_a_lighter_run_in_the_way_is_asked_to_stop() -> None:
    decision = gates.decide(replace(PASS, busy_with="run 1 (throttle-gpu)", busy_weight=10))
    assert decision is not None
    assert (decision.kind, decision.reason) == ("defer", "target_busy")


@pytest.mark.parametrize(
    "change",
    [
        {"paused": "x"},
        {"allow": ()},
        {"busy_with": "x"},
        {"killed": "x"},
        {"windows": (ALWAYS,)},
    ],
)
def test_who_only_observes_is_held_up_by_nothing_that_acts(change: dict[str, object]) -> None:
    assert gates.decide(replace(PASS, mode="observe", **change)) is None


@pytest.mark.parametrize(
    "change", [{"past": tuple(ran(ago) for ago in range(1, 10))}, {"breaker_open": "x"}]
)
def test_what_interrupts_nobody_has_no_budget(change: dict[str, object]) -> None:
    assert gates.decide(replace(PASS, destructive=False, needs=(), **change)) is None


def test_refusals_that_no_time_heals_need_a_person() -> None:
    for reason, change in VIOLATIONS:
        decision = gates.decide(replace(PASS, **change))
        assert decision is not None
        assert decision.needs_human == (reason in ("attempts", "rate_limit", "breaker_open"))


def test_what_is_deferred_says_when_to_look_again() -> None:
    for _, change in VIOLATIONS:
        decision = gates.decide(replace(PASS, **change))
        assert decision is not None
        if decision.kind == "defer":
            assert decision.retry_after is not None
            assert 0 < decision.retry_after < HOUR


past_runs = st.lists(
    st.builds(
        ran,
        st.floats(0, 2 * 86400),
        took=st.floats(0, 600),
        playbook=st.sampled_from(["recover-oom", "cool-down"]),
        target=st.sampled_from(["service:ollama", "service:vllm", "gpu:GPU-1"]),
        destructive=st.booleans(),
        outcome=st.sampled_from(["succeeded", "failed", "ineffective", "ambiguous", "cancelled"]),
    ),
    max_size=12,
)
inputs = st.builds(
    replace,
    st.just(PASS),
    mode=st.sampled_from(["off", "observe", "approve", "auto"]),
    paused=st.none() | st.just("x"),
    allow=st.sampled_from([(), ("service_restart",), ("service_restart", "service_stop")]),
    needs=st.sampled_from([(), ("service_restart",), ("service_stop",)]),
    destructive=st.booleans(),
    starts_at=st.floats(NOW - 200_000, NOW + 60),
    acted=st.booleans(),
    busy_with=st.none() | st.just("run 1"),
    busy_weight=st.integers(0, 100),
    past=past_runs.map(tuple),
    breaker_open=st.none() | st.just("x"),
)


@given(inputs)
@settings(max_examples=300, deadline=None)
def test_whatever_passes_violates_nothing(given_: GateInput) -> None:
    decision = gates.decide(given_)
    assert decision == gates.decide(given_), "the same input, the same answer"
    if decision is not None or given_.mode == "observe":
        return
    assert given_.mode in ("approve", "auto")
    assert given_.paused is None
    assert not given_.acted
    assert set(given_.needs) <= set(given_.allow)
    if given_.busy_with is not None:
        assert given_.mode == "approve", "it only asks; who works makes way when a person says yes"
        assert given_.busy_weight < given_.weight
    if given_.destructive:
        assert given_.breaker_open is None
        recent = [run for run in given_.past if run.created_at > NOW - HOUR]
        assert len([r for r in recent if r.destructive]) < given_.limits.destructive_per_hour
        mine = [r for r in recent if (r.playbook, r.target) == (given_.playbook, given_.target)]
        mine = [run for run in mine if run.destructive]
        assert len(mine) < given_.limits.attempts_per_hour


@dataclass(frozen=True)
class Request:
    """Somebody asks for a destructive run `after` seconds; it would take `took` seconds."""

    after: float
    target: str
    took: float
    outcome: str


requests = st.lists(
    st.builds(
        Request,
        st.one_of(st.floats(0, 120), st.floats(0, 7200)),
        st.sampled_from(["service:a", "service:b", "service:c"]),
        st.floats(0, 300),
        st.sampled_from(["succeeded", "failed", "ineffective"]),
    ),
    max_size=60,
)


@given(
    requests,
    st.integers(1, 4),
    st.integers(1, 8),
    st.floats(0, 600),
)
@settings(max_examples=150, deadline=None)
def test_no_sequence_of_requests_exceeds_a_budget(
    asked: list[Request], per_target: int, per_machine: int, cooldown: float
) -> None:
    limits = Limits(
        attempts_per_hour=per_target, destructive_per_hour=per_machine, cooldown=cooldown
    )
    now, past, opened = NOW, [], None
    for request in asked:
        now += request.after
        mine = [r for r in past if r.target == request.target]
        if any(r.ended_at > now for r in mine):
            continue  # its target is locked
        opened = opened or breaker.why_open(now, past, request.target, limits)
        given_ = replace(
            PASS,
            now=now,
            starts_at=now,
            target=request.target,
            past=tuple(past),
            limits=limits,
            breaker_open=opened,
        )
        if gates.decide(given_) is not None:
            continue
        assert opened is None
        past.append(
            PastRun("recover-oom", request.target, True, request.outcome, now, now + request.took)
        )
    for run in past:
        hour = [r for r in past if run.created_at - HOUR < r.created_at <= run.created_at]
        day = [r for r in past if run.created_at - 24 * HOUR < r.created_at <= run.created_at]
        of_target = [r for r in hour if r.target == run.target]
        assert len(hour) <= per_machine
        assert len(of_target) <= per_target
        assert len([r for r in day if r.target == run.target]) <= limits.attempts_per_day
        before = [r for r in past if r.target == run.target and r.created_at < run.created_at]
        assert all(run.created_at >= r.ended_at + cooldown for r in before)


def test_the_breaker_counts_targets_not_runs() -> None:
    limits = Limits(breaker_targets=2)
    one = [ran(10, target="service:a"), ran(20, target="service:a")]
    assert breaker.why_open(NOW, one, "service:a", limits) is None
    assert breaker.why_open(NOW, one, "service:b", limits) is None
    two = [*one, ran(30, target="service:b")]
    assert "3 targets" in (breaker.why_open(NOW, two, "service:c", limits) or "")


def test_the_breaker_forgets_after_its_window_and_counts_only_what_interrupts() -> None:
    limits = Limits(breaker_targets=2)
    old = [ran(400, target="service:a"), ran(500, target="service:b")]
    assert breaker.why_open(NOW, old, "service:c", limits) is None
    caps = [ran(5, target=f"gpu:{i}", destructive=False) for i in range(8)]
    assert breaker.why_open(NOW, caps, "service:c", limits) is None


@pytest.mark.parametrize("outcome", ["failed", "ineffective", "ambiguous"])
def test_the_breaker_opens_after_runs_that_did_not_help(outcome: str) -> None:
    bad = [ran(600 * i + 400, target="service:a", outcome=outcome) for i in range(3)]
    assert "did not help" in (breaker.why_open(NOW, bad, "service:a", Limits()) or "")
    good = [ran(600 * i + 400, target="service:a") for i in range(2)]
    assert breaker.why_open(NOW, good, "service:a", Limits()) is None
