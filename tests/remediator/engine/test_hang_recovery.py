"""recover-hang on the bench: a stall is cured once, and nothing else is ever restarted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest

from remediator import actions
from remediator.actions import StepContext
from remediator.errors import ServiceTimeout
from remediator.managers import ProcessIdentity
from remediator.metrics import RemediatorCollector
from remediator.policy.verdict import Judgement
from remediator.services import ServiceProbe
from remediator.signals.hang import Hang
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.hang_scene import LIMIT, Scene, stall

Make = Callable[..., Bench]
STALLED = "LLMServiceStalled"
VLLM = Target("service", "vllm")


@pytest.fixture
def scene(make_bench: Make) -> Scene:
    """One service with an engine on one saturated card."""
    return Scene(make_bench(services=("vllm",)))


def go_on_firing(scene: Scene, seconds: float) -> None:
    """GPUHang fires for so long; Alertmanager repeats it every five minutes."""
    for _ in range(round(seconds / 300)):
        scene.bench.fire("GPUHang")
        scene.bench.pass_time(300, step=5)
    scene.bench.fire("GPUHang")


def test_a_stalled_service_is_restarted_loaded_and_answers(scene: Scene) -> None:
    bench = scene.bench
    bench.pass_time(30)
    stall(scene)
    bench.pass_time(30)
    bench.fire("GPUHang")
    bench.pass_time(60)
    assert bench.decisions == ["defer:stalling"]
    assert scene.engine.canaries == [], "none is asked before it decides anything"
    bench.pass_time(60)
    assert bench.decisions == ["defer:stalling", "run:accepted"]
    assert scene.calls == ["stop 1001", "start 1002"]
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    actions = [step.action for step in bench.steps()]
    assert actions[:3] == ["check", "diagnose", "restart_service"]
    assert actions[3:] == ["wait_ready", "load_models", "canary"]
    assert bench.drivers["vllm"].loads == ["qwen"]


def test_a_confirmed_hang_is_recorded_as_critical_with_its_evidence(scene: Scene) -> None:
    bench = scene.bench
    stall(scene)
    bench.fire("GPUHang")
    bench.pass_time(150)
    waited, accepted = bench.events("decision")
    assert waited["severity"] == "info"
    assert accepted["severity"] == "critical"
    evidence = accepted["data"]["evidence"]
    assert evidence["verdict"] == "hung"
    assert evidence["power_watts"] == 80.0
    (service,) = evidence["services"]
    assert service["canary"] == "timed_out"
    assert service["demand"] == 4
    assert min(service["still_seconds"], service["demand_seconds"]) >= 120
    assert bench.audit_holds()


def test_what_is_seen_is_recorded_before_the_restart_takes_it_away(scene: Scene) -> None:
    stall(scene)
    scene.bench.fire("GPUHang")
    scene.bench.pass_time(150)
    events = scene.bench.events("step_finished")
    (seen,) = (event for event in events if event["data"]["action"] == "diagnose")
    assert seen["data"]["server"]["requests_waiting"] == 3
    assert seen["data"]["process"]["identity"]["pid"] == 1001
    (card,) = seen["data"]["cards"]
    assert (card["power_watts"], card["power_limit_watts"]) == (80.0, LIMIT)
    assert card["processes"][0]["pid"] == 100
    assert "80 W" in seen["sentence"]


def test_what_cannot_be_read_for_the_record_stops_nothing(scene: Scene) -> None:
    scene.bench.gpus.silent = True
    scene.bench.managers["vllm"].fails = "no manager"
    service = scene.bench.world.services["vllm"]
    context = StepContext(scene.bench.world, None, service, threading.Event())
    action = actions.create({"action": "diagnose"}, "test")
    outcome = action.run(context, action.intend(context).data)
    assert outcome.state == "done"
    assert (outcome.data["cards"], outcome.data["process"]) == (None, None)
    scene.bench.gpus.silent, scene.card.fault = False, "lost"
    assert "lost" in action.run(context, {}).sentence


def test_the_service_alert_needs_no_saturated_card(scene: Scene) -> None:
    bench = scene.bench
    scene.card.saturated_seconds = 0.0
    stall(scene)
    bench.fire(STALLED, service="vllm")
    bench.pass_time(150)
    assert bench.run.target == VLLM
    assert bench.run.state == "succeeded"
    assert scene.restarts == 1


@pytest.mark.parametrize("alert", ["GPUHang", STALLED])
def test_a_counter_that_moves_at_all_is_busy(scene: Scene, alert: str) -> None:
    bench = scene.bench
    scene.engine.rate = 0.02
    scene.engine.waiting = 50
    bench.fire(alert, service="vllm" if alert == STALLED else None)
    bench.pass_time(900)
    assert bench.runs == []
    assert scene.calls == []
    assert scene.engine.canaries == []
    assert "refute:busy" in bench.decisions


def test_between_two_tokens_nothing_is_concluded(scene: Scene) -> None:
    """A look right after the probing thread's own sees the counter where that saw it."""
    scene.bench.pass_time(30)
    scene.engine.rate = 0.4
    scene.bench.prober.probe(scene.bench.world.services["vllm"])
    finding = scene.finding()
    assert (finding.state, finding.reason) == ("absent", "busy")


def test_no_request_is_no_stall_and_a_latched_counter_is_refuted_by_an_answer(scene: Scene) -> None:
    bench = scene.bench
    scene.engine.running = 0
    bench.pass_time(300)
    assert (scene.finding(VLLM).state, scene.finding(VLLM).reason) == ("absent", "no_demand")
    assert scene.engine.canaries == []
    bench.fire("GPUHang")
    bench.pass_time(300)
    assert bench.decisions == ["refute:busy"]
    assert scene.engine.canaries


def test_a_long_prompt_draws_power_and_is_given_more_time(scene: Scene) -> None:
    bench = scene.bench
    scene.card.draws = 0.7 * LIMIT
    scene.engine.stuck = True  # for all that can be seen: no token, and no answer to a canary
    bench.fire("GPUHang")
    bench.pass_time(330)
    assert bench.decisions == ["defer:stalling"]
    scene.engine.stuck = False
    bench.pass_time(300)
    assert bench.runs == []
    assert bench.decisions[-1] == "refute:busy"


def test_a_stall_with_power_is_cured_later(scene: Scene) -> None:
    scene.card.draws = 0.7 * LIMIT
    stall(scene)
    scene.bench.fire("GPUHang")
    scene.bench.pass_time(340)
    assert scene.calls == []
    scene.bench.pass_time(60)
    assert scene.restarts == 1
    assert scene.bench.run.state == "succeeded"


def test_a_cap_of_ours_is_no_sign_of_a_hang(scene: Scene) -> None:
    """Power is compared with the limit that holds now, not with the card's default."""
    scene.card.watts, scene.card.draws = 100.0, 80.0
    stall(scene)
    scene.bench.pass_time(200)
    finding = scene.finding()
    assert (finding.state, finding.reason) == ("unknown", "stalling")


def test_without_engine_metrics_one_long_request_restarts_nothing(make_bench: Make) -> None:
    scene = Scene(make_bench(services=("ollama",)), engines=())
    bench, ollama = scene.bench, scene.bench.drivers["ollama"]
    ollama.models = {"llama3:8b"}
    ollama.canary_error = ServiceTimeout("no answer")
    bench.fire("GPUHang")
    bench.pass_time(100)
    assert bench.decisions == ["defer:suspect"]
    assert bench.incident("GPUHang") is None
    go_on_firing(scene, 3600)
    assert bench.runs == []
    assert bench.managers["ollama"].calls == []
    assert bench.decisions == ["defer:suspect", "refuse:suspect"]
    evidence = bench.events("decision")[-1]["data"]["evidence"]
    assert evidence["services"][0]["cards"]["power_ratio"] == pytest.approx(0.2)
    ollama.canary_error = None
    bench.pass_time(120)
    assert bench.decisions[-1] == "refute:busy"
    assert bench.incident("GPUHang").state == "refuted"


def test_an_engine_without_metrics_is_only_suspected(scene: Scene) -> None:
    stall(scene)
    models = scene.engine.probe().models
    scene.engine.forced = ServiceProbe("ready", "no metrics", models)
    scene.bench.fire("GPUHang")
    scene.bench.pass_time(900, step=5)
    assert scene.calls == []
    assert scene.bench.decisions == ["defer:suspect", "refuse:suspect"]


def test_two_cards_and_the_service_tell_of_one_stall_and_it_is_cured_once(
    make_bench: Make,
) -> None:
    scene = Scene(make_bench(services=("vllm",), gpus=2))
    bench = scene.bench
    stall(scene)
    bench.pass_time(130)
    for uuid in bench.uuids:
        bench.fire("GPUHang", uuid=uuid)
    bench.fire(STALLED, service="vllm")
    begun = bench.evaluate()
    assert len(begun) == 3, "each target has its own run"
    for run in reversed(begun):
        bench.executor.execute(run)
    assert scene.restarts == 1
    assert sorted(run.state for run in bench.runs) == ["refused", "refused", "succeeded"]
    assert not any(event["event"] == "breaker_opened" for event in bench.audit)
    bench.pass_time(600, step=5)
    assert scene.restarts == 1


def test_only_the_stuck_one_of_several_services_is_restarted(make_bench: Make) -> None:
    bench = make_bench(services=("busy", "vllm"))
    scene = Scene(bench, engines=("busy", "vllm"))
    stall(scene)
    bench.fire("GPUHang")
    bench.pass_time(300)
    assert scene.restarts == 1
    assert bench.managers["busy"].calls == []
    assert bench.drivers["busy"].canaries == []


def test_a_counter_latched_by_the_restart_leads_to_no_second_one(scene: Scene) -> None:
    """A killed kernel can leave a card at 100 % for days; GPUHang goes on firing."""
    bench = scene.bench
    stall(scene)
    bench.fire("GPUHang")
    bench.pass_time(150)
    assert bench.run.state == "succeeded"
    scene.engine.running = scene.engine.waiting = 0
    scene.card.saturated_seconds = 10_000.0
    go_on_firing(scene, 1800)
    bench.resolve("GPUHang")
    go_on_firing(scene, 1800)
    assert scene.restarts == 1
    assert bench.decisions[-1] == "refute:busy"
    assert bench.incident("GPUHang").state == "refuted"


def test_a_service_that_stalls_again_and_again_is_left_to_a_person(scene: Scene) -> None:
    bench = scene.bench
    for _ in range(4):
        bench.resolve("GPUHang")
        # What begins before the last end is the same firing.
        bench.pass_time(10)
        stall(scene)
        go_on_firing(scene, 600)
    assert scene.restarts == 3, "limits.attempts_per_hour"
    assert "refuse:attempts" in bench.decisions
    assert bench.incident("GPUHang").state == "needs_human"


def test_a_restart_that_does_not_help_is_not_repeated(scene: Scene) -> None:
    bench, engine = scene.bench, scene.engine
    stall(scene)
    start = bench.managers["vllm"].start

    def still_stuck(timeout: float) -> ProcessIdentity:
        identity = start(timeout)
        engine.probe()
        engine.stuck = True
        return identity

    bench.managers["vllm"].start = still_stuck
    go_on_firing(scene, 1800)
    assert scene.restarts == 1
    assert (bench.run.state, bench.steps()[-1].action) == ("failed", "canary")
    assert bench.incident("GPUHang").state == "needs_human"


def test_observing_says_what_it_would_do_as_critical(make_bench: Make) -> None:
    scene = Scene(make_bench(services=("vllm",), mode="observe"))
    stall(scene)
    scene.bench.fire(STALLED, service="vllm")
    scene.bench.pass_time(200)
    assert scene.calls == []
    last = scene.bench.events("decision")[-1]
    assert (last["reason"], last["severity"]) == ("mode_observe", "critical")


def test_without_the_second_key_nothing_is_restarted(make_bench: Make) -> None:
    scene = Scene(make_bench(services=("vllm",), allow=[]))
    stall(scene)
    scene.bench.fire("GPUHang")
    scene.bench.pass_time(300, step=5)
    assert scene.calls == []
    assert scene.bench.decisions == ["refuse:not_allowed"]


def test_the_stall_that_ended_by_itself_is_not_cured(scene: Scene) -> None:
    """It was so when the run was decided; before the restart it is looked at once more."""
    bench = scene.bench
    stall(scene)
    bench.pass_time(200)
    bench.fire("GPUHang")
    (run,) = bench.evaluate()
    scene.engine.stuck = False
    bench.pass_time(1)
    bench.executor.execute(run)
    assert scene.calls == []
    assert (bench.run.state, bench.run.reason) == ("refused", "busy")


def test_the_time_is_configurable(make_bench: Make) -> None:
    scene = Scene(make_bench(services=("vllm",), timing={"stalled_after": "20s"}))
    stall(scene)
    scene.bench.fire("GPUHang")
    scene.bench.pass_time(35)
    assert scene.restarts == 1


def test_a_service_without_a_card_needs_no_exporter(scene: Scene) -> None:
    stall(scene)
    scene.bench.pass_time(200)
    service = scene.bench.world.services["vllm"]
    without = replace(service, config=replace(service.config, gpus=()))
    scene.bench.world.services["vllm"] = without
    scene.bench.gpus.silent = True
    assert scene.finding(VLLM).reason == "hung"
    scene.bench.world.services["vllm"] = replace(
        service, config=replace(service.config, gpus=(*scene.bench.uuids, "GPU-gone"))
    )
    scene.bench.gpus.silent = False
    finding = scene.finding(VLLM)
    assert (finding.state, finding.reason) == ("unknown", "unknown"), "one of its cards is missing"


def test_every_judgement_is_a_known_reason() -> None:
    assert set(Hang.reasons) == set(get_args(Judgement))


def metrics(scene: Scene) -> dict[str, float]:
    bench = scene.bench
    collector = RemediatorCollector(
        bench.world, bench.playbooks, bench.counters, bench.intake, bench.prober
    )
    return {
        sample.name: sample.value
        for family in collector.collect()
        for sample in family.samples
        if sample.labels.get("llm_service") == "vllm"
    }


def test_demand_and_progress_are_exported_where_they_are_known_and_absent_where_not(
    scene: Scene,
) -> None:
    scene.engine.waiting = 7
    scene.bench.pass_time(60)
    seen = metrics(scene)
    assert seen["llm_service_requests_running"] == 1
    assert seen["llm_service_requests_waiting"] == 7
    assert seen["llm_service_progress_total"] > 0
    scene.engine.forced = ServiceProbe("ready", "no metrics")
    scene.bench.pass_time(10)
    assert not {name for name in metrics(scene) if "requests" in name or "progress" in name}
    assert metrics(scene)["llm_service_up"] == 1
