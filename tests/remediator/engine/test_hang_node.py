"""What services on different cards have in common when they stand still at once is the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from remediator.readings import XidSeen
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.hang_scene import Scene

Make = Callable[..., Bench]
STALLED = "LLMServiceStalled"
ONE, TWO = Target("service", "vllm"), Target("service", "other")


@pytest.fixture
def scene(make_bench: Make) -> Scene:
    """Two services, each on a card of its own."""
    scene = Scene(make_bench(services=("other", "vllm"), gpus=2), engines=("other", "vllm"))
    world = scene.bench.world
    for uuid, name in zip(scene.bench.uuids, ("vllm", "other"), strict=True):
        service = world.services[name]
        config = replace(service.config, gpus=(uuid,))
        world.services[name] = replace(service, config=config)
    return scene


def stall(scene: Scene, *names: str) -> None:
    for name in names:
        scene.bench.drivers[name].stuck = True


def calls(scene: Scene) -> list[str]:
    return [call for manager in scene.bench.managers.values() for call in manager.calls]


def test_two_that_stand_still_at_once_are_escalated_and_not_restarted(scene: Scene) -> None:
    bench = scene.bench
    bench.clock.advance(30)
    stall(scene, "vllm", "other")
    bench.clock.advance(100)
    bench.fire(STALLED, service="vllm")
    bench.fire("GPUHang", uuid=bench.uuids[1])
    bench.pass_time(60, step=5)
    assert calls(scene) == []
    assert "refuse:node_fault" in bench.decisions
    assert bench.incident(STALLED, ONE).state == "needs_human"
    assert bench.incident("GPUHang", Target("gpu", bench.uuids[1])).state == "needs_human"
    last = bench.events("decision")[-1]
    assert last["severity"] == "critical"
    assert last["data"]["evidence"]["allowed"] == "page"


def test_one_that_stands_still_long_after_the_other_is_a_fault_of_its_own(scene: Scene) -> None:
    bench = scene.bench
    stall(scene, "vllm")
    bench.clock.advance(100)
    stall(scene, "other")
    bench.clock.advance(30)
    finding = scene.finding(ONE)
    assert (finding.state, finding.services) == ("present", ("vllm",))


def test_one_that_works_or_has_no_request_makes_no_node_fault(scene: Scene) -> None:
    stall(scene, "vllm", "other")
    scene.bench.drivers["other"].running = 0
    scene.bench.clock.advance(140)
    assert scene.finding(ONE).state == "present"


def test_two_on_one_card_are_no_node_fault(scene: Scene) -> None:
    world = scene.bench.world
    service = world.services["other"]
    shared = replace(service.config, gpus=tuple(scene.bench.uuids))
    world.services["other"] = replace(service, config=shared)
    stall(scene, "vllm", "other")
    scene.bench.clock.advance(140)
    assert scene.finding(ONE).state == "present"
    assert scene.finding(TWO).state == "present"


def test_when_no_card_answers_it_is_the_driver(scene: Scene) -> None:
    stall(scene, "vllm")
    scene.bench.clock.advance(140)
    first, second = (scene.bench.cards[uuid] for uuid in scene.bench.uuids)
    first.fault = "timeout"
    assert scene.finding(ONE).reason == "device_fault"
    second.fault = "timeout"
    finding = scene.finding(ONE)
    assert (finding.state, finding.reason, finding.certain) == ("unknown", "node_fault", True)
    first.fault = second.fault = "released"
    assert scene.finding(ONE).reason != "node_fault"


def test_a_machine_that_is_to_be_rebooted_is_left_to_a_person(scene: Scene) -> None:
    stall(scene, "vllm")
    scene.bench.clock.advance(140)
    scene.bench.cards[scene.bench.uuids[1]].recovery_action = "reboot"
    assert scene.finding(ONE).reason == "node_fault"


def test_who_works_on_beside_a_card_that_wants_a_reboot_is_no_suspicion(scene: Scene) -> None:
    scene.bench.clock.advance(30)
    scene.bench.cards[scene.bench.uuids[1]].recovery_action = "reboot"
    assert scene.finding(Target("gpu", scene.bench.uuids[0])).reason == "busy"


@pytest.mark.parametrize(
    ("action", "says", "reason"),
    [
        ("reset_gpu", None, "device_fault"),
        ("reboot_host", None, "device_fault"),
        ("reboot_host", "none", "device_fault"),
        ("reset_gpu", "none", "hung"),
        ("restart_app", None, "hung"),
    ],
)
def test_an_xid_that_asks_for_more_than_a_restart_keeps_it_back(
    scene: Scene, action: str, says: str | None, reason: str
) -> None:
    bench = scene.bench
    stall(scene, "vllm")
    bench.clock.advance(140)
    scene.card.recovery_action = says
    whole = bench.gpus.all
    xid = XidSeen(119, bench.clock.now() - 20, action)
    bench.gpus.all = lambda: tuple(replace(one, xid_errors=(xid,)) for one in whole())
    assert scene.finding(ONE).reason == reason
    bench.gpus.all = lambda: tuple(
        replace(one, xid_errors=(replace(xid, last_seen=bench.clock.now() - 4000),))
        for one in whole()
    )
    assert scene.finding(ONE).reason == "hung"
