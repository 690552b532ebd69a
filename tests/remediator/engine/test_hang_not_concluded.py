"""recover-hang where nothing may be concluded: a fault of the card, no sight of it, a watch begun anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.managers import ProcessIdentity
from remediator.services import ServiceProbe
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.hang_scene import Scene, stall

Make = Callable[..., Bench]
STALLED = "LLMServiceStalled"
VLLM = Target("service", "vllm")


@pytest.fixture
def scene(make_bench: Make) -> Scene:
    """One service with an engine on one saturated card."""
    return Scene(make_bench(services=("vllm",)))


@pytest.mark.parametrize("target", [None, VLLM], ids=["card", "service"])
def test_a_fault_of_the_device_is_not_cured_by_a_restart(
    scene: Scene, target: Target | None
) -> None:
    stall(scene)
    scene.bench.pass_time(200)
    assert scene.finding(target).state == "present"
    scene.card.recovery_action = "reset"
    finding = scene.finding(target)
    assert (finding.state, finding.reason, finding.critical) == ("unknown", "device_fault", False)
    scene.bench.fire("GPUHang")
    scene.bench.fire(STALLED, service="vllm")
    scene.bench.pass_time(300, step=5)
    assert scene.calls == []
    assert set(scene.bench.decisions) == {"defer:device_fault"}


def test_where_the_driver_says_nothing_of_a_recovery_action_there_is_none(scene: Scene) -> None:
    scene.card.recovery_action = None
    stall(scene)
    scene.bench.pass_time(200)
    assert scene.finding().state == "present"


@pytest.mark.parametrize("target", [None, VLLM], ids=["card", "service"])
def test_blind_nothing_is_concluded(scene: Scene, target: Target | None) -> None:
    stall(scene)
    scene.bench.pass_time(200)
    scene.card.age = 60.0
    assert scene.finding(target).state == "unknown"
    scene.bench.gpus.silent = True
    assert scene.finding(target).state == "unknown"


def test_a_service_held_or_asleep_is_not_woken(scene: Scene) -> None:
    stall(scene)
    scene.bench.pass_time(200)
    scene.engine.state = "sleeping"
    assert scene.finding(VLLM).reason == "sleeping"
    scene.engine.state = "ready"
    with scene.bench.store.transaction() as tx:
        tx.inventory.hold("vllm", "operator", "maintenance", scene.bench.clock.now())
    assert scene.finding(VLLM).reason == "held"
    assert scene.finding().state != "present"


@pytest.mark.parametrize("state", ["loading", "sleeping"])
def test_what_was_not_serving_begins_anew(scene: Scene, state: str) -> None:
    stall(scene)
    scene.bench.pass_time(100)
    scene.engine.state = state
    scene.bench.pass_time(10)
    scene.engine.state = "ready"
    scene.bench.pass_time(100)
    assert scene.finding().reason == "stalling"
    scene.bench.pass_time(30)
    assert scene.finding().state == "present"


def test_another_process_begins_anew(scene: Scene) -> None:
    """Somebody restarted it meanwhile; its counter stands at the same number."""
    stall(scene)
    scene.bench.pass_time(200)
    manager = scene.bench.managers["vllm"]
    manager.identity = ProcessIdentity(4711, scene.bench.clock.now())
    scene.engine._seen = manager.identity
    scene.bench.pass_time(60)
    assert scene.finding().reason == "stalling"


def test_after_a_restart_of_the_remediator_it_is_watched_anew(scene: Scene) -> None:
    stall(scene)
    scene.bench.pass_time(200)
    scene.bench.restart()
    scene.wire()
    scene.bench.pass_time(60)
    assert scene.finding().reason == "stalling"
    scene.bench.pass_time(100)
    assert scene.finding().state == "present"


def test_a_restart_of_the_remediator_in_a_run_watches_anew_before_it_acts(scene: Scene) -> None:
    bench = scene.bench
    stall(scene)
    bench.pass_time(150)
    bench.fire("GPUHang")
    (run,) = bench.evaluate()
    bench.restart()
    scene.wire()
    begun = bench.clock.passed
    bench.executor.execute(run)
    assert scene.restarts == 1
    assert bench.run.state == "succeeded"
    restarted = bench.managers["vllm"].identity.started_at - bench.clock.now()
    assert restarted + bench.clock.passed - begun >= 120


@pytest.mark.parametrize(("missed", "reason"), [(10, "hung"), (60, "stalling")])
def test_looks_that_fail_are_neither_progress_nor_a_stall(
    scene: Scene, missed: float, reason: str
) -> None:
    stall(scene)
    scene.bench.pass_time(80)
    scene.engine.forced = ServiceProbe("silent", "no answer in time")
    scene.bench.pass_time(missed)
    scene.engine.forced = None
    scene.bench.pass_time(60)
    assert scene.finding().reason == reason


def test_requests_that_come_and_go_are_no_stall(scene: Scene) -> None:
    """Clients that give up and come again: at no time is one request worked on for long."""
    scene.engine.stuck = True
    for _ in range(20):
        scene.engine.running = 1
        scene.bench.pass_time(30)
        scene.engine.running = 0
        scene.bench.pass_time(6)
    scene.engine.running = 1
    assert scene.finding(VLLM).reason == "stalling"
