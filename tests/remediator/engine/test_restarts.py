"""Restarting and stopping services: on evidence, within budgets, never on an unfit card."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.engine.gathering import BREAKER
from remediator.errors import ServiceError, ServiceTimeout
from remediator.services import ServiceProbe
from remediator.targets import Target
from tests.remediator.engine.bench import Bench

DOWN = "LLMServiceDown"
SERVICE = Target("service", "ollama")
Make = Callable[..., Bench]


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    one = make_bench(services=("ollama",))
    one.drivers["ollama"].models = {"llama3:8b"}
    one.prober.probe(one.world.services["ollama"])
    return one


def crash(bench: Bench) -> None:
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")


def crash_again(bench: Bench) -> None:
    """A new episode of the same alert, once the last one has been forgotten."""
    bench.resolve(DOWN, service="ollama")
    bench.clock.advance(90)
    crash(bench)


def test_a_dead_service_is_started_loaded_and_asked(bench: Bench) -> None:
    crash(bench)
    bench.act()
    assert bench.run.state == "succeeded"
    assert bench.managers["ollama"].calls == ["start 1002"]
    assert bench.drivers["ollama"].loads == ["llama3:8b"]
    assert bench.drivers["ollama"].canaries == ["llama3:8b"] * 2, "to warm it up, and as the proof"
    with bench.store.reading() as tx:
        assert tx.inventory.service("ollama").restarts == 1


def test_a_service_that_answers_again_is_left_alone(bench: Bench) -> None:
    crash(bench)
    bench.clock.at(5, lambda: bench.managers["ollama"].start(1))
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("refused", "healthy")
    assert bench.managers["ollama"].calls == ["start 1002"], "by its manager, not by us"


@pytest.mark.parametrize(
    ("arrange", "decision"),
    [
        (lambda bench: bench.managers["ollama"].stop(None, 1), "refute:stopped_by_operator"),
        (lambda bench: bench.managers["ollama"].start(1), "refute:healthy"),
        (
            lambda bench: setattr(bench.managers["ollama"], "state", "starting"),
            "defer:manager_restarting",
        ),
        (
            lambda bench: setattr(bench.managers["ollama"], "fails", "supervisord is gone"),
            "defer:manager_silent",
        ),
    ],
)
def test_what_is_not_down_is_not_restarted(
    bench: Bench, arrange: Callable[[Bench], object], decision: str
) -> None:
    if decision != "refute:stopped_by_operator":
        bench.managers["ollama"].die()
    arrange(bench)
    bench.managers["ollama"].calls.clear()
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.decisions == [decision]
    assert bench.managers["ollama"].calls == []


@pytest.mark.parametrize("state", ["silent", "error"])
def test_a_running_server_that_is_slow_or_unwell_is_not_down(bench: Bench, state: str) -> None:
    bench.drivers["ollama"].forced = ServiceProbe(state, "HTTP 500")
    bench.fire(DOWN, service="ollama")
    bench.pass_time(30)
    assert bench.runs == []
    assert bench.decisions[0].startswith("defer:")
    assert bench.managers["ollama"].calls == []
    assert bench.incident(DOWN, SERVICE) is None, "nobody claims to be recovering it"


def test_a_service_that_we_hold_down_is_not_started(bench: Bench) -> None:
    bench.managers["ollama"].die()
    with bench.store.transaction() as tx:
        tx.inventory.hold("ollama", "gpu-remediator", "too hot", bench.clock.now())
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.decisions == ["refute:held"]


@pytest.mark.parametrize("fault", ["hot", "lost", "old", "blind"])
def test_a_recovery_waits_until_the_card_is_fit(bench: Bench, fault: str) -> None:
    bench.card.celsius = 90.0 if fault == "hot" else 60.0
    bench.card.fault = "lost" if fault == "lost" else None
    bench.card.age = 60.0 if fault == "old" else 0.4
    bench.gpus.silent = fault == "blind"
    crash(bench)
    bench.pass_time(30)
    assert bench.decisions == ["defer:card_unfit"]
    assert "not started" in bench.events("decision")[0]["sentence"]
    assert bench.incident(DOWN, SERVICE) is None, "nobody claims to be recovering it"
    assert bench.managers["ollama"].calls == []
    bench.card.celsius, bench.card.fault, bench.card.age = 60.0, None, 0.4
    bench.gpus.silent = False
    bench.pass_time(5)
    assert bench.run.state == "succeeded"
    assert bench.managers["ollama"].calls == ["start 1002"]


def test_a_card_that_becomes_unfit_during_a_recovery_ends_it(bench: Bench) -> None:
    crash(bench)
    bench.clock.at(5, lambda: setattr(bench.card, "fault", "lost"))
    bench.act()
    assert bench.run.state == "failed"
    assert "not started" in bench.run.sentence
    assert bench.managers["ollama"].calls == []
    assert bench.incident(DOWN, SERVICE).state == "needs_human"


def test_a_failed_canary_fails_the_run(bench: Bench) -> None:
    bench.drivers["ollama"].canary_error = ServiceError("the canary failed (HTTP 500)")
    crash(bench)
    bench.act()
    assert bench.run.state == "failed"
    assert bench.incident(DOWN, SERVICE).state == "needs_human"


def test_a_fault_of_our_own_ends_the_run_instead_of_repeating_it(bench: Bench) -> None:
    def broken(model: str, timeout: float) -> None:
        bench.drivers["ollama"].loads.append(model)
        raise KeyError("models")

    bench.drivers["ollama"].load = broken
    crash(bench)
    bench.pass_time(120)
    assert (bench.run.state, bench.run.reason) == ("ambiguous", "internal_error")
    assert bench.drivers["ollama"].loads == ["llama3:8b"]
    assert bench.incident(DOWN, SERVICE).state == "needs_human"


def test_restarts_settle_and_cool_down_before_the_next(bench: Bench) -> None:
    crash(bench)
    bench.act()
    bench.resolve(DOWN, service="ollama")
    bench.clock.advance(1)
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama", ago=0)
    bench.act()
    assert bench.decisions[-1] == "defer:settling"
    bench.pass_time(20)
    assert bench.decisions[-1] == "defer:cooldown"
    assert bench.incident(DOWN, SERVICE).state == "recovering"
    bench.pass_time(60)
    assert [run.state for run in bench.runs] == ["succeeded", "succeeded"]
    first, second = bench.runs
    assert second.created_at - first.ended_at >= 60


def test_attempts_are_limited_and_then_a_person_is_told(bench: Bench) -> None:
    crash(bench)
    bench.act()
    for _ in range(4):
        crash_again(bench)
        bench.act()
    assert len(bench.runs) == 3
    assert bench.decisions[-1] == "refuse:attempts"
    assert bench.incident(DOWN, SERVICE).state == "needs_human"


def test_the_rate_of_the_whole_machine_is_limited(make_bench: Make) -> None:
    names = tuple(f"llm{i}" for i in range(4))
    bench = make_bench(
        services=names, limits={"destructive_per_hour": 2, "breaker_targets": 9}, gpus=1
    )
    for name in names:
        bench.managers[name].die()
        bench.fire(DOWN, service=name)
        bench.act()
    assert len(bench.runs) == 2
    assert bench.decisions[-1] == "refuse:rate_limit"


def test_many_targets_at_once_open_the_breaker_until_a_person_resumes(make_bench: Make) -> None:
    names = tuple(f"llm{i}" for i in range(4))
    bench = make_bench(services=names)
    for name in names:
        bench.managers[name].die()
        bench.fire(DOWN, service=name)
        bench.act()
    assert len(bench.runs) == 2
    assert bench.decisions[-2:] == ["refuse:breaker_open", "refuse:breaker_open"]
    assert bench.incident(DOWN, Target("service", "llm3")).state == "needs_human"
    bench.restart()
    bench.pass_time(400)
    assert len(bench.runs) == 2, "neither time nor a restart closes it"
    with bench.store.transaction() as tx:
        tx.set_meta(BREAKER, None)
    bench.pass_time(60)
    assert len(bench.runs) > 2


def test_an_open_breaker_keeps_back_no_notification_and_no_cap(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    with bench.store.transaction() as tx:
        tx.set_meta(BREAKER, "3 destructive runs failed")
    bench.fire("HostDiskSpaceLow")
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire("GPUTemperatureWarning")
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.pass_time(10)
    assert "notify:no_playbook" in bench.decisions
    assert "refuse:breaker_open" in bench.decisions
    assert bench.incident(DOWN, Target("service", "ollama")).state == "needs_human"
    assert bench.written_watts == [320.0]
    assert bench.managers["ollama"].calls == []


def test_false_alerts_do_not_open_the_breaker(make_bench: Make) -> None:
    names = tuple(f"llm{i}" for i in range(6))
    bench = make_bench(services=names)
    for name in names:
        if name in ("llm0", "llm1"):
            bench.managers[name].die()
        bench.fire(DOWN, service=name)
        bench.act()
    assert bench.decisions[-4:] == ["refute:healthy"] * 4
    assert bench.events("breaker_opened") == []


def test_a_critical_card_is_capped_and_its_service_restarted_only_if_that_fails(
    bench: Bench,
) -> None:
    manager = bench.managers["ollama"]
    # The cap does not help; without its process the card cools.
    bench.card.celsius = 88.0
    stop = manager.stop

    def stop_and_cool(identity: object, timeout: float) -> None:
        stop(identity, timeout)
        bench.clock.at(bench.clock.passed + 20, lambda: setattr(bench.card, "celsius", 70.0))

    manager.stop = stop_and_cool
    bench.fire("GPUTemperatureCritical")
    bench.act()
    assert bench.written_watts == [100.0]
    assert manager.calls == ["stop 1001", "start 1002"]
    assert bench.run.state == "succeeded"
    assert bench.run.destructive, "it counts in the budgets of what interrupts services"


def test_a_service_that_was_stopped_for_heat_is_not_started_on_a_card_that_stays_hot(
    bench: Bench,
) -> None:
    bench.card.celsius = 88.0
    bench.fire("GPUTemperatureCritical")
    bench.act()
    assert bench.managers["ollama"].calls == ["stop 1001"]
    assert bench.run.state == "failed"
    assert "too hot" in bench.run.sentence


def test_a_cap_that_helps_restarts_nothing(bench: Bench) -> None:
    bench.card.heat_by_power(full=86.0, capped=70.0, below_watts=150.0)
    bench.fire("GPUTemperatureCritical")
    bench.act()
    assert bench.run.state == "succeeded"
    assert bench.managers["ollama"].calls == []
    assert not bench.run.destructive


def test_a_later_rung_passes_its_gates_anew(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), allow=[])
    bench.card.celsius = 88.0
    bench.fire("GPUTemperatureCritical")
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("ineffective", "not_allowed")
    assert bench.written_watts == [100.0]
    assert bench.managers["ollama"].calls == []


def test_restarts_by_a_later_rung_use_up_the_budget(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), limits={"destructive_per_hour": 1})
    bench.card.celsius = 88.0
    bench.fire("GPUTemperatureCritical")
    bench.act()
    assert bench.run.destructive
    bench.card.celsius = 60.0
    bench.clock.advance(120)
    crash(bench)
    bench.act()
    assert bench.decisions[-1] == "refuse:rate_limit"


def test_every_service_on_a_card_above_its_shutdown_temperature_is_stopped_and_held(
    make_bench: Make,
) -> None:
    bench = make_bench(services=("ollama", "vllm"))
    bench.card.celsius = 92.0
    bench.clock.at(30, lambda: setattr(bench.card, "celsius", 70.0))
    bench.fire("GPUTemperatureShutdown")
    bench.act()
    assert bench.run.state == "succeeded"
    for manager in bench.managers.values():
        assert manager.calls == ["stop 1001"]
    with bench.store.reading() as tx:
        assert tx.inventory.service("vllm").held_by == "gpu-remediator"
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.decisions[-1] == "refute:held"


def test_a_card_with_several_services_is_not_restarted_by_guess(make_bench: Make) -> None:
    bench = make_bench(services=("ollama", "vllm"))
    bench.card.celsius = 88.0
    bench.fire("GPUTemperatureCritical")
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("ineffective", "still_present")
    assert bench.managers["ollama"].calls == bench.managers["vllm"].calls == []


def test_busy_is_not_hung(bench: Bench) -> None:
    bench.card.saturated_seconds = 45.0
    bench.fire("GPUHang")
    bench.act()
    assert bench.decisions == ["refute:busy"]
    assert bench.managers["ollama"].calls == []
    assert bench.incident("GPUHang").state == "refuted"


def test_a_suspicion_of_a_hang_restarts_nothing_and_tells_a_person(bench: Bench) -> None:
    bench.card.saturated_seconds = 45.0
    bench.drivers["ollama"].canary_error = ServiceTimeout("no answer")
    bench.fire("GPUHang")
    bench.pass_time(120)
    assert bench.decisions == ["defer:suspect"]
    assert bench.incident("GPUHang") is None, "a canary that may only be queued wakes nobody"
    bench.pass_time(200)
    assert bench.decisions == ["defer:suspect", "refuse:suspect"]
    assert bench.runs == []
    assert bench.managers["ollama"].calls == []
    assert bench.incident("GPUHang").state == "needs_human"


def test_a_stop_for_heat_also_stops_what_the_manager_put_in_its_place(bench: Bench) -> None:
    manager = bench.managers["ollama"]
    bench.card.celsius = 92.0
    bench.clock.at(30, lambda: setattr(bench.card, "celsius", 70.0))
    bench.fire("GPUTemperatureShutdown")
    (run,) = bench.evaluate()
    stop = manager.stop

    def replaced_first(identity: object, timeout: float) -> None:
        if identity is not None:
            manager.die()
            manager.start(1)  # supervisord restarts what crashed
        stop(identity, timeout)

    manager.stop = replaced_first
    bench.executor.execute(run)
    assert manager.calls == ["start 1002", "stop 1002"]
    assert bench.run.state == "succeeded"


def test_a_resumed_stop_leaves_what_was_started_meanwhile(bench: Bench) -> None:
    manager = bench.managers["ollama"]
    bench.card.celsius = 92.0
    bench.fire("GPUTemperatureShutdown")
    (run,) = bench.evaluate()

    def crash_in_the_middle(identity: object, timeout: float) -> None:
        raise KeyboardInterrupt

    stop, manager.stop = manager.stop, crash_in_the_middle
    with pytest.raises(KeyboardInterrupt):
        bench.executor.execute(run)
    manager.stop = stop
    manager.die()
    manager.start(1)
    bench.restart()
    bench.executor.execute(run)
    assert (bench.run.state, bench.run.reason) == ("failed", "runs_again")
    assert manager.status().running
    assert bench.incident("GPUTemperatureShutdown").state == "needs_human"
