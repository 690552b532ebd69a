"""Replicas that Ray kills for want of memory: named as the cause, each once, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from remediator import services
from remediator.clock import SystemClock
from remediator.config import ServiceConfig, Timing
from remediator.engine.oom_watch import OutOfMemoryWatch
from remediator.engine.prober import Prober
from remediator.error_signatures import failure_in
from remediator.oom_events import WORKER, events_of
from remediator.services import ServiceDriver, _ray_deaths
from remediator.signals import create
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.dialects import served
from tests.remediator.engine.ray_dialect import RayServe

SAID = "killed due to the node running low on memory"
STATE = "/api/v0/workers"


@pytest.fixture
def ray() -> Iterator[RayServe]:
    one = RayServe()
    with served(one):
        yield one


def driver(ray: RayServe, **options: object) -> ServiceDriver:
    told = {"application": "llm", "proxy_url": f"{ray.url}/llm", **options}
    config = ServiceConfig("llm", "ray_serve", ray.url, {}, options=told)
    return services.create(config, Timing(probe_timeout=3.0))


@pytest.mark.parametrize("lists_the_dead", [True, False])
def test_a_replica_that_ray_killed_for_memory_is_named(ray: RayServe, lists_the_dead: bool) -> None:
    ray.lists_the_dead = lists_the_dead
    one = driver(ray)
    assert one.probe().deaths == ()
    ray.kill("llm", "worker-2", at=1000.5)
    (death,) = one.probe().deaths
    assert (death.worker, death.at, death.said) == ("worker-llm", 1000.5, SAID)
    assert death.name == "a replica of LLMServer:qwen (llm)"


def test_ray_is_asked_only_while_a_replica_is_missed(
    ray: RayServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = driver(ray)
    one.probe()
    assert STATE not in ray.paths
    ray.kill("llm", "worker-2", at=None)
    assert one.probe().deaths == (), "it ended for another reason"
    assert STATE in ray.paths
    monkeypatch.setattr(_ray_deaths, "_ASKED_FOR", -1.0)
    ray.asked.clear()
    one.probe()
    assert STATE not in ray.paths


def test_once_the_reason_is_known_ray_is_not_asked_again(ray: RayServe) -> None:
    one = driver(ray)
    one.probe()
    ray.kill("llm", "worker-2", at=1.0)
    assert len(one.probe().deaths) == 1
    ray.asked.clear()
    assert len(one.probe().deaths) == 1
    assert STATE not in ray.paths


def test_ray_may_say_later_why_a_worker_ended(ray: RayServe) -> None:
    one = driver(ray)
    one.probe()
    ray.kill("llm", "worker-2", at=None)
    assert one.probe().deaths == ()
    ray.killed["worker-llm"] = 7.0
    assert [death.at for death in one.probe().deaths] == [7.0]


def test_a_replica_of_another_application_is_not_this_services(ray: RayServe) -> None:
    mine, whole = driver(ray), driver(ray, application="")
    for one in (mine, whole):
        one.probe()
    ray.kill("two", "worker-3", at=5.0)
    ray.killed["a-task-of-somebody"] = 6.0
    assert mine.probe().deaths == ()
    assert [death.name for death in whole.probe().deaths] == ["a replica of other (two)"]


def test_a_death_whose_time_is_not_said_is_one_of_now(ray: RayServe) -> None:
    one, before = driver(ray), SystemClock().now()
    one.probe()
    ray.kill("llm", "worker-2", at=0.0)
    (death,) = one.probe().deaths
    assert death.at >= before


@pytest.mark.parametrize("at", ["1e15", "Infinity", "NaN"])
def test_a_death_that_lies_ahead_of_our_clock_is_one_of_now(ray: RayServe, at: str) -> None:
    one, before = driver(ray), SystemClock().now()
    one.probe()
    ray.kill("llm", "worker-2", at=None)
    ray.forced[STATE] = (200, killed("worker-llm", at))
    (death,) = one.probe().deaths
    assert before <= death.at <= SystemClock().now()


def killed(worker: str, end_time_ms: str) -> str:
    why = '"exit_type": "NODE_OUT_OF_MEMORY"'
    row = f'{{"worker_id": "{worker}", {why}, "end_time_ms": {end_time_ms}}}'
    return f'{{"data": {{"result": {{"result": [{row}]}}}}}}'


def test_each_is_asked_about_by_itself_and_many_in_turns(ray: RayServe) -> None:
    one = driver(ray)
    one.probe()
    for number in range(12):
        ray.kill("llm", f"worker & {number}", at=None)
    for known in (5, 10, 11):
        one.probe()
        assert len(about(ray)) == known
    assert "worker & 9" in about(ray)


def about(ray: RayServe) -> set[str]:
    return {request.query["filter_values"] for request in ray.asked if request.path == STATE}


def test_a_worker_that_ended_otherwise_is_no_death_for_memory(ray: RayServe) -> None:
    one = driver(ray)
    one.probe()
    ray.kill("llm", "worker-2", at=None)
    told = killed("worker-llm", "1000").replace("NODE_OUT_OF_MEMORY", "SYSTEM_ERROR")
    ray.forced[STATE] = (200, told)
    assert one.probe().deaths == ()


def test_a_long_name_does_not_fill_the_audit(ray: RayServe) -> None:
    details = ray.details()
    deployments = details["applications"]["llm"]["deployments"]
    deployments["LLMServer:qwen"]["name"] = "x" * 100_000
    ray.forced["/api/serve/applications/"] = (200, details)
    one = driver(ray)
    one.probe()
    del ray.forced["/api/serve/applications/"]
    ray.lists_the_dead = False
    ray.kill("llm", "worker-2", at=1000.5)
    (death,) = one.probe().deaths
    assert len(death.name) == 200


@pytest.mark.parametrize(
    "answer",
    [
        (500, ""),
        (429, {}),
        (200, "no JSON"),
        (200, {"data": None}),
        (200, killed("worker-llm", "1" + 400 * "0")),
    ],
)
def test_a_ray_that_does_not_say_why_changes_nothing_else(
    ray: RayServe, answer: tuple[int, object]
) -> None:
    one = driver(ray)
    one.probe()
    ray.kill("llm", "worker-2", at=1.0)
    ray.forced[STATE] = answer
    probe = one.probe()
    assert (probe.state, probe.deaths) == ("ready", ())
    del ray.forced[STATE]
    assert len(one.probe().deaths) == 1


@pytest.mark.parametrize("dead", [None, {}, {"a": 1}, 7, [7], [{"worker_id": "worker-llm"}]])
def test_a_list_of_the_dead_that_cannot_be_read_changes_nothing_else(
    ray: RayServe, dead: object
) -> None:
    details = ray.details()
    details["applications"]["llm"]["deployments"]["LLMServer:qwen"]["recent_dead_replicas"] = dead
    ray.forced["/api/serve/applications/"] = (200, details)
    assert driver(ray).probe().state == "ready"


class Counted:
    """A bench whose service is this Ray, probed as the remediator does."""

    def __init__(self, bench: Bench, ray: RayServe) -> None:
        self.bench, self.ray = bench, ray
        service = bench.world.services["llm"]
        bench.world.services["llm"] = replace(service, driver=driver(ray))
        self.look()

    def look(self) -> int:
        watch = OutOfMemoryWatch(self.bench.world)
        Prober(self.bench.world, (watch,)).probe(self.bench.world.services["llm"])
        with self.bench.store.reading() as tx:
            return tx.inventory.service("llm").out_of_memory

    def kill(self, replacement: str, ago: float = 1.0) -> None:
        self.ray.kill("llm", replacement, at=self.bench.clock.now() - ago)


@pytest.fixture
def counted(make_bench: Callable[..., Bench], ray: RayServe) -> Counted:
    return Counted(make_bench(services=("llm",)), ray)


def test_each_death_is_counted_once_and_its_cause_is_in_the_audit(counted: Counted) -> None:
    counted.kill("worker-2")
    # Whoever looks again, a remediator that was started anew too, knows that one.
    assert [counted.look() for _ in range(3)] == [1, 1, 1]
    counted.bench.clock.advance(60)
    counted.kill("worker-3")
    assert counted.look() == 2
    first, _ = counted.bench.events("out_of_memory")
    assert first["reason"] == WORKER
    assert first["sentence"] == (
        f"llm ran out of memory: a replica of LLMServer:qwen (llm) was {SAID}"
    )
    assert first["data"] == {"worker": "worker-llm", "signature": SAID, "where": "host"}
    with counted.bench.store.reading() as tx:
        assert events_of(tx, "llm")[-1].cause == f"the host's memory: {SAID}"


def test_replicas_that_die_together_are_one_event(counted: Counted) -> None:
    counted.kill("worker-2", ago=2.0)
    counted.kill("worker-3", ago=1.0)
    assert counted.look() == 1
    told = counted.bench.events("out_of_memory")
    assert [one["data"].get("counted_before", False) for one in told] == [False, True]


def test_what_died_long_ago_is_no_event(counted: Counted) -> None:
    counted.kill("worker-2", ago=3600.0)
    assert counted.look() == 0


def test_one_that_ray_replaces_and_that_answers_is_left_alone(counted: Counted) -> None:
    bench = counted.bench
    counted.kill("worker-2")
    assert counted.look() == 1
    bench.fire("LLMServiceOutOfMemory", service="llm")
    finding = create({"signal": "out_of_memory"}, "test").read(
        bench.world, Target("service", "llm")
    )
    assert (finding.state, finding.reason) == ("absent", "healthy")
    assert "/llm/v1/completions" in counted.ray.paths, "a canary was asked"


def test_while_ray_replaces_it_nothing_is_concluded_and_then_it_is_asked(counted: Counted) -> None:
    bench, ray = counted.bench, counted.ray
    counted.kill("worker-2")
    counted.look()
    ray.statuses["llm"], ray.replicas["llm"] = "UNHEALTHY", ["STARTING"]
    bench.fire("LLMServiceOutOfMemory", service="llm")
    bench.act()
    assert bench.decisions == ["defer:starting"]
    assert "/llm/v1/completions" not in ray.paths
    ray.statuses["llm"], ray.replicas["llm"] = "RUNNING", ["RUNNING"]
    bench.pass_time(5)
    assert bench.decisions == ["defer:starting", "refute:healthy"]
    assert "/llm/v1/completions" in ray.paths, "a canary was asked"
    assert bench.managers["llm"].calls == []


def test_one_that_ray_gives_up_is_down_for_that_cause(counted: Counted) -> None:
    bench = counted.bench
    counted.kill("worker-2")
    counted.look()
    counted.ray.statuses["llm"], counted.ray.replicas["llm"] = "DEPLOY_FAILED", []
    bench.fire("LLMServiceDown", service="llm")
    finding = create({"signal": "out_of_memory"}, "test").read(
        bench.world, Target("service", "llm")
    )
    assert (finding.state, finding.reason) == ("present", "down")
    assert f"it ran out of the host's memory: {SAID}" in finding.sentence


def test_the_words_are_a_signature_of_their_own() -> None:
    line = f"(raylet) [2026-11-22] 1 worker(s) were {SAID}. Memory on the node was 9GB used"
    found = failure_in(line)
    assert found is not None
    assert (found.kind, found.where, found.signature) == ("out_of_memory", "host", SAID)
