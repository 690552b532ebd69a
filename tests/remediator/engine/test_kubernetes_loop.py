"""The whole loop over the `kubernetes` manager and a stand-in API server: alerts in, pods replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from remediator import managers
from remediator.managers import ProcessIdentity
from remediator.services import ServiceProbe
from tests.remediator.drivers.kubernetes_scene import DEPLOYMENT, SCALE
from tests.remediator.drivers.standin_apiserver import Server, serve
from tests.remediator.engine.bench import Bench

DOWN, SHUTDOWN = "LLMServiceDown", "GPUTemperatureShutdown"
MARK = "gpu-remediator/restarted-by"
BROKEN = 0
Make = Callable[..., Bench]


class Crash(BaseException):
    """The process dies here; nothing of ours may catch it."""


class Cluster:
    """A bench whose service is Deployment `vllm`; its server listens unless it is hung."""

    def __init__(self, bench: Bench, server: Server, url: str) -> None:
        self.bench, self.server, self.url = bench, server, url
        server.add("Deployment", "vllm", replicas=1)
        bench.clock.advance(3600)
        driver = bench.drivers["ollama"]
        self.hung = ""
        probe = driver.probe
        driver._manager = self
        driver._seen = self.identity
        driver.probe = lambda: (
            ServiceProbe("refused", "the connection was refused")
            if self.hung and self.identity and self.identity.name == self.hung
            else probe()
        )
        self.wire()

    @property
    def identity(self) -> ProcessIdentity | None:
        return self.bench.managers["ollama"].status().identity if self.wired else None

    wired = False

    def wire(self) -> None:
        """As the remediator's own start does it, with what the store remembers."""
        bench, self.wired = self.bench, True

        def load() -> Mapping[str, Any]:
            with bench.store.reading() as tx:
                return tx.inventory.service("ollama").process

        def save(kept: Mapping[str, Any]) -> None:
            with bench.store.transaction() as tx:
                tx.inventory.remember_process("ollama", kept)

        raw = {"type": "kubernetes", "namespace": "llm", "name": "vllm", "url": self.url}
        context = managers.Context(bench.clock, load, save)
        bench.managers["ollama"] = managers.create(raw, "ollama", context)  # type: ignore[assignment]
        bench._wire()

    def hang(self) -> ProcessIdentity:
        found = self.identity
        assert found is not None
        self.hung = found.name
        self.bench.fire(DOWN, service="ollama")
        return found

    @property
    def spec(self) -> dict[str, Any]:
        return self.server.workloads["deployments", "vllm"]["spec"]


@pytest.fixture
def cluster(make_bench: Make) -> Iterator[Cluster]:
    bench = make_bench(services=("ollama",))
    server = Server(bench.clock.now)
    with serve(server) as url:
        yield Cluster(bench, server, url)


def test_what_is_down_is_rolled_out_once_and_proved(cluster: Cluster) -> None:
    old = cluster.hang()
    cluster.bench.act()
    run = cluster.bench.run
    assert run.state == "succeeded", run.sentence
    assert cluster.server.writes == [DEPLOYMENT]
    mark = cluster.spec["template"]["metadata"]["annotations"][MARK]
    assert mark.startswith(f"run {run.id}, ")
    (step,) = (step for step in cluster.bench.steps() if step.action == "restart_service")
    assert step.intent["before"] == old.to_json()
    assert step.intent["mark"] == mark
    assert cluster.identity is not None
    assert step.result["after"] == cluster.identity.to_json()


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_crash_after_a_lost_answer_leaves_one_rollout(
    cluster: Cluster, carried_out: bool
) -> None:
    """The answer never came, and the remediator died looking for it."""
    cluster.hang()

    def lose(method: str, path: str) -> int | None:
        if method != "PATCH":
            return None
        cluster.server.before = cluster.server.after = lambda *_: None
        cluster.bench.clock.at(cluster.bench.clock.passed, die)
        return BROKEN

    def die() -> None:
        raise Crash

    if carried_out:
        cluster.server.after = lose
    else:
        cluster.server.before = lose
    cluster.bench.evaluate()
    with pytest.raises(Crash):
        cluster.bench.execute()
    cluster.bench.restart()
    cluster.wire()
    cluster.bench.execute()
    assert cluster.bench.run.state == "succeeded"
    assert cluster.server.writes == [DEPLOYMENT]
    with cluster.bench.store.reading() as tx:
        assert tx.inventory.service("ollama").restarts == 1


def test_a_stop_for_heat_is_a_scale_to_0_and_its_start_goes_back_after_a_restart(
    cluster: Cluster,
) -> None:
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 2}})
    cluster.server.settle()
    cluster.bench.card.celsius = lambda watts: 91.0 if cluster.server.pods else 60.0
    cluster.bench.fire(SHUTDOWN)
    cluster.bench.act()
    assert cluster.spec["replicas"] == 0
    assert cluster.server.writes == [SCALE]
    cluster.bench.restart()
    cluster.wire()
    cluster.bench.managers["ollama"].start(60)
    assert cluster.spec["replicas"] == 2


def test_a_stop_for_heat_without_an_api_server_ends_soon_and_a_person_is_called(
    cluster: Cluster,
) -> None:
    cluster.bench.card.celsius = lambda watts: 91.0
    cluster.server.before = lambda method, path: 503
    began = cluster.bench.clock.passed
    cluster.bench.fire(SHUTDOWN)
    cluster.bench.act()
    assert cluster.bench.clock.passed - began < 30
    incident = cluster.bench.incident(SHUTDOWN)
    assert incident is not None
    assert incident.state == "needs_human"
    assert "HTTP 503" in cluster.bench.run.sentence
    cluster.server.before = lambda method, path: None
    cluster.bench.pass_time(240)
    cluster.bench.fire(SHUTDOWN)
    cluster.bench.act()
    assert cluster.spec["replicas"] == 0, "the next notification of the same alert tries again"


def test_what_a_person_scaled_to_0_is_not_started(cluster: Cluster) -> None:
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 0}})
    cluster.server.settle()
    cluster.bench.drivers["ollama"].probe = lambda: ServiceProbe("refused", "refused")
    cluster.bench.fire(DOWN, service="ollama")
    cluster.bench.act()
    assert cluster.spec["replicas"] == 0
    assert cluster.server.writes == []
