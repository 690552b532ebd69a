"""What a hostile reader found: each way to be wrong at night, as a test of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from remediator.engine.gathering import BREAKER, PAUSED, close_breaker
from remediator.engine.leases import LeaseKeeper
from remediator.errors import ManagerError, ServiceTimeout
from remediator.services import ServiceProbe
from remediator.targets import Target
from tests.remediator.engine.bench import Bench

Make = Callable[..., Bench]
WARNING, CRITICAL = "GPUTemperatureWarning", "GPUTemperatureCritical"
SHUTDOWN, DOWN, HANG = "GPUTemperatureShutdown", "LLMServiceDown", "GPUHang"


class _Killed(BaseException):
    """The process ends here, as by SIGKILL."""


def _killed(*_: object) -> None:
    raise _Killed


# A stop for heat


def test_caps_that_did_not_help_do_not_keep_a_stop_for_heat_back(make_bench: Make) -> None:
    bench = make_bench(gpus=3, services=("ollama",))
    for uuid in bench.uuids:
        bench.cards[uuid].celsius = 84.0
        bench.fire(WARNING, uuid=uuid)
    bench.act()
    assert {run.state for run in bench.runs} == {"ineffective"}
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.clock.at(bench.clock.passed + 20, lambda: setattr(bench.card, "celsius", 70.0))
    bench.act()
    assert bench.managers["ollama"].calls == ["stop 1001"]


def test_an_open_breaker_does_not_keep_a_stop_for_heat_back(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    with bench.store.transaction() as tx:
        tx.set_meta(BREAKER, "three restarts failed")
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.clock.at(20, lambda: setattr(bench.card, "celsius", 70.0))
    bench.act()
    assert bench.managers["ollama"].calls == ["stop 1001"]


def test_a_storm_of_stops_opens_the_breaker(make_bench: Make) -> None:
    bench = make_bench(gpus=4, services=("ollama",))
    for uuid in bench.uuids:
        bench.cards[uuid].celsius = 92.0
        bench.fire(SHUTDOWN, uuid=uuid)
        bench.clock.at(
            bench.clock.passed + 5, lambda card=bench.cards[uuid]: setattr(card, "celsius", 70.0)
        )
        bench.managers["ollama"].start(1)
        bench.act()
        bench.cards[uuid].celsius = 92.0
    stopped = [call for call in bench.managers["ollama"].calls if call.startswith("stop")]
    assert len(stopped) == 2, "two cards may be that hot; four at once are a broken sensor"
    assert bench.decisions[-1] == "refuse:breaker_open"
    with bench.store.reading() as tx:
        assert tx.get_meta(BREAKER) is not None


@pytest.mark.parametrize("broken", ["will not stop", "does not answer"])
def test_one_service_that_does_not_stop_does_not_save_the_others(
    make_bench: Make, broken: str
) -> None:
    bench = make_bench(services=("a", "b"))

    def refuses(*_: object) -> None:
        raise ManagerError("pid 1 did not end on SIGTERM; it is left alone")

    if broken == "will not stop":
        bench.managers["a"].stop = refuses  # type: ignore[method-assign]
    else:
        bench.managers["a"].fails = "supervisord does not answer"
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.act()
    assert bench.managers["b"].calls == ["stop 1001"]
    assert bench.run.state == "failed"
    incident = bench.incident(SHUTDOWN)
    assert incident is not None
    assert incident.state == "needs_human"
    bench.pass_time(70)
    assert len(bench.runs) > 1, "it is as hot as before, so it is asked again"


def test_two_hot_cards_that_share_a_service_do_not_wait_for_each_other(make_bench: Make) -> None:
    bench = make_bench(gpus=2, services=("ollama",))
    first, second = bench.uuids
    bench.cards[first].celsius = 87.0
    bench.cards[second].heat_by_power(full=87.0, capped=70.0, below_watts=150.0)
    bench.fire(CRITICAL, uuid=first)
    bench.fire(CRITICAL, uuid=second)
    runs = bench.evaluate()
    assert len(runs) == 2, "a cap locks its card only"
    bench.executor.execute(runs[1])
    assert bench.cards[second].watts == 100.0


def test_a_stop_for_heat_takes_the_card_from_a_lighter_run_at_once(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.celsius = 87.0
    bench.fire(CRITICAL)
    (lighter,) = bench.evaluate()

    def hotter() -> None:
        bench.card.celsius = 92.0
        bench.fire(SHUTDOWN)
        (stop,) = bench.evaluate()
        bench.clock.at(bench.clock.passed + 5, lambda: setattr(bench.card, "celsius", 60.0))
        bench.executor.execute(stop)

    bench.clock.at(10, hotter)
    bench.executor.execute(lighter)
    cool_down, stop = bench.runs
    assert (cool_down.state, cool_down.reason) == ("cancelled", "superseded")
    assert (stop.playbook, stop.state) == ("emergency-stop", "succeeded")
    assert bench.managers["ollama"].calls == ["stop 1001"]


def test_a_restart_that_a_stop_for_heat_overtakes_starts_nothing(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.celsius = 60.0
    bench.drivers["ollama"].forced = ServiceProbe("refused", "refused")
    bench.fire(DOWN, service="ollama")
    (restart,) = bench.evaluate()
    manager = bench.managers["ollama"]
    stop_process = manager.stop

    def hot_meanwhile(*arguments: object) -> None:
        manager.stop = stop_process  # type: ignore[method-assign]
        stop_process(*arguments)  # type: ignore[arg-type]
        bench.card.celsius = 92.0
        bench.fire(SHUTDOWN)
        (stop,) = bench.evaluate()
        bench.clock.at(bench.clock.passed + 5, lambda: setattr(bench.card, "celsius", 60.0))
        bench.executor.execute(stop)

    manager.stop = hot_meanwhile  # type: ignore[method-assign]
    bench.executor.execute(restart)
    assert not any(call.startswith("start") for call in manager.calls)
    with bench.store.reading() as tx:
        assert "shutdown temperature" in str(tx.inventory.service("ollama").held_reason)


def test_a_service_that_has_crashed_when_the_stop_comes_is_held_too(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.clock.at(20, lambda: setattr(bench.card, "celsius", 60.0))
    bench.act()
    bench.fire(DOWN, service="ollama")
    bench.pass_time(30)
    assert bench.managers["ollama"].calls == []
    assert bench.decisions[-1] == "refute:held"


def test_a_manager_that_is_wrong_about_a_stop_is_not_believed(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    bench.drivers["ollama"].forced = ServiceProbe("ready", "answers all the same")
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("failed", "still_answers")


# A restart


def test_a_restart_that_finds_the_card_too_hot_leaves_a_service_that_should_be_up(
    make_bench: Make,
) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.celsius = 88.0
    bench.fire(CRITICAL)
    bench.act()
    assert bench.run.state == "failed"
    assert bench.managers["ollama"].calls == ["stop 1001"]
    bench.card.celsius = 60.0
    bench.resolve(CRITICAL)
    bench.fire(DOWN, service="ollama")
    bench.pass_time(120)
    assert bench.managers["ollama"].calls[-1].startswith("start")


def test_a_restart_leaves_alone_what_an_operator_holds(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    with bench.store.transaction() as tx:
        tx.inventory.hold("ollama", "operator", "maintenance", bench.clock.now())
    bench.managers["ollama"].die()
    bench.card.celsius = 88.0
    bench.fire(CRITICAL)
    bench.act()
    assert bench.managers["ollama"].calls == []


# After a crash


@pytest.mark.parametrize("cooled", [True, False])
def test_a_stop_that_was_cut_off_is_looked_at_again(make_bench: Make, cooled: bool) -> None:
    bench = make_bench(services=("ollama",))
    manager = bench.managers["ollama"]
    stop, manager.stop = manager.stop, _killed  # type: ignore[method-assign, assignment]
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.evaluate()
    with pytest.raises(_Killed):
        bench.execute()
    manager.stop = stop  # type: ignore[method-assign]
    bench.restart()
    bench.clock.advance(5 * 3600 if cooled else 30)
    if cooled:
        bench.card.celsius = 50.0
    else:
        bench.clock.at(bench.clock.passed + 20, lambda: setattr(bench.card, "celsius", 50.0))
    bench.execute()
    assert manager.calls == ([] if cooled else ["stop 1001"])
    assert bench.run.state == ("refused" if cooled else "succeeded")


def test_a_cap_that_was_cut_off_is_not_written_once_the_card_is_cool(bench: Bench) -> None:
    write, bench.control.set_power_limit = bench.control.set_power_limit, _killed  # type: ignore[method-assign, assignment]
    bench.card.celsius = 84.0
    bench.fire(WARNING)
    bench.evaluate()
    with pytest.raises(_Killed):
        bench.execute()
    bench.control.set_power_limit = write  # type: ignore[method-assign]
    bench.restart()
    bench.clock.advance(3600)
    bench.card.celsius = 50.0
    bench.pass_time(90)
    assert bench.written_watts == []
    assert bench.open_leases == []


def test_a_new_mode_holds_for_the_run_that_was_left(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.evaluate()
    bench.config = replace(bench.config, mode="observe", allow=())
    bench.restart()
    bench.execute()
    assert bench.managers["ollama"].calls == []
    assert (bench.run.state, bench.run.reason) == ("refused", "mode_observe")
    assert bench.incident(DOWN, Target("service", "ollama")) is None, "that refutes no fault"


def test_a_pause_holds_for_the_next_step(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.evaluate()

    def pause() -> None:
        with bench.store.transaction() as tx:
            tx.set_meta(PAUSED, "maintenance")

    bench.clock.at(3, pause)
    bench.execute()
    assert bench.managers["ollama"].calls == []
    assert (bench.run.state, bench.run.reason) == ("cancelled", "paused")
    with bench.store.transaction() as tx:
        tx.set_meta(PAUSED, None)
    bench.pass_time(120)
    assert bench.managers["ollama"].calls == ["start 1002"], "nothing had been done yet"


# Who is woken


def test_what_waits_for_a_person_claims_nothing(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), mode="approve")
    bench.card.celsius = 87.0
    bench.fire(CRITICAL)
    bench.act()
    assert bench.run.state == "awaiting_approval"
    assert bench.incident(CRITICAL) is None, "so that IncidentUnresolved reaches on-call"


def test_what_waits_for_a_person_is_in_nobodys_way(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), playbooks={"cool-down": {"mode": "approve"}})
    bench.card.celsius = 87.0
    bench.fire(CRITICAL)
    bench.act()
    bench.fire(WARNING)
    bench.pass_time(5)
    assert bench.card.watts == 320.0


def test_a_saturated_card_without_a_service_wakes_nobody(bench: Bench) -> None:
    bench.card.saturated_seconds = 45.0
    bench.fire(HANG)
    bench.pass_time(900, step=5)
    assert bench.incident(HANG) is None
    assert bench.runs == []


def test_a_suspicion_is_taken_back_by_a_canary_that_answers(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    driver = bench.drivers["ollama"]
    driver.models = {"llama3:8b"}
    driver.canary_error = ServiceTimeout("no answer")
    bench.card.saturated_seconds = 45.0
    bench.fire(HANG)
    bench.pass_time(600, step=5)
    incident = bench.incident(HANG)
    assert incident is not None
    assert incident.state == "needs_human"
    driver.canary_error = None
    bench.pass_time(120, step=5)
    incident = bench.incident(HANG)
    assert incident is not None
    assert (incident.state, incident.reason) == ("refuted", "busy")


def test_observing_calls_nobody_for_a_suspicion(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), mode="observe")
    driver = bench.drivers["ollama"]
    driver.models = {"llama3:8b"}
    driver.canary_error = ServiceTimeout("no answer")
    bench.card.saturated_seconds = 45.0
    bench.fire(HANG)
    bench.pass_time(900, step=5)
    assert bench.incident(HANG) is None


def test_an_acknowledged_flapping_card_is_not_paged_again_for_the_same_cap(
    make_bench: Make,
) -> None:
    bench = make_bench(limits={"flap_episodes_per_hour": 1})
    bench.card.heat_by_power(full=84.0, capped=70.0)
    bench.fire(WARNING)
    bench.act()
    bench.resolve(WARNING)
    bench.pass_time(5)
    incident = bench.incident(WARNING)
    assert incident is not None
    assert incident.reason == "flapping"
    with bench.store.transaction() as tx:
        tx.incidents.close(incident.id, bench.clock.now())
    bench.pass_time(30)
    assert bench.incident(WARNING) is None


# Acting once, and at all


def test_a_run_that_was_overtaken_before_it_did_anything_has_not_acted(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.celsius = 86.0
    bench.fire(WARNING)
    bench.evaluate()
    bench.fire(CRITICAL)
    bench.evaluate()
    bench.card.celsius = 84.0  # not critical any more when the heavier one looks again
    bench.execute()
    bench.pass_time(90)
    assert bench.written_watts == [320.0]


def test_two_alerts_of_one_card_from_two_jobs_are_one_fault(bench: Bench) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire(WARNING)
    bench.act()
    bench.card.celsius = 84.0
    bench.card.heat_by_power(full=84.0, capped=84.0)
    bench.fire(WARNING, job="gpu-exporter-2")
    bench.pass_time(10)
    assert len(bench.runs) == 1
    assert bench.decisions[-1] == "refuse:duplicate"


def test_a_person_who_closes_the_breaker_is_obeyed(make_bench: Make) -> None:
    bench = make_bench(
        services=("ollama",), limits={"breaker_failures": 1, "attempts_per_hour": 10}
    )
    bench.drivers["ollama"].forced = ServiceProbe("refused", "refused")
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.run.state == "failed"
    bench.resolve(DOWN, service="ollama")
    bench.pass_time(120)
    bench.drivers["ollama"].forced = None
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.decisions[-1] == "refuse:breaker_open"
    with bench.store.transaction() as tx:
        close_breaker(tx)
    bench.pass_time(60)
    assert bench.runs[-1].state == "succeeded"


def test_an_alert_that_ends_while_it_is_looked_at_starts_nothing(bench: Bench) -> None:
    bench.card.celsius = 84.0
    bench.fire(WARNING)
    look = bench.gpus.one

    def resolved_meanwhile(uuid: str) -> object:
        bench.resolve(WARNING)
        return look(uuid)

    bench.gpus.one = resolved_meanwhile  # type: ignore[method-assign, assignment]
    assert bench.evaluate() == []
    assert bench.runs == []


# Undo


def test_an_undo_without_a_server_does_not_wait_for_a_run_nobody_executes(bench: Bench) -> None:
    bench.card.heat_by_power(full=84.0, capped=70.0)
    bench.fire(WARNING)
    bench.evaluate()

    def gone() -> None:
        raise _Killed

    bench.clock.at(1, gone)
    with pytest.raises(_Killed):
        bench.execute()
    assert bench.written_watts == [320.0]
    bench.restart()
    (lease,) = bench.open_leases
    with bench.store.transaction() as tx:
        tx.leases.request_undo(lease.id)
    LeaseKeeper(bench.world, bench.counters, nobody_executes=True).tick()
    assert bench.written_watts == [320.0, 400.0]


def test_a_value_that_somebody_set_under_a_cap_is_the_one_to_restore(make_bench: Make) -> None:
    bench = make_bench()
    bench.card.heat_by_power(full=84.0, capped=70.0, below_watts=360.0)
    bench.fire(WARNING)
    bench.act()
    bench.card.watts = 350.0  # an operator's own choice
    bench.card.celsius = 87.0
    bench.card.heat_by_power(full=87.0, capped=60.0, below_watts=150.0)
    bench.fire(CRITICAL)
    bench.act()
    bench.resolve(WARNING)
    bench.resolve(CRITICAL)
    bench.pass_time(120)
    assert bench.written_watts[-1] == 350.0
