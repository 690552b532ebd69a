"""A service that keeps running out of memory: less load where it is prepared, else what to change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from remediator.app import _service
from remediator.config import ServiceConfig
from remediator.degraded import StoredChoice
from remediator.engine.log_watch import LogWatch
from remediator.engine.oom_watch import OutOfMemoryWatch
from remediator.engine.prober import Prober
from remediator.errors import ConfigError, ManagerError, ServiceError, ServiceTimeout
from remediator.load_advice import advice
from remediator.managers import ProcessStatus
from remediator.managers._degraded import EitherOf
from remediator.oom_events import LOG, OutOfMemoryEvent, count, events_of
from remediator.service_metrics import ServiceCollector
from remediator.signals import create
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.fakes import FakeManager

ALERT, DOWN = "LLMServiceOutOfMemory", "LLMServiceDown"
OLLAMA = Target("service", "ollama")
GB = 2**30
Make = Callable[..., Bench]


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    one = make_bench(services=("ollama",))
    one.drivers["ollama"].models = {"qwen"}
    one.prober.probe(one.world.services["ollama"])
    as_service(one, driver="ollama")
    return one


def as_service(bench: Bench, **config: Any) -> None:
    one = bench.world.services["ollama"]
    bench.world.services["ollama"] = replace(one, config=replace(one.config, **config))


def with_less_load(bench: Bench) -> FakeManager:
    """A second manager for it; the one that starts it with less load."""
    usual, degraded = bench.managers["ollama"], FakeManager(bench.clock)
    degraded.renumber(5000)
    degraded.identity, degraded.state = None, "stopped"
    one = bench.world.services["ollama"]
    bench.world.services["ollama"] = replace(
        one, manager=EitherOf(usual, degraded, StoredChoice(bench.store, "ollama"))
    )
    as_service(bench, degraded={"type": "fake"})
    bench.drivers["ollama"]._manager = _Up(usual, degraded)  # type: ignore[assignment]
    return degraded


class _Up:
    """What the server's driver sees: the process of whichever manager has one."""

    def __init__(self, *managers: FakeManager) -> None:
        self._managers = managers

    @property
    def identity(self) -> Any:
        return next((m.identity for m in self._managers if m.identity is not None), None)


def ran_out(bench: Bench, times: int, reason: str = "killed", where: Any = "gpu") -> None:
    for _ in range(times):
        bench.clock.advance(60)
        event = OutOfMemoryEvent(bench.clock.now(), reason, where, "CUDA out of memory")
        with bench.store.transaction() as tx:
            assert count(tx, "ollama", event, "a test says so", {})


def die(bench: Bench) -> None:
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.act()


def step(bench: Bench, action: str = "lower_load") -> Any:
    return next(one for one in bench.steps() if one.action == action)


@pytest.mark.parametrize(("times", "reason"), [(2, "killed"), (5, LOG)])
def test_not_often_or_only_in_its_log_changes_nothing(
    bench: Bench, times: int, reason: str
) -> None:
    degraded = with_less_load(bench)
    ran_out(bench, times, reason)
    die(bench)
    assert bench.run.state == "succeeded"
    assert (step(bench).state, step(bench).result["reason"]) == ("nothing", "not_often")
    assert degraded.calls == []


def test_the_third_time_within_an_hour_it_is_started_with_less_load(bench: Bench) -> None:
    degraded = with_less_load(bench)
    ran_out(bench, 3)
    die(bench)
    assert bench.run.state == "succeeded"
    assert step(bench).state == "done"
    assert degraded.calls == ["start 5001"]
    assert bench.managers["ollama"].calls == []
    assert bench.drivers["ollama"].models == {"qwen"}


def test_one_that_is_up_is_stopped_before_the_other_is_started(bench: Bench) -> None:
    degraded = with_less_load(bench)
    ran_out(bench, 3)
    bench.drivers["ollama"].canary_error = ServiceError("HTTP 500: CUDA out of memory")
    start = degraded.start

    def started(timeout: float) -> Any:
        assert bench.managers["ollama"].identity is None, "never both"
        bench.drivers["ollama"].canary_error = None
        return start(timeout)

    degraded.start = started  # type: ignore[method-assign]
    bench.fire(ALERT, service="ollama")
    bench.act()
    assert bench.run.state == "succeeded"
    assert bench.managers["ollama"].calls == ["stop 1001"]
    assert degraded.calls == ["start 5001"]


def test_with_less_load_it_is_watched_restarted_and_stopped_like_any_other(bench: Bench) -> None:
    degraded = with_less_load(bench)
    ran_out(bench, 3)
    die(bench)
    manager = bench.world.services["ollama"].manager
    assert manager.status().identity == degraded.identity
    assert manager.status().detail.startswith("with less load (fake)")
    degraded.die()
    assert manager.status().state == "exited"
    assert manager.start(5) == degraded.identity
    manager.stop(degraded.identity, 5)
    assert degraded.identity is None
    assert bench.managers["ollama"].calls == []


def test_who_starts_it_as_usual_takes_that_back(bench: Bench) -> None:
    degraded = with_less_load(bench)
    ran_out(bench, 3)
    die(bench)
    manager = bench.world.services["ollama"].manager
    manager.stop(None, 5)
    bench.clock.advance(5)
    bench.managers["ollama"].start(5)
    assert manager.status().identity == bench.managers["ollama"].identity
    bench.managers["ollama"].die()
    manager.start(5)
    assert [call.split()[0] for call in degraded.calls] == ["start", "stop"]


def test_a_stop_is_for_the_process_it_names(bench: Bench) -> None:
    degraded = with_less_load(bench)
    manager = bench.world.services["ollama"].manager
    before = manager.status().identity
    bench.managers["ollama"].die()
    degraded.start(5)
    manager.stop(before, 5)
    assert degraded.identity is not None
    manager.stop(None, 5)
    assert degraded.identity is None


def test_after_that_it_is_said_what_more_to_change(bench: Bench) -> None:
    with_less_load(bench)
    ran_out(bench, 3)
    die(bench)
    bench.resolve(DOWN, service="ollama")
    bench.pass_time(120)
    bench.world.services["ollama"].manager._degraded.die()  # type: ignore[attr-defined]
    bench.fire(DOWN, service="ollama")
    bench.act()
    last = next(one for one in bench.steps(bench.runs[-1].id) if one.action == "lower_load")
    assert last.result["reason"] == "nothing_to_lower"
    assert "it has less load already: to end it, set OLLAMA_NUM_PARALLEL=1" in last.sentence


def test_without_another_manager_it_is_said_what_to_change(bench: Bench) -> None:
    ran_out(bench, 3)
    die(bench)
    assert bench.run.state == "succeeded"
    assert step(bench).result["reason"] == "nothing_to_lower"
    assert "OLLAMA_NUM_PARALLEL=1" in step(bench).sentence


def test_one_that_answers_but_goes_on_running_out_is_a_persons_at_once(bench: Bench) -> None:
    ran_out(bench, 3, LOG)
    bench.fire(ALERT, service="ollama")
    bench.act()
    bench.pass_time(120)
    assert bench.decisions == ["refuse:keeps_happening"]
    assert bench.managers["ollama"].calls == []
    incident = bench.incident(ALERT, OLLAMA)
    assert (incident.state, incident.reason) == ("needs_human", "keeps_happening")
    (said,) = [one["sentence"] for one in bench.events("decision")]
    assert "3 times within 1h" in said
    assert "OLLAMA_NUM_PARALLEL=1" in said


def test_what_is_an_hour_old_is_forgiven(bench: Bench) -> None:
    ran_out(bench, 3)
    bench.clock.advance(3600)
    bench.fire(ALERT, service="ollama")
    bench.act()
    assert bench.decisions == ["refute:healthy"]


def test_what_it_died_of_is_in_the_decision(bench: Bench) -> None:
    ran_out(bench, 1)
    die(bench)
    assert any(
        "it ran out of GPU memory: CUDA out of memory" in e["sentence"]
        for e in bench.events("decision")
    )


def test_a_model_that_does_not_fit_is_said_with_what_to_change(bench: Bench) -> None:
    def refuse(model: str, timeout: float) -> None:
        raise ServiceError("llama-server reported out-of-memory during startup")

    bench.drivers["ollama"].load = refuse  # type: ignore[method-assign]
    die(bench)
    assert (bench.run.state, bench.run.reason) == ("failed", "out_of_memory")
    assert "OLLAMA_CONTEXT_LENGTH to half" in bench.run.sentence


# What is advised


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ("vllm", "--gpu-memory-utilization 0.87"),
        ("sglang", "--mem-fraction-static 0.87"),
        ("llamacpp", "half of its --parallel"),
        ("something", "half of its parallel requests"),
    ],
)
def test_each_server_has_its_setting(bench: Bench, driver: str, words: str) -> None:
    as_service(bench, driver=driver)
    assert words in advice(bench.world, bench.world.services["ollama"], "gpu")


def test_the_share_leaves_what_others_hold_and_a_reserve(bench: Bench) -> None:
    as_service(bench, driver="vllm")
    with bench.store.transaction() as tx:
        tx.inventory.remember_footprint("ollama", {bench.uuids[0]: 30 * GB})
    # 40 GiB, of which others hold 4; 2 (5 %) are kept free: 34 of 40.
    bench.card.memory_used = 34 * GB
    assert "--gpu-memory-utilization 0.85" in advice(
        bench.world, bench.world.services["ollama"], "gpu"
    )
    bench.gpus.silent = True
    assert "0.87" in advice(bench.world, bench.world.services["ollama"], "gpu")


def test_for_the_hosts_memory_its_limit_comes_first(bench: Bench) -> None:
    bench.managers["ollama"].kind = "systemd"
    said = advice(bench.world, bench.world.services["ollama"], "host")
    assert said.startswith("to end it, raise MemoryMax= of its unit, or set OLLAMA_NUM_PARALLEL")


# The configuration of the second manager


def configured(bench: Bench, **degraded: Any) -> Any:
    manager = {"type": "process", "command": ["/bin/true"]}
    config = ServiceConfig("llm", "ollama", "http://127.0.0.1:1", manager, degraded=degraded)
    return _service(config, bench.config, bench.store, bench.clock)


def test_it_is_built_beside_the_usual_one(bench: Bench) -> None:
    one = configured(bench, type="process", command=["/bin/false"])
    assert isinstance(one.manager, EitherOf)
    assert one.manager.describe("start") == "run: /bin/true (with less load: run: /bin/false)"
    assert not isinstance(configured(bench).manager, EitherOf)


@pytest.mark.parametrize(
    ("degraded", "words"),
    [
        ({"type": "process", "command": ["/bin/true"]}, "must not be the same"),
        ({"type": "process", "command": ["true"]}, r"services\.llm\.degraded\.command"),
        ({"type": "nothing"}, r"services\.llm\.degraded"),
    ],
)
def test_a_wrong_one_is_refused(bench: Bench, degraded: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configured(bench, **degraded)


# Warm-up


def test_a_model_is_warmed_up_before_it_counts_and_that_is_measured(bench: Bench) -> None:
    answers = iter([7.5, 0.2])
    bench.drivers["ollama"].canary = lambda model, timeout: next(answers)  # type: ignore[method-assign]
    die(bench)
    assert bench.run.state == "succeeded"
    assert step(bench, "load_models").sentence == (
        "ollama has qwen loaded again; its first request took 7.5 s"
    )
    assert step(bench, "load_models").result["warm_up_seconds"] == {"qwen": 7.5}
    collector = ServiceCollector(bench.world, bench.counters, LogWatch(bench.world, bench.counters))
    samples = {s.name: s.value for f in collector.collect() for s in f.samples}
    assert samples == {
        "llm_service_warmup_seconds": 7.5,
        "llm_service_first_answer_seconds": 0.2,
    }


@pytest.mark.parametrize("error", [ServiceTimeout("no answer"), ServiceError("HTTP 500")])
def test_a_warm_up_may_fail_without_harm(bench: Bench, error: ServiceError) -> None:
    left: list[ServiceError] = [error]

    def canary(model: str, timeout: float) -> float:
        if left:
            raise left.pop()
        return 0.1

    bench.drivers["ollama"].canary = canary  # type: ignore[method-assign]
    die(bench)
    assert bench.run.state == "succeeded"
    assert (
        f"though the first request to qwen failed: {error}" in step(bench, "load_models").sentence
    )


# What is counted


def test_events_are_kept_with_their_cause_and_not_for_ever(bench: Bench) -> None:
    watch = Prober(bench.world, (OutOfMemoryWatch(bench.world),))
    manager = bench.managers["ollama"]
    watch.probe(bench.world.services["ollama"])
    manager.die()
    status = ProcessStatus("exited", None, "killed", oom_killed=True)
    manager.status = lambda: status  # type: ignore[method-assign]
    watch.probe(bench.world.services["ollama"])
    with bench.store.reading() as tx:
        (event,) = events_of(tx, "ollama")
    assert (event.reason, event.where, event.cause) == ("killed", "host", "the host's memory")
    ran_out(bench, 40)
    with bench.store.reading() as tx:
        assert len(events_of(tx, "ollama")) == 20
        assert tx.inventory.service("ollama").out_of_memory == 41


def test_a_silent_usual_manager_is_said_not_guessed(bench: Bench) -> None:
    with_less_load(bench)
    bench.managers["ollama"].fails = "systemd does not answer"
    with pytest.raises(ManagerError):
        bench.world.services["ollama"].manager.status()
    finding = create({"signal": "out_of_memory"}, "test").read(bench.world, OLLAMA)
    assert finding.state != "present"
