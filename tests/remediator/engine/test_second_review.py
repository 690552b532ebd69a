"""What a second reader found, after the first one's findings were mended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from remediator.engine.gathering import BREAKER, PAUSED
from remediator.errors import ManagerError
from remediator.services import ServiceProbe
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.reserved import reserve

Make = Callable[..., Bench]
WARNING, CRITICAL = "GPUTemperatureWarning", "GPUTemperatureCritical"
SHUTDOWN, DOWN, HANG = "GPUTemperatureShutdown", "LLMServiceDown", "GPUHang"


class _Killed(BaseException):
    """The process ends here, as by SIGKILL."""


def _killed(*_: object) -> None:
    raise _Killed


def _held(bench: Bench) -> str | None:
    with bench.store.reading() as tx:
        return tx.inventory.service("ollama").held_reason


def _refuses(*_: object) -> None:
    raise ManagerError("pid 1 did not end on SIGTERM; it is left alone")


def test_a_stop_for_heat_does_not_wait_for_a_model_to_load(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    manager, driver = bench.managers["ollama"], bench.drivers["ollama"]
    with bench.store.transaction() as tx:
        tx.inventory.remember_models("ollama", ["m"])
    stop_process = manager.stop

    def stop_and_cool(*arguments: object) -> None:
        stop_process(*arguments)  # type: ignore[arg-type]
        bench.card.celsius = 80.0

    manager.stop = stop_and_cool  # type: ignore[method-assign]
    loading, loaded = threading.Event(), threading.Event()

    def load(model: str, timeout: float) -> None:
        loading.set()
        loaded.wait(20)

    driver.load = load  # type: ignore[method-assign]
    bench.card.celsius = 87.0
    bench.fire(CRITICAL)
    (restart,) = bench.evaluate()
    lighter = threading.Thread(target=bench.executor.execute, args=(restart,))
    lighter.start()
    assert loading.wait(20)
    manager.calls.clear()
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    (stop,) = bench.evaluate()
    heavier = threading.Thread(target=bench.executor.execute, args=(stop,))
    heavier.start()
    try:
        heavier.join(20)
        assert manager.calls == ["stop 1002"], "while the model still loads"
    finally:
        loaded.set()
        lighter.join(20)
        heavier.join(20)


def test_a_failed_stop_leaves_no_hold_on_a_service_that_runs(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    manager = bench.managers["ollama"]
    stop, manager.stop = manager.stop, _refuses  # type: ignore[method-assign, assignment]
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.act()
    bench.card.celsius = 60.0
    bench.resolve(SHUTDOWN)
    assert _held(bench) is None
    manager.stop = stop  # type: ignore[method-assign]
    manager.die()
    bench.fire(DOWN, service="ollama")
    bench.pass_time(60)
    assert manager.calls == ["start 1002"], "its next crash is not taken for our stop"


def test_a_failed_restart_leaves_no_hold_on_a_service_that_runs(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    manager = bench.managers["ollama"]
    bench.drivers["ollama"].forced = ServiceProbe("refused", "refused")
    stop, manager.stop = manager.stop, _refuses  # type: ignore[method-assign, assignment]
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.run.state == "failed"
    assert _held(bench) is None
    bench.resolve(DOWN, service="ollama")
    bench.drivers["ollama"].forced = None
    manager.stop = stop  # type: ignore[method-assign]
    bench.clock.advance(3600)
    manager.stop(None, 1)  # a person
    manager.calls.clear()
    bench.fire(DOWN, service="ollama")
    bench.pass_time(60)
    assert manager.calls == []


def test_a_hold_that_comes_meanwhile_is_not_written_over(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    (run,) = bench.evaluate()
    status = bench.managers["ollama"].status

    def held_meanwhile() -> object:
        with bench.store.transaction() as tx:
            tx.inventory.hold("ollama", "operator", "maintenance", bench.clock.now())
        return status()

    def arm() -> None:
        bench.managers["ollama"].status = held_meanwhile  # type: ignore[method-assign, assignment]

    bench.clock.at(9.5, arm)
    bench.executor.execute(run)
    assert bench.managers["ollama"].calls == []
    assert _held(bench) == "maintenance"


def test_a_manager_that_is_at_work_for_ever_is_a_persons_case(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    manager = bench.managers["ollama"]
    manager.identity, manager.state = None, "starting"
    bench.fire(DOWN, service="ollama")
    bench.pass_time(900, step=5)
    incident = bench.incident(DOWN, Target("service", "ollama"))
    assert incident is not None
    assert (incident.state, incident.reason) == ("needs_human", "manager_restarting")


def test_a_restart_that_has_begun_is_finished_whatever_the_mode_is_now(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    manager = bench.managers["ollama"]
    bench.drivers["ollama"].forced = ServiceProbe("refused", "refused")
    start, manager.start = manager.start, _killed  # type: ignore[method-assign, assignment]
    bench.fire(DOWN, service="ollama")
    bench.evaluate()
    with pytest.raises(_Killed):
        bench.execute()
    manager.start = start  # type: ignore[method-assign]
    bench.drivers["ollama"].forced = None
    with bench.store.transaction() as tx:
        tx.set_meta(PAUSED, "maintenance")
    bench.restart()
    bench.execute()
    assert manager.calls == ["stop 1001", "start 1002"]


def test_a_run_that_nobody_approved_ends_where_approval_is_wanted_now(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.evaluate()
    bench.config = replace(bench.config, mode="approve")
    bench.restart()
    bench.execute()
    assert bench.managers["ollama"].calls == []
    assert (bench.run.state, bench.run.reason) == ("refused", "needs_approval")


def test_stops_that_fail_use_up_nobodys_budget(make_bench: Make) -> None:
    bench = make_bench(services=("a", "b"))
    bench.managers["a"].stop = _refuses  # type: ignore[method-assign, assignment]
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.pass_time(900, step=5)
    assert len([run for run in bench.runs if run.state == "failed"]) >= 3
    with bench.store.reading() as tx:
        assert tx.get_meta(BREAKER) is None
    tries = len(bench.runs)
    bench.pass_time(900, step=5)
    assert len(bench.runs) - tries < tries, "it is asked ever more rarely"


def test_a_run_that_was_overtaken_leaves_the_hold_of_who_took_over(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.drivers["ollama"].forced = ServiceProbe("refused", "refused")
    bench.fire(DOWN, service="ollama")
    bench.evaluate()

    def taken_over(*_: object) -> None:
        with bench.store.transaction() as tx:
            stop = reserve(
                tx,
                Target("gpu", bench.uuids[0]),
                bench.clock.now(),
                playbook="emergency-stop",
                weight=90,
                safe=True,
                trigger=SHUTDOWN,
            )
            tx.runs.take_over(stop.id, (Target("service", "ollama"),))
            tx.inventory.hold("ollama", "gpu-remediator", "heat", bench.clock.now())
        raise ManagerError("it does not end yet")

    bench.managers["ollama"].stop = taken_over  # type: ignore[method-assign, assignment]
    bench.executor.execute(bench.runs[0].id)
    assert bench.runs[0].state == "failed"
    assert _held(bench) == "heat"


def test_a_person_who_was_called_is_not_silenced_by_a_run_that_was_only_paused(
    make_bench: Make,
) -> None:
    bench = make_bench(services=("ollama",))
    target = Target("service", "ollama")
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.evaluate()
    with bench.store.transaction() as tx:
        tx.incidents.put(
            episode_id=1,
            trigger=DOWN,
            target=target,
            playbook="recover-oom",
            state="needs_human",
            reason="error",
            last_step="restart_service",
            now=bench.clock.now(),
        )
        tx.set_meta(PAUSED, "maintenance")
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("cancelled", "paused")
    incident = bench.incident(DOWN, target)
    assert incident is not None
    assert (incident.state, incident.reason) == ("needs_human", "error")


def test_a_rung_that_waited_for_its_service_looks_at_the_card_again(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.celsius = 87.0
    bench.fire(CRITICAL)
    (run,) = bench.evaluate()
    with bench.store.transaction() as tx:
        other = reserve(
            tx,
            Target("service", "ollama"),
            bench.clock.now(),
            playbook="recover-oom",
            weight=50,
            trigger=DOWN,
            locks=(Target("service", "ollama"),),
        )

    def over() -> None:
        bench.card.celsius = 60.0
        with bench.store.transaction() as tx:
            tx.runs.end(other.id, "succeeded", "verified", "", bench.clock.now())

    bench.clock.at(200, over)
    bench.executor.execute(run)
    assert bench.managers["ollama"].calls == [], "the card is cool by the time it gets the service"
    assert bench.runs[0].state == "succeeded"


def test_a_run_that_only_verifies_takes_no_service_from_others(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.evaluate()
    bench.clock.at(30, _killed)
    with pytest.raises(_Killed):
        bench.execute()
    assert bench.run.state == "verifying"
    bench.card.celsius = 60.0
    with bench.store.transaction() as tx:
        other = reserve(
            tx,
            Target("service", "ollama"),
            bench.clock.now(),
            playbook="recover-oom",
            weight=50,
            trigger=DOWN,
            locks=(Target("service", "ollama"),),
        )
    bench.restart()
    bench.executor.execute(1)
    with bench.store.reading() as tx:
        still = tx.runs.get(other.id)
    assert still is not None
    assert still.cancel_reason is None
    assert bench.runs[0].state == "succeeded"


def test_the_late_end_of_an_earlier_firing_does_not_end_the_new_one(bench: Bench) -> None:
    bench.card.celsius = 84.0
    bench.fire(WARNING)
    bench.resolve(WARNING)
    bench.clock.advance(600)
    late_start = bench.clock.now() - 500
    bench.fire(WARNING, ago=0)
    bench._notify("resolved", WARNING, None, None, late_start, late_start + 60)
    with bench.store.reading() as tx:
        assert len(tx.episodes.open_all()) == 1
