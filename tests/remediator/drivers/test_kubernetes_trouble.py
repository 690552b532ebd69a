"""The `kubernetes` manager where the API server is away, answers oddly, or a node is gone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from remediator.errors import ManagerError, OutcomeUnknown
from tests.remediator.drivers.kubernetes_scene import DEPLOYMENT, NOW, SCALE, Scene, scene

BROKEN = 0
GONE = {"type": "Ready", "status": "Unknown"}


@pytest.fixture
def cluster() -> Iterator[Scene]:
    with scene() as made:
        made.server.add("Deployment", "vllm")
        yield made


def failing(status: int, method: str, times: int = -1) -> Callable[[str, str], int | None]:
    """That status for so many such requests; for all where no number is given."""
    left = times

    def fault(asked: str, path: str) -> int | None:
        nonlocal left
        if asked != method or left == 0:
            return None
        left -= 1
        return status

    return fault


@pytest.mark.parametrize(
    ("status", "method"), [(BROKEN, "GET"), (503, "GET"), (429, "GET"), (429, "PATCH")]
)
def test_a_stop_outlasts_an_api_server_that_is_away_for_some_seconds(
    cluster: Scene, status: int, method: str
) -> None:
    """One that is being replaced or is too busy is back soon, and the card is hot now."""
    cluster.server.before = failing(status, method, 6)
    cluster.manager().stop(None, 60)
    assert cluster.replicas == 0
    assert cluster.server.writes == [SCALE]
    assert cluster.clock.passed < 15


@pytest.mark.parametrize("change", ["stop", "start", "restart"])
def test_whoever_waits_for_its_turn_is_not_kept_waiting_by_one_that_stays_away(
    cluster: Scene, change: str
) -> None:
    manager = cluster.manager()
    identity = manager.status().identity
    cluster.server.before = failing(503, "GET")
    with pytest.raises(ManagerError, match="HTTP 503, made to fail"):
        {
            "stop": lambda: manager.stop(identity, 600),
            "start": lambda: manager.start(600),
            "restart": lambda: manager.replace(identity, "run 7", 600),
        }[change]()
    assert cluster.clock.passed < 30
    assert cluster.server.writes == []


def test_a_look_is_repeated_over_a_short_fault_and_no_longer(cluster: Scene) -> None:
    cluster.server.before = failing(BROKEN, "GET", 2)
    assert cluster.manager().status().running
    cluster.server.before = failing(503, "GET")
    before = cluster.clock.passed
    with pytest.raises(ManagerError, match="HTTP 503"):
        cluster.manager().status()
    assert cluster.clock.passed - before < 5
    cluster.server.before = failing(403, "GET")
    before = cluster.clock.passed
    with pytest.raises(ManagerError, match="HTTP 403"):
        cluster.manager().status()
    assert cluster.clock.passed == before, "it would say so again"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_who_is_refused_after_a_lost_answer_does_not_know_what_became_of_it(
    cluster: Scene, status: int
) -> None:
    manager = cluster.manager()
    identity = manager.status().identity

    def lose(method: str, path: str) -> int | None:
        if method != "PATCH":
            return None
        cluster.server.before = failing(status, "GET")
        return BROKEN

    cluster.server.after = lose
    with pytest.raises(OutcomeUnknown, match="whether deployment llm/vllm was changed is not kno"):
        manager.replace(identity, "run 7", 60)
    assert cluster.server.writes == [DEPLOYMENT]


def test_what_the_server_said_last_is_told_of_an_outcome_that_is_not_known(
    cluster: Scene,
) -> None:
    """An admission webhook that is away is an HTTP 500, and somebody has to mend it."""
    cluster.server.before = failing(500, "PATCH")
    with pytest.raises(OutcomeUnknown, match=r"is not known: PATCH .*: HTTP 500, made to fail"):
        cluster.manager().stop(None, 5)


def test_the_log_goes_on_where_that_of_the_last_container_is_gone(cluster: Scene) -> None:
    pod = cluster.server.pod()
    name = pod["metadata"]["name"]
    cluster.server.logs[name, False] = [(NOW + 1, "one")]
    log = cluster.manager().log()
    page = log.read({}, NOW)
    cluster.server.end(pod, 1)
    cluster.server.logs[name, False] = [(NOW + 9, "loading")]
    cluster.server.before = lambda method, path: 400 if "previous=true" in path else None
    gone = log.read(page.position, NOW)
    assert (gone.lines, gone.more, gone.skipped) == ((), True, True)
    assert [line.text for line in log.read(gone.position, NOW).lines] == ["loading"]


def test_how_many_there_were_is_known_also_where_it_could_not_be_kept(cluster: Scene) -> None:
    """While the disk is full, a stop for heat is made all the same."""
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 3}})
    cluster.server.settle()
    manager = cluster.manager()
    manager._context = type(manager._context)(cluster.clock, dict, lambda kept: None)
    manager.stop(None, 60)
    manager.start(60)
    assert cluster.replicas == 3


def test_lists_are_read_page_by_page(cluster: Scene) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "other"}
    plain = {"metadata": {"name": "x"}, "spec": {"scaleTargetRef": target, "maxReplicas": 3}}
    last = copy.deepcopy(plain)
    last["spec"] |= {"minReplicas": 0, "scaleTargetRef": target | {"name": "vllm"}}
    cluster.server.autoscalers = [plain] * 250 + [last]
    (said,) = cluster.manager(restart="stop_start").concerns()
    assert "minReplicas 0" in said
    asked = [one for one in cluster.server.requests if "autoscalers" in one and "limit=" in one]
    assert len(asked) == 3


def test_a_list_that_never_ends_is_an_error(
    cluster: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = cluster.server._get

    def endless(*args: Any) -> tuple[int, Any]:
        code, found = true(*args)
        if "items" in found:
            found["metadata"]["continue"] = "0"
        return code, found

    monkeypatch.setattr(cluster.server, "_get", endless)
    with pytest.raises(ManagerError, match="more than 5000"):
        cluster.manager().status()


@pytest.mark.parametrize("key", ["name", "uid"])
@pytest.mark.parametrize("value", ["../../secrets/x", "..", "", "a/b", "a?b=c", "a\n", "x" * 300])
def test_a_pod_of_a_name_that_kubernetes_has_not_is_none(
    cluster: Scene, key: str, value: str
) -> None:
    """It would become part of a path that is asked for, and of what a process is known by."""
    cluster.server.frozen = True
    cluster.server.pod()["metadata"][key] = value
    manager = cluster.manager(restart="pod")
    with pytest.raises(ManagerError, match="answered what is no list of pods"):
        manager.status()
    assert not any("secrets" in one for one in cluster.server.requests)


@pytest.mark.parametrize("answer", [b"[" * 100_000, b'{"a":' * 50_000, b"{" + b" " * 5_000_000])
def test_a_huge_or_deep_answer_is_an_error(
    cluster: Scene, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.server, "answer", lambda *_: (200, answer))
    with pytest.raises(ManagerError, match=r"is not JSON|is larger than"):
        cluster.manager().status()


def ghost(cluster: Scene, node: str) -> None:
    """Beside its pod an older one, which is ending on a node that does not answer."""
    cluster.server.frozen = True
    old = copy.deepcopy(cluster.server.pod())
    old["metadata"] |= {
        "name": "vllm-old",
        "uid": "0b7d5f0e-0000-4000-8000-000000000001",
        "deletionTimestamp": "2027-01-15T08:00:00Z",
    }
    old["spec"]["nodeName"] = node
    old["status"]["conditions"] = [GONE]
    cluster.server.pods["vllm-old"] = json.loads(json.dumps(old))


def test_what_is_left_of_it_on_a_lost_node_does_not_hide_the_one_that_runs(cluster: Scene) -> None:
    ghost(cluster, "gpu-2")
    status = cluster.manager().status()
    assert status.state == "running"
    assert "vllm-old on gpu-2, ending, whose node does not answer" in status.detail
    cluster.server.pods = {"vllm-old": cluster.server.pods["vllm-old"]}
    assert cluster.manager().status().state == "unknown", "it may run there still"


def test_what_is_ending_on_another_node_does_not_keep_the_one_here_from_its_stop(
    cluster: Scene,
) -> None:
    ghost(cluster, "gpu-2")
    manager = cluster.manager(node="gpu-1")
    assert list(manager.concerns()) == []
    with pytest.raises(ManagerError, match=r"did not stop within 5 s: .*vllm-old on gpu-2, ending"):
        manager.stop(None, 5)
    assert cluster.server.writes == [SCALE], "the rest is told, and the card here is free"


def test_an_init_container_that_fails_is_told(cluster: Scene) -> None:
    cluster.server.frozen = True
    status = cluster.server.pod()["status"]
    status["phase"] = "Pending"
    status["containerStatuses"][0] |= {"state": {"waiting": {"reason": "PodInitializing"}}}
    waits = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}
    ended = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    status["initContainerStatuses"] = [
        {"name": "certificates", "state": ended},
        {"name": "download", "state": waits},
    ]
    found = cluster.manager().status()
    assert found.state == "starting"
    assert "init container download: CrashLoopBackOff: back-off 5m0s" in found.detail
