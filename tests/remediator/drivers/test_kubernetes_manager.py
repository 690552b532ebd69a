"""The `kubernetes` manager over a stand-in API server with controllers and a kubelet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remediator.errors import ConfigError, ManagerError
from remediator.managers import ProcessIdentity
from tests.remediator.drivers.kubernetes_scene import DEPLOYMENT, NOW, SCALE, Scene, scene
from tests.serving.door import CA, TLS

ROLLING = {"type": "RollingUpdate"}
POD = "DELETE /api/v1/namespaces/llm/pods"
TOKEN = "a-token-of-a-service-account"


@pytest.fixture
def cluster() -> Iterator[Scene]:
    with scene() as made:
        made.server.add("Deployment", "vllm")
        yield made


def test_a_pod_with_its_container_is_the_process(cluster: Scene) -> None:
    pod = cluster.server.pod()
    status = cluster.manager().status()
    assert (status.state, status.oom_killed) == ("running", None)
    assert status.detail == f"1 of 1 ready; pod {pod['metadata']['name']} on gpu-1"
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    named = (
        f"pod {pod['metadata']['name']} (uid {pod['metadata']['uid']}, container {container[:12]})"
    )
    assert status.identity == ProcessIdentity(0, NOW, named)
    assert status.identity.told == named


def test_stops_by_scaling_to_0_and_starts_what_it_had(cluster: Scene) -> None:
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 2}})
    cluster.server.settle()
    manager = cluster.manager()
    before = manager.status().identity
    manager.stop(before, 60)
    assert (manager.status().state, manager.status().detail) == ("stopped", "scaled to 0")
    assert cluster.server.pods == {}
    assert cluster.kept == {"replicas": 2}
    manager.stop(before, 60)
    manager.stop(None, 60)
    assert cluster.server.writes == [SCALE]
    after = manager.start(60)
    assert cluster.replicas == 2
    assert after == manager.start(60)
    assert not after.same(before)
    assert cluster.server.writes == [SCALE, SCALE]


def test_how_many_there_were_is_kept_before_it_is_changed(cluster: Scene) -> None:
    kept_then: list[Any] = []
    cluster.server.before = lambda method, path: (
        kept_then.append(dict(cluster.kept)) if method == "PATCH" else None
    )
    cluster.manager().stop(None, 60)
    assert kept_then == [{"replicas": 1}]


def test_where_it_is_not_known_how_many_there_were_the_configuration_says_it(
    cluster: Scene,
) -> None:
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 0}})
    cluster.manager(replicas=2).start(60)
    assert cluster.replicas == 2


@pytest.mark.parametrize("kind", ["deployment", "statefulset"])
def test_a_rollout_leaves_none_but_new_pods(cluster: Scene, kind: str) -> None:
    cluster.server.add("StatefulSet", "vllm", replicas=2)
    manager = cluster.manager(kind=kind)
    before = manager.status().identity
    after = manager.replace(before, "run 7", 120)
    assert cluster.server.writes == [DEPLOYMENT.replace("deployment", kind)]
    assert not after.same(before)
    assert manager.status().identity == after
    status = cluster.server.workloads[f"{kind}s", "vllm"]["status"]
    assert status["updatedReplicas"] == status["readyReplicas"] == status["replicas"]
    assert manager.replacing(before, "run 7")


def test_one_pod_is_deleted_by_its_uid(cluster: Scene) -> None:
    manager = cluster.manager(restart="pod")
    before = manager.status().identity
    name = cluster.server.pod()["metadata"]["name"]
    after = manager.replace(before, "run 7", 120)
    assert cluster.server.writes == [f"{POD}/{name}"]
    assert manager.status().identity == after
    assert cluster.server.pod()["metadata"]["uid"] in after.name


def test_a_server_that_loads_for_longer_than_the_step_has_been_restarted(cluster: Scene) -> None:
    """That it becomes ready is what the playbook's next step waits for."""
    cluster.server.slow_to_be_ready = True
    manager = cluster.manager()
    after = manager.replace(manager.status().identity, "run 7", 60)
    assert manager.status().identity == after
    assert manager.status().detail.startswith("0 of 1 ready")
    assert cluster.clock.passed >= 60


def test_a_rollout_is_not_done_while_an_old_pod_is_there(cluster: Scene) -> None:
    cluster.server.add("Deployment", "small", gpu=False, strategy=ROLLING)
    cluster.server.slow_to_be_ready = True
    manager = cluster.manager(name="small")
    with pytest.raises(ManagerError, match=r"did not restart within 60 s: 1 old pods are still"):
        manager.replace(manager.status().identity, "run 7", 60)


def test_a_rollout_that_its_controller_gave_up_on_says_so_at_once(cluster: Scene) -> None:
    manager = cluster.manager()
    before = manager.status().identity

    def give_up(method: str, path: str) -> None:
        if method == "PATCH":
            cluster.server.frozen = True
            condition = {
                "type": "Progressing",
                "status": "False",
                "reason": "ProgressDeadlineExceeded",
                "message": "timed out",
            }
            generation = cluster.deployment["metadata"]["generation"]
            cluster.deployment["status"] |= {
                "conditions": [condition],
                "observedGeneration": generation,
            }

    cluster.server.after = give_up
    with pytest.raises(ManagerError, match="is stuck: ProgressDeadlineExceeded: timed out"):
        manager.replace(before, "run 7", 60)
    assert cluster.clock.passed < 5


def test_a_server_that_loads_for_longer_than_its_controller_waits_has_been_restarted(
    cluster: Scene,
) -> None:
    """`progressDeadlineSeconds` is 10 minutes, and a large model takes longer."""
    cluster.server.slow_to_be_ready = True
    manager = cluster.manager()
    before = manager.status().identity
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}

    def too_late(method: str, path: str) -> None:
        if cluster.clock.passed > 10:
            cluster.deployment["status"] |= {"conditions": [late]}

    cluster.server.before = too_late
    after = manager.replace(before, "run 7", 20)
    assert manager.status().identity == after
    assert not after.same(before)
    assert manager.status().detail.startswith("0 of 1 ready")


def test_a_stop_or_restart_meant_for_the_old_process_spares_the_new_one(cluster: Scene) -> None:
    for restart in ("rollout", "pod", "stop_start"):
        manager = cluster.manager(restart=restart)
        old = manager.status().identity
        cluster.clock.passed += 60
        cluster.server.end(cluster.server.pod(), 1)
        new = manager.status().identity
        assert not old.same(new), "a container that the kubelet started again is another process"
        manager.stop(old, 60)
        if restart != "stop_start":
            assert manager.replace(old, "run 7", 60) == new
            assert manager.replacing(old, "run 7")
            assert not manager.replacing(new, "run 8")
        assert manager.status().identity == new
    assert cluster.server.writes == []


def test_a_pod_with_the_same_labels_that_is_not_its_own_is_none_of_it(cluster: Scene) -> None:
    other = cluster.server.add("StatefulSet", "other")
    stranger = cluster.server.pods["other-0"]
    stranger["metadata"]["labels"] = {"app": "vllm"}
    assert other["metadata"]["uid"] == stranger["metadata"]["ownerReferences"][0]["uid"]
    manager = cluster.manager(restart="pod")
    assert "other-0" not in manager.status().identity.name
    manager.replace(manager.status().identity, "run 7", 60)
    manager.stop(None, 60)
    assert cluster.server.pods.keys() == {"other-0"}


@pytest.mark.parametrize(
    ("code", "reason", "killed"),
    [(137, "OOMKilled", True), (137, "Error", None), (1, "Error", False)],
)
def test_how_the_last_container_ended(
    cluster: Scene, code: int, reason: str, killed: bool | None
) -> None:
    cluster.server.end(cluster.server.pod(), code, reason)
    status = cluster.manager().status()
    assert (status.state, status.oom_killed) == ("running", killed)
    said = f"restarted 1 times by the kubelet, last {reason}, exit code {code}"
    assert said in status.detail
    cluster.clock.passed += 7200
    assert cluster.manager().status().oom_killed is None, "what is long ago is history"


def test_a_kill_is_told_until_another_pod_ends_otherwise_or_it_is_history(
    cluster: Scene,
) -> None:
    """Whoever counts deaths would take the next change of its pods for another one."""
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 2}})
    cluster.server.settle()
    cluster.server.end(cluster.server.pod(0), 137, "OOMKilled")
    cluster.server.end(cluster.server.pod(1), 1)
    manager = cluster.manager()
    assert manager.status().oom_killed is True, "both at once: the one may be for the other"
    cluster.clock.passed += 300
    assert manager.status().oom_killed is True
    cluster.server.end(cluster.server.pod(1), 1)
    assert manager.status().oom_killed is False
    cluster.clock.passed += 660
    assert manager.status().oom_killed is None


def test_what_the_kubelet_is_about_to_start_again_is_starting(cluster: Scene) -> None:
    cluster.server.end(cluster.server.pod(), 137, "OOMKilled", waits="CrashLoopBackOff")
    manager = cluster.manager()
    status = manager.status()
    assert (status.state, status.identity, status.oom_killed) == ("starting", None, True)
    assert "CrashLoopBackOff: back-off 40s" in status.detail
    with pytest.raises(ManagerError, match=r"did not start within 1 s: not all run.*CrashLoop"):
        manager.start(1)
    assert cluster.server.writes == []
    manager.stop(None, 60)
    assert manager.status().state == "stopped"


def test_a_pod_that_fits_no_node_is_starting_and_says_why(cluster: Scene) -> None:
    cluster.server.gpus = 0
    manager = cluster.manager()
    with pytest.raises(ManagerError, match=r"Unschedulable: 0/1 nodes .* nvidia.com/gpu"):
        manager.replace(manager.status().identity, "run 7", 30)
    assert manager.status().state == "starting"


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"conditions": [{"type": "Ready", "status": "Unknown"}]}, "unknown"),
        ({"phase": "Unknown"}, "unknown"),
        ({"phase": "Failed", "reason": "Evicted"}, "starting"),
    ],
)
def test_a_node_that_does_not_answer_and_a_pod_that_is_over(
    cluster: Scene, change: dict[str, Any], state: str
) -> None:
    cluster.server.frozen = True
    cluster.server.pod()["status"] |= change
    assert cluster.manager().status().state == state


def test_a_workload_that_may_make_no_pods_has_failed(cluster: Scene) -> None:
    cluster.server.frozen = True
    cluster.server.pods.clear()
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": "exceeded quota",
    }
    cluster.deployment["status"] |= {"conditions": [condition]}
    status = cluster.manager().status()
    assert status.state == "failed"
    assert "FailedCreate: exceeded quota" in status.detail


def test_plan_shows_the_requests_and_sends_none(cluster: Scene) -> None:
    scale = "PATCH llm/deployment/vllm/scale: replicas"
    for restart, said in (
        (
            "rollout",
            "PATCH llm/deployment/vllm: an annotation of its pod template, which is a rollout",
        ),
        ("pod", "DELETE the one pod of llm/deployment/vllm, by its uid"),
        ("stop_start", f"{scale} 0, then {scale} as before"),
    ):
        manager = cluster.manager(restart=restart)
        assert manager.describe("stop") == f"{scale} 0"
        assert manager.describe("start") == f"{scale} as before"
        assert manager.describe("restart") == said
    assert cluster.server.requests == []


def test_its_log_is_read_over_the_end_of_its_container(cluster: Scene) -> None:
    pod = cluster.server.pod()
    name = pod["metadata"]["name"]
    cluster.server.logs[name, False] = [(NOW + 1.25, "one"), (NOW + 1.5, "two")]
    log = cluster.manager().log()
    assert log.where == "deployment llm/vllm"
    page = log.read({}, NOW)
    assert [(line.text, line.at) for line in page.lines] == [
        ("one", pytest.approx(NOW + 1.25, abs=1e-3)),
        ("two", pytest.approx(NOW + 1.5, abs=1e-3)),
    ]
    assert log.read(page.position, NOW).lines == ()
    cluster.server.logs[name, False].append((NOW + 3, "CUDA out of memory"))
    cluster.server.end(pod, 1)
    cluster.server.logs[name, False] = [(NOW + 9, "loading")]
    last = log.read(page.position, NOW)
    assert [line.text for line in last.lines] == ["CUDA out of memory"]
    assert last.more
    assert [line.text for line in log.read(last.position, NOW).lines] == ["loading"]
    cluster.manager().stop(None, 60)
    assert log.read(last.position, NOW).lines == ()


def test_in_a_cluster_it_trusts_its_ca_and_shows_the_newest_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with scene((TLS / "server.pem", TLS / "server.key")) as made:
        made.server.add("Deployment", "vllm")
        made.server.token = TOKEN
        manager = made.manager(token_file=str(token), ca_file=str(CA))
        with pytest.raises(ManagerError, match=r"cannot be read from .*: No such file"):
            manager.status()
        token.write_text("of-yesterday\n")
        with pytest.raises(ManagerError, match=f"HTTP 401, .* token in {token} is not accepted"):
            manager.status()
        token.write_text(TOKEN + "\n")
        assert manager.status().running
        other = made.manager(token_file=str(token), ca_file=str(TLS / "client.pem"))
        with pytest.raises(ManagerError, match="no TLS with it"):
            other.status()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "../secrets"}, "manager.name must be a name of Kubernetes"),
        ({"name": ""}, "manager.name"),
        ({"name": "vllm?x=1"}, "manager.name"),
        ({"namespace": "Kube"}, "manager.namespace"),
        ({"namespace": "a.b"}, "manager.namespace"),
        ({"container": "a/b"}, "manager.container"),
        ({"node": "a b"}, "manager.node"),
        ({"kind": "daemonset"}, "manager.kind must be one of deployment, statefulset"),
        ({"restart": "evict"}, "manager.restart must be one of rollout, pod, stop_start"),
        ({"replicas": 0}, "manager.replicas must be at least 1"),
        ({"timeout": "0s"}, "manager.timeout must be longer than 0s"),
        ({"url": "http://10.0.0.1:8001"}, "manager.url must be https://"),
        ({"url": "https://me:secret@api:6443"}, "manager.url"),
        ({"url": "https://api:6443/apis"}, "manager.url"),
        ({"url": "https://["}, "manager.url"),
    ],
)
def test_a_wrong_block_is_told_what_is_right(
    cluster: Scene, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        cluster.manager(**options)
    assert "secret" not in str(caught.value).replace("../secrets", "")
