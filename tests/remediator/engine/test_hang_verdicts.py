"""Hang verdicts: a restart needs proof of a stall, and any proof of work refutes it."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from remediator.policy.verdict import (
    ALLOWED,
    Canary,
    CardEvidence,
    HangEvidence,
    Judgement,
    ServiceEvidence,
    ServiceState,
    judge,
    judge_service,
)
from remediator.power import CardPower

AFTER = 120.0
STUCK = ("stalled", "hung")

seconds = st.none() | st.floats(0, 1000)


def power(idle: float | None = 0.0, below_busy: float | None = None) -> CardPower:
    """A card that has drawn so little for so long; None where its bands are not learned."""
    below = idle if below_busy is None else below_busy
    return CardPower("GPU-0", 0.4, 100.0, 400.0, 80.0, 200.0, 60.0, idle, below)


cards = st.builds(
    CardEvidence,
    fault=st.none() | st.just("timeout"),
    readable=st.booleans(),
    power_ratio=st.none() | st.floats(0, 1.2),
    each=st.lists(st.builds(power, seconds, seconds), max_size=2).map(tuple),
)
service = st.builds(
    ServiceEvidence,
    name=st.sampled_from(["ollama", "vllm", "embeddings"]),
    state=st.sampled_from(get_args(ServiceState)),
    canary=st.sampled_from(get_args(Canary)),
    progress_delta=st.none() | st.floats(0, 1000),
    still_seconds=seconds,
    demand=st.none() | st.integers(0, 9),
    demand_seconds=seconds,
    cards=cards,
    together=st.just(()) | st.just(("other",)),
    node=st.none() | st.just("none of the machine's 2 cards answers"),
)
hang_evidence = st.builds(
    HangEvidence,
    fresh=st.booleans(),
    fault=st.none() | st.just("the driver asks for reset"),
    saturated_seconds=st.none() | st.floats(0, 600),
    required_seconds=st.none() | st.just(30.0),
    processes=st.none() | st.integers(0, 3),
    memory_ratio=st.none() | st.floats(0, 1),
    services=st.lists(service, max_size=3).map(tuple),
    stalled_after=st.just(AFTER),
    node=st.none() | st.just("the driver asks for a reboot"),
)


def works(one: ServiceEvidence) -> bool:
    return (one.progress_delta or 0) > 0 or one.canary == "answered"


@given(service)
def test_a_service_is_stuck_only_when_everything_proves_it(one: ServiceEvidence) -> None:
    verdict = judge_service(one, AFTER)
    assert verdict.judgement in get_args(Judgement)
    assert verdict.sentence
    if verdict.judgement not in STUCK:
        assert verdict.services == ()
        return
    assert verdict.services == (one.name,)
    assert one.state in ("serving", "silent")
    assert not works(one)
    assert one.node is None
    assert one.cards.fault is None
    assert one.cards.readable
    by_canary = one.canary == "failed" or (one.canary == "timed_out" and one.cards.idle)
    counted = one.state == "serving" and one.still_seconds is not None
    if not counted or one.demand == 0 or one.demand_seconds is None:
        assert by_canary
        return
    assert min(one.still_seconds, one.demand_seconds) >= AFTER
    assert not one.together
    works_by_power = one.cards.learned or one.cards.power_ratio is not None
    if works_by_power and not one.cards.low and one.canary != "failed":
        assert min(one.still_seconds, one.demand_seconds) >= 3 * AFTER


@given(service)
def test_proof_of_work_is_busy_for_a_server_that_is_up(one: ServiceEvidence) -> None:
    up = one.state in ("serving", "silent")
    assert (judge_service(one, AFTER).judgement == "busy") == (up and works(one))


@given(hang_evidence)
def test_a_card_is_stuck_only_by_a_service_that_is(evidence: HangEvidence) -> None:
    verdict = judge(evidence)
    judged = {s: judge_service(s, AFTER).judgement for s in evidence.services}
    stuck = [s.name for s in evidence.services if judged[s] in STUCK]
    if "node_fault" in judged.values() or evidence.node is not None:
        stuck = []
    readable = evidence.saturated_seconds is not None and evidence.required_seconds is not None
    looked = evidence.fresh and readable and evidence.fault is None
    saturated = looked and evidence.saturated_seconds >= evidence.required_seconds
    assert list(verdict.services) == (stuck if saturated else [])
    assert (verdict.judgement in STUCK) == bool(verdict.services)
    if evidence.node is not None:
        works_on = "busy" in judged.values()
        assert verdict.judgement == ("busy" if works_on else "node_fault")
    elif evidence.fault is None and not looked:
        assert verdict.judgement == "unknown"
    if verdict.judgement == "ghost":
        assert evidence.processes == 0
        assert evidence.memory_ratio is not None


@given(hang_evidence, service)
def test_a_busy_neighbour_refutes_utilisation_and_no_stall(
    evidence: HangEvidence, neighbour: ServiceEvidence
) -> None:
    assume(judge_service(neighbour, AFTER).judgement == "busy")
    alone = judge(evidence)
    beside = HangEvidence(**{**vars(evidence), "services": (*evidence.services, neighbour)})
    verdict = judge(beside)
    together = alone.judgement == "node_fault" and evidence.node is None
    if alone.judgement in STUCK or together:
        assert verdict == alone
    else:
        assert verdict.judgement not in (*STUCK, "suspect", "ghost")


def stalled(name: str = "vllm", **more: object) -> ServiceEvidence:
    values = {"progress_delta": 0.0, "still_seconds": 130.0, "demand": 2, "demand_seconds": 130.0}
    return ServiceEvidence(name, **{**values, **more})


LOW, WORKING = CardEvidence(power_ratio=0.2), CardEvidence(power_ratio=0.6)


def at(*each: CardPower, ratio: float | None = None) -> CardEvidence:
    return CardEvidence(power_ratio=ratio, each=each)


@pytest.mark.parametrize(
    ("one", "judgement"),
    [
        (stalled(), "stalled"),
        (stalled(canary="timed_out"), "hung"),
        (stalled(canary="failed"), "hung"),
        (stalled(cards=LOW), "hung"),
        (stalled(canary="answered"), "busy"),
        (stalled(progress_delta=1.0), "busy"),
        (stalled(still_seconds=119.0), "stalling"),
        (stalled(demand_seconds=119.0), "stalling"),
        # A long prompt emits nothing for minutes, and draws what work draws.
        (stalled(cards=WORKING), "stalling"),
        (stalled(cards=WORKING, canary="timed_out"), "stalling"),
        (stalled(cards=WORKING, still_seconds=360.0, demand_seconds=360.0), "stalled"),
        (stalled(demand=0, demand_seconds=0.0), "no_demand"),
        (stalled(demand=None, demand_seconds=None), "suspect"),
        (stalled(still_seconds=None), "suspect"),
        (stalled(cards=CardEvidence(fault="timeout")), "device_fault"),
        (stalled(cards=CardEvidence(readable=False)), "unknown"),
        (stalled(state="loading"), "loading"),
        (stalled(state="sleeping"), "sleeping"),
        (stalled(state="held"), "held"),
        (stalled(state="down"), "no_service"),
        (stalled(state="silent"), "suspect"),
        (ServiceEvidence("ollama", canary="timed_out"), "suspect"),
        (ServiceEvidence("ollama", canary="failed"), "hung"),
        (ServiceEvidence("ollama", canary="refused"), "suspect"),
        (ServiceEvidence("ollama", canary="failed", cards=CardEvidence("lost")), "device_fault"),
        (ServiceEvidence("ollama", canary="failed", cards=CardEvidence(readable=False)), "unknown"),
        # One that times out counts only at the power of rest, for two minutes, on every card.
        (ServiceEvidence("ollama", canary="timed_out", cards=at(power(120.0))), "hung"),
        (ServiceEvidence("ollama", canary="timed_out", cards=at(power(119.0))), "suspect"),
        (ServiceEvidence("ollama", canary="timed_out", cards=at(power(0.0, 900.0))), "suspect"),
        (
            ServiceEvidence("ollama", canary="timed_out", cards=at(power(500.0), power(0.0))),
            "suspect",
        ),
        (
            ServiceEvidence("ollama", canary="timed_out", cards=at(power(500.0), power(None))),
            "suspect",
        ),
        # A wedged engine may say that it has no request; our own is one.
        (stalled(demand=0, demand_seconds=0.0, canary="timed_out"), "suspect"),
        (stalled(demand=0, demand_seconds=0.0, canary="failed"), "hung"),
        # Learned bands take the place of the share of the limit.
        (stalled(cards=at(power(0.0, 0.0), ratio=0.1)), "stalling"),
        (stalled(cards=at(power(0.0, 59.0), ratio=0.1)), "stalling"),
        (stalled(cards=at(power(0.0, 60.0), ratio=0.9)), "hung"),
        (stalled(cards=at(power(None), ratio=0.9)), "stalling"),
        (stalled(cards=at(power(0.0, 0.0)), canary="failed"), "hung"),
        (stalled(together=("other",)), "node_fault"),
        (stalled(together=("other",), still_seconds=110.0), "stalling"),
        (stalled(node="no card answers"), "node_fault"),
        (stalled(node="no card answers", progress_delta=1.0), "busy"),
        (ServiceEvidence("ollama", canary="answered"), "busy"),
        (ServiceEvidence("ollama"), "suspect"),
    ],
)
def test_verdicts_on_a_service(one: ServiceEvidence, judgement: str) -> None:
    assert judge_service(one, AFTER).judgement == judgement


def saturated(*of: ServiceEvidence, **more: object) -> HangEvidence:
    values = {
        "fresh": True,
        "fault": None,
        "saturated_seconds": 45.0,
        "required_seconds": 30.0,
        "processes": 1,
        "memory_ratio": 0.5,
        "services": of,
        "stalled_after": AFTER,
    }
    return HangEvidence(**{**values, **more})


BUSY = ServiceEvidence("busy", progress_delta=12.0)
IDLE = stalled("idle", demand=0, demand_seconds=0.0)
OLLAMA = ServiceEvidence("ollama", canary="timed_out")


@pytest.mark.parametrize(
    ("evidence", "judgement", "services"),
    [
        (saturated(stalled()), "stalled", ("vllm",)),
        (saturated(BUSY, stalled(), IDLE), "stalled", ("vllm",)),
        (saturated(stalled("a"), stalled("b", cards=LOW)), "hung", ("a", "b")),
        (saturated(BUSY), "busy", ()),
        (saturated(BUSY, stalled(still_seconds=60.0)), "busy", ()),
        (saturated(stalled(still_seconds=60.0), OLLAMA), "stalling", ()),
        (saturated(stalled(cards=CardEvidence(fault="lost")), BUSY), "device_fault", ()),
        (saturated(stalled(), fault="the driver asks for reset"), "device_fault", ()),
        (saturated(OLLAMA), "suspect", ()),
        (saturated(IDLE), "suspect", ()),
        (saturated(IDLE, BUSY), "busy", ()),
        (saturated(ServiceEvidence("new", state="loading"), OLLAMA), "loading", ()),
        (saturated(ServiceEvidence("off", state="held")), "no_service", ()),
        (saturated(ServiceEvidence("off", state="down")), "no_service", ()),
        (saturated(), "no_service", ()),
        (saturated(IDLE, processes=0, memory_ratio=0.01), "ghost", ()),
        (saturated(processes=0, memory_ratio=0.01), "ghost", ()),
        (saturated(processes=None, memory_ratio=0.01), "no_service", ()),
        (saturated(processes=0, memory_ratio=None), "no_service", ()),
        (saturated(stalled(together=("far",)), stalled("b")), "node_fault", ()),
        (saturated(stalled(), node="no card answers"), "node_fault", ()),
        (saturated(BUSY, node="another card asks for a reboot"), "busy", ()),
        (saturated(stalled(), saturated_seconds=29.0), "not_saturated", ()),
        (saturated(stalled(), required_seconds=None), "unknown", ()),
        (saturated(stalled(), fresh=False), "unknown", ()),
        (saturated(stalled(), saturated_seconds=None), "unknown", ()),
    ],
)
def test_verdicts_on_a_card(
    evidence: HangEvidence, judgement: str, services: tuple[str, ...]
) -> None:
    verdict = judge(evidence)
    assert (verdict.judgement, verdict.services) == (judgement, services)
    assert verdict.sentence


def test_each_verdict_says_what_may_follow_and_only_a_proven_stall_a_restart() -> None:
    assert set(ALLOWED) == set(get_args(Judgement))
    assert {one for one, allowed in ALLOWED.items() if allowed == "restart"} == set(STUCK)
    assert judge(saturated(stalled())).allowed == "restart"
