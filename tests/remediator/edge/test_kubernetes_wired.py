"""A service in Kubernetes through the commands: what it may do, what is refused, who is on a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remediator import footprints
from remediator.actions._reset_checks import strangers
from remediator.preflight import concerns
from remediator.readings import parse_gpu
from remediator.store import Store
from tests.remediator.drivers.kubernetes_scene import Scene, scene
from tests.remediator.edge.support import GPU, SERVICE, ExporterStandIn, in_process, write_config

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cluster() -> Iterator[Scene]:
    with scene() as made:
        made.server.add("Deployment", "vllm")
        yield made


@pytest.fixture
def settings(cluster: Scene, exporter: ExporterStandIn) -> dict[str, Any]:
    manager = {"type": "kubernetes", "namespace": "llm", "name": "vllm", "url": cluster.url}
    return {
        "mode": "auto",
        "allow": ["service_restart", "service_stop"],
        "services": [SERVICE | {"manager": manager, "watch_log": False}],
        "exporter": {"url": exporter.url},
        "gpus": {"control": "none", "inventory": [GPU]},
    }


def test_check_says_how_it_is_and_what_would_be_refused(
    cli: Cli, tmp_path: Path, store: Store, cluster: Scene, settings: dict[str, Any]
) -> None:
    file = f"--config.file={write_config(tmp_path, **settings)}"
    _, out, _ = cli("check", file)
    pod = cluster.server.pod()["metadata"]["name"]
    assert f"1 of 1 ready; pod {pod} on gpu-1" in out
    assert "service account" not in out
    cluster.server.rules = []
    cluster.server.requests.clear()
    code, out, _ = cli("check", file)
    assert code > 0
    name = SERVICE["name"]
    assert (
        f"service {name}: deployment llm/vllm: its service account may not get deployments" in out
    )
    assert not cluster.server.writes


def test_the_start_says_it_too_and_an_api_server_that_is_away(
    tmp_path: Path, cluster: Scene, settings: dict[str, Any]
) -> None:
    with in_process(tmp_path, **settings) as made:
        world, books = made.remediator.world, made.remediator.playbooks
        assert list(concerns(world, books)) == []
        cluster.server.edit("deployments", "vllm", {"spec": {"paused": True}})
        assert all("is paused by somebody" in said for said in concerns(world, books))
        cluster.server.before = lambda method, path: 503
        (said,) = concerns(world, books)
        assert "HTTP 503" in said


def test_check_config_says_what_may_be_asked_for(
    cli: Cli, tmp_path: Path, cluster: Scene, settings: dict[str, Any]
) -> None:
    code, out, _ = cli("check-config", f"--config.file={write_config(tmp_path, **settings)}")
    assert code == 0
    assert "kubernetes unit llm/deployment/vllm" in out
    assert "may PATCH llm/deployment/vllm: an annotation of its pod template, which is a" in out
    assert "may PATCH llm/deployment/vllm/scale: replicas 0" in out
    assert "a restart is both, or one request" in out
    assert not cluster.server.requests


def test_what_its_pod_has_on_a_card_is_its_own(
    tmp_path: Path, cluster: Scene, settings: dict[str, Any]
) -> None:
    uid = cluster.server.pod()["metadata"]["uid"]
    raw = {
        "uuid": GPU,
        "up": True,
        "processes": [
            {"pid": 4001, "process": "vllm", "pod_uid": uid, "memory_used_bytes": 7},
            {"pid": 4002, "process": "vllm", "pod_uid": uid, "memory_used_bytes": 5},
        ],
    }
    other = {"pid": 4003, "process": "x", "pod_uid": "another", "memory_used_bytes": 3}
    summed = {"pid": None, "process": "others", "pod_uid": "", "memory_used_bytes": 2}
    with in_process(tmp_path, **settings) as made:
        world = made.remediator.world
        (service,) = world.services.values()
        identity = service.manager.status().identity
        assert identity is not None
        reading = parse_gpu({**raw, "processes": [*raw["processes"], other, summed]})
        use = footprints.use_of(world, service, identity, reading)
        assert use == footprints.Use(12, "processes")
        world.gpus = OneCard(parse_gpu(raw))
        assert strangers(world, GPU).passed
        world.gpus = OneCard(reading)
        found = strangers(world, GPU)
        assert not found.passed
        assert "x (pid 4003), others (pid 0)" in found.answer
        assert "4001" not in found.answer


class OneCard:
    """`GpuReader` of one reading."""

    def __init__(self, reading: Any) -> None:
        self._reading = reading

    def all(self) -> tuple[Any, ...]:
        return (self._reading,)

    def one(self, uuid: str) -> Any:
        return self._reading
