"""The `kubernetes` manager where answers are lost, others change the same, or it may not be done."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from remediator.errors import ManagerError, OutcomeUnknown
from remediator.managers import ProcessIdentity
from remediator.managers._degraded import EitherOf
from remediator.managers._workload import Pod, Seen, Workload
from remediator.managers._workload_client import Right, rights
from remediator.managers._workload_json import owned, parse_pods, parse_workload
from remediator.managers.base import Replaces
from tests.remediator.drivers.kubernetes_scene import DEPLOYMENT, SCALE, Scene, scene

BROKEN = 0
MARK = "gpu-remediator/restarted-by"
Fault = Callable[[str, str], int | None]


@pytest.fixture
def cluster() -> Iterator[Scene]:
    with scene() as made:
        made.server.add("Deployment", "vllm")
        yield made


def once(status: int, method: str = "PATCH") -> Fault:
    """That status for the first such request."""
    left = [status]
    return lambda asked, path: left.pop() if asked == method and left else None


def always(status: int, *methods: str) -> Fault:
    return lambda asked, path: status if asked in methods else None


def restart(manager: Any, mark: str = "run 7", within: float = 30) -> ProcessIdentity:
    return manager.replace(manager.status().identity, mark, within)


@pytest.mark.parametrize("how", ["rollout", "pod"])
@pytest.mark.parametrize("status", [BROKEN, 500, 504])
@pytest.mark.parametrize("carried_out", [True, False])
def test_a_restart_whose_answer_was_lost_is_looked_for_and_done_once(
    cluster: Scene, how: str, status: int, carried_out: bool
) -> None:
    method = "PATCH" if how == "rollout" else "DELETE"
    manager = cluster.manager(restart=how)
    old = cluster.server.pod()["metadata"]["uid"]
    if carried_out:
        cluster.server.after = once(status, method)
    else:
        cluster.server.before = once(status, method)
    after = restart(manager)
    assert old not in after.name
    assert len(cluster.server.writes) == 1, "what was carried out is not asked for again"
    assert cluster.deployment["metadata"]["generation"] == (2 if how == "rollout" else 1)


def test_after_a_crash_the_same_restart_is_found_and_not_asked_for_again(cluster: Scene) -> None:
    manager = cluster.manager()
    before = manager.status().identity
    after = manager.replace(before, "run 7", 30)
    again = cluster.manager()
    assert again.replacing(before, "run 7")
    assert again.replace(before, "run 7", 30) == after
    assert cluster.server.writes == [DEPLOYMENT]


def test_a_restart_that_was_cut_off_in_the_middle_is_waited_for(cluster: Scene) -> None:
    manager = cluster.manager()
    before = manager.status().identity
    cluster.server.frozen = True
    with pytest.raises(ManagerError, match="its controller has not seen the change yet"):
        manager.replace(before, "run 7", 2)
    assert manager.status().identity == before
    assert manager.replacing(before, "run 7"), "the annotation says that it was asked for"
    cluster.server.frozen = False
    assert not manager.replace(before, "run 7", 30).same(before)
    assert cluster.server.writes == [DEPLOYMENT]


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_where_the_world_cannot_be_asked_after_a_lost_answer_the_outcome_is_unknown(
    cluster: Scene, verb: str
) -> None:
    manager = cluster.manager()
    identity = manager.status().identity

    def gone(method: str, path: str) -> int | None:
        cluster.server.before = always(503, "GET")
        return BROKEN

    cluster.server.before = lambda method, path: gone(method, path) if method == "PATCH" else None
    with pytest.raises(
        OutcomeUnknown, match=r"whether deployment llm/vllm was changed is not known"
    ):
        manager.stop(identity, 5) if verb == "stop" else manager.replace(identity, "run 7", 5)


def test_a_server_that_never_answers_a_change_leaves_its_outcome_unknown(cluster: Scene) -> None:
    manager = cluster.manager()
    cluster.server.before = always(BROKEN, "PATCH")
    with pytest.raises(OutcomeUnknown):
        manager.stop(None, 3)
    assert cluster.server.writes == []


@pytest.mark.parametrize("carried_out", [True, False])
def test_a_stop_and_a_start_whose_answers_were_lost(cluster: Scene, carried_out: bool) -> None:
    manager = cluster.manager()
    for change in (lambda: manager.stop(None, 30), lambda: manager.start(30)):
        if carried_out:
            cluster.server.after = once(BROKEN)
        else:
            cluster.server.before = once(BROKEN)
        change()
    assert cluster.server.writes == [SCALE, SCALE]
    assert manager.status().running


def test_an_api_server_that_is_away_while_it_is_waited_for_is_asked_again(cluster: Scene) -> None:
    manager = cluster.manager()
    looks = itertools.count()
    cluster.server.after = lambda method, path: (
        503 if method == "GET" and cluster.server.writes and next(looks) < 4 else None
    )
    restart(manager)
    assert cluster.server.writes == [DEPLOYMENT]


def test_what_somebody_else_changed_meanwhile_is_looked_at_again(cluster: Scene) -> None:
    manager = cluster.manager()
    changes = iter([{"spec": {"minReadySeconds": 5}}])

    def edit(method: str, path: str) -> None:
        if method == "PATCH" and (change := next(changes, None)):
            cluster.server.edit("deployments", "vllm", change)

    cluster.server.before = edit
    restart(manager)
    assert len(cluster.server.writes) > 1
    assert cluster.deployment["metadata"]["generation"] == 3, "what was in conflict changed nothing"
    assert cluster.deployment["spec"]["minReadySeconds"] == 5


def test_a_pod_that_was_replaced_between_look_and_change_is_spared(cluster: Scene) -> None:
    for how in ("rollout", "pod", "stop_start"):
        manager = cluster.manager(restart=how)
        identity = manager.status().identity
        others = {"by": f"somebody else, before a {how}"}

        def replaced(method: str, path: str, others: dict[str, str] = others) -> None:
            if method in ("PATCH", "DELETE"):
                cluster.server.before = lambda *_: None
                change = {"spec": {"template": {"metadata": {"annotations": others}}}}
                cluster.server.edit("deployments", "vllm", change)
                cluster.server.settle()

        cluster.server.before = replaced
        if how == "stop_start":
            manager.stop(identity, 30)
        else:
            assert manager.replace(identity, "run 7", 30) == manager.status().identity
        assert manager.status().running, "what came in its place is left alone"
        assert cluster.deployment["spec"]["template"]["metadata"]["annotations"] == others
    assert cluster.replicas == 1


@pytest.mark.parametrize("how", ["rollout", "stop_start"])
@pytest.mark.parametrize("change", ["one ended", "one more"])
def test_of_several_pods_one_that_is_still_the_old_one_is_enough_to_act(
    cluster: Scene, how: str, change: str
) -> None:
    """Or the hung one of two would stay, and count as restarted: all of them are one server."""
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 2}})
    cluster.server.settle()
    manager = cluster.manager(restart=how)
    identity = manager.status().identity
    cluster.clock.passed += 60
    if change == "one ended":
        cluster.server.end(cluster.server.pod(), 1)
    else:
        cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 3}}, "autoscaler")
        cluster.server.settle()
    if how == "rollout":
        assert not manager.replacing(identity, "run 7")
        after = manager.replace(identity, "run 7", 60)
        assert not any(old in after.name for old in identity.name.split(", pod "))
    else:
        manager.stop(identity, 60)
        assert manager.status().state == "stopped"


def test_who_scales_it_back_is_named(cluster: Scene) -> None:
    manager = cluster.manager()

    def back(method: str, path: str) -> None:
        if method == "PATCH":
            change = {"spec": {"replicas": 1}}
            cluster.server.edit("deployments", "vllm", change, "argocd-controller")

    cluster.server.after = back
    words = r"was scaled back to 1 by argocd-controller: .*has to leave its replicas alone"
    with pytest.raises(ManagerError, match=words):
        manager.stop(None, 30)
    assert cluster.clock.passed < 5
    assert cluster.server.writes == [SCALE]


def autoscaler(kind: str, name: str, least: int | None = 1, owner: str = "") -> dict[str, Any]:
    target = {"apiVersion": "apps/v1", "kind": kind, "name": name}
    owners = {"apiVersion": "keda.sh/v1alpha1", "kind": owner, "name": name, "uid": "u"}
    limits = {"maxReplicas": 3} | ({} if least is None else {"minReplicas": least})
    return {
        "metadata": {"name": "load"} | ({"ownerReferences": [owners]} if owner else {}),
        "spec": {"scaleTargetRef": target, **limits},
    }


@pytest.mark.parametrize("least", [1, 2, None])
def test_beside_a_plain_autoscaler_it_is_stopped_and_started_again(
    cluster: Scene, least: int | None
) -> None:
    """Kubernetes switches an autoscaler off while its target is at 0 (`ScalingDisabled`)."""
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 2}})
    cluster.server.settle()
    cluster.server.autoscalers = [autoscaler("Deployment", "vllm", least)]
    manager = cluster.manager(restart="stop_start")
    assert list(manager.concerns()) == []
    manager.stop(manager.status().identity, 30)
    assert manager.status().state == "stopped"
    manager.start(30)
    assert cluster.replicas == 2, "at 0 it would stay off"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (autoscaler("Deployment", "vllm", 0), "the HorizontalPodAutoscaler load has minReplicas 0"),
        (
            autoscaler("Deployment", "vllm", 1, "ScaledObject"),
            "the HorizontalPodAutoscaler load is KEDA's",
        ),
    ],
)
def test_what_scales_from_0_by_itself_is_not_stopped(
    cluster: Scene, found: dict[str, Any], words: str
) -> None:
    manager = cluster.manager(restart="stop_start")
    cluster.server.autoscalers = [
        autoscaler("StatefulSet", "vllm", 0),
        autoscaler("Deployment", "x", 0),
        autoscaler("Deployment", "vllm", 1, "Owner"),
    ]
    assert list(manager.concerns()) == []
    cluster.server.autoscalers.append(found)
    with pytest.raises(ManagerError, match=words):
        manager.stop(manager.status().identity, 30)
    (said,) = manager.concerns()
    assert words in said
    restart(cluster.manager())
    assert cluster.server.writes == [DEPLOYMENT], "a rollout does not touch the replicas"


def test_what_is_paused_is_stopped_and_not_rolled_out(cluster: Scene) -> None:
    """A pause is one of rollouts: its controller goes on scaling."""
    cluster.server.edit("deployments", "vllm", {"spec": {"paused": True}})
    manager = cluster.manager()
    assert manager.status().detail.startswith("1 of 1 ready, paused by somebody; pod")
    with pytest.raises(ManagerError, match=r"is paused by somebody \(spec.paused\)"):
        restart(manager)
    assert len(list(manager.concerns())) == 1
    manager.stop(None, 30)
    assert cluster.server.writes == [SCALE]


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("Deployment", {"strategy": {"type": "RollingUpdate"}}, "needs a free GPU"),
        (
            "Deployment",
            {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}},
            "needs a free GPU",
        ),
        ("StatefulSet", {"updateStrategy": {"type": "OnDelete"}}, "is OnDelete"),
        (
            "StatefulSet",
            {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}},
            "has a partition",
        ),
    ],
)
def test_a_rollout_that_would_not_replace_its_pods_is_refused(
    cluster: Scene, kind: str, spec: dict[str, Any], words: str
) -> None:
    cluster.server.add(kind, "other", **spec)
    manager = cluster.manager(kind=kind.lower(), name="other")
    with pytest.raises(ManagerError, match=words):
        restart(manager)
    assert words in " ".join(manager.concerns())
    assert cluster.server.writes == []


def test_a_card_that_is_claimed_is_one_that_is_asked_for(cluster: Scene) -> None:
    """Dynamic resource allocation: each pod of a template gets a claim, and so a card, of its own."""
    made = cluster.server.add("Deployment", "other", gpu=False, strategy={"type": "RollingUpdate"})
    template = made["spec"]["template"]["spec"]
    template["resourceClaims"] = [{"name": "card", "resourceClaimTemplateName": "one-gpu"}]
    assert "needs a free GPU" in " ".join(cluster.manager(name="other").concerns())
    template["resourceClaims"] = [{"name": "card", "resourceClaimName": "shared"}]
    assert list(cluster.manager(name="other").concerns()) == []


@pytest.mark.parametrize(("unavailable", "gpu"), [(1, True), ("100%", True), (0, False)])
def test_a_rollout_with_room_goes_on(cluster: Scene, unavailable: int | str, gpu: bool) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable}}
    cluster.server.add("Deployment", "other", gpu=gpu, strategy=strategy)
    restart(cluster.manager(name="other"))


def test_one_of_several_pods_is_not_picked(cluster: Scene) -> None:
    cluster.server.edit("deployments", "vllm", {"spec": {"replicas": 2}})
    cluster.server.settle()
    manager = cluster.manager(restart="pod")
    with pytest.raises(ManagerError, match="2 pods run, and which of them is meant is not known"):
        restart(manager)
    assert not manager.replacing(manager.status().identity, "run 7")


def test_a_pod_on_another_node_is_left_alone(cluster: Scene) -> None:
    for how in ("rollout", "pod", "stop_start"):
        manager = cluster.manager(restart=how, node="gpu-2")
        with pytest.raises(ManagerError, match=r"on gpu-1, not on gpu-2: its cards are not ours"):
            manager.stop(None, 30)
        if how != "stop_start":
            with pytest.raises(ManagerError, match="not on gpu-2"):
                restart(manager)
        assert "not on gpu-2" in " ".join(manager.concerns())
    assert cluster.server.writes == []
    assert list(cluster.manager(node="gpu-1").concerns()) == []


@pytest.mark.parametrize("container", ["", "sidecar"])
def test_which_container_is_the_server_has_to_be_said(cluster: Scene, container: str) -> None:
    template = cluster.deployment["spec"]["template"]["spec"]
    template["containers"].append({"name": "proxy", "image": "proxy:1"})
    words = "has the containers server, proxy: set manager.container to one"
    with pytest.raises(ManagerError, match=words):
        cluster.manager(container=container).status()
    cluster.server.settle()
    assert cluster.manager(container="server").status().running


def test_what_is_not_there_and_who_does_not_answer(cluster: Scene) -> None:
    with pytest.raises(ManagerError, match="there is no deployment llm/other: is its name right"):
        cluster.manager(name="other").status()
    with pytest.raises(ManagerError, match=r"the API server at .*: the connection was refused"):
        cluster.manager(url="http://127.0.0.1:1").stop(None, 1)
    cluster.server.before = always(503, "GET", "POST")
    manager = cluster.manager()
    for ask in (manager.status, lambda: manager.start(1), lambda: manager.stop(None, 1)):
        with pytest.raises(ManagerError, match="HTTP 503, made to fail"):
            ask()
    assert "HTTP 503" in "".join(manager.concerns())


@pytest.mark.parametrize("garbage", [b"", b"hello", b"[]", b"{}", b'{"metadata": {}, "spec": 3}'])
def test_an_answer_of_something_else_is_an_error(
    cluster: Scene, garbage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.server, "answer", lambda *_: (200, garbage))
    with pytest.raises(ManagerError, match=r"is not|answered what is no"):
        cluster.manager().status()


def rule(right: Right) -> dict[str, Any]:
    resource = right.resource + (f"/{right.subresource}" if right.subresource else "")
    named = {"resourceNames": [right.name]} if right.name else {}
    return {"apiGroups": [right.group], "resources": [resource], "verbs": [right.verb]} | named


@pytest.mark.parametrize("kind", ["deployment", "statefulset"])
@pytest.mark.parametrize("how", ["rollout", "pod", "stop_start"])
def test_it_needs_the_rights_that_it_says_and_uses_each(
    cluster: Scene, kind: Any, how: Any
) -> None:
    cluster.server.add("StatefulSet", "vllm")
    needed = list(rights(kind, "vllm", how))
    cluster.server.rules = [rule(right) for right in needed]
    manager = cluster.manager(kind=kind, restart=how)
    assert list(manager.concerns()) == []
    if how != "stop_start":
        restart(manager)
    manager.stop(None, 30)
    manager.start(30)
    used = {
        (
            one.verb,
            one.group,
            one.resource + (f"/{one.subresource}" if one.subresource else ""),
            one.name,
        )
        for one in needed
    }
    assert cluster.server.used == used


@pytest.mark.parametrize("missing", list(rights("deployment", "vllm", "rollout")))
def test_a_right_that_is_missing_is_told_beforehand_and_when_it_is_needed(
    cluster: Scene, missing: Right
) -> None:
    kept = [one for one in rights("deployment", "vllm", "rollout") if one != missing]
    cluster.server.rules = [rule(one) for one in kept]
    manager = cluster.manager()
    (said,) = manager.concerns()
    assert f"its service account may not {missing.told}; see role.yaml" in said

    def all_of_it() -> None:
        restart(manager)
        manager.stop(None, 5)

    words = re.escape("is forbidden") + ".*needs deploy/kubernetes/role.yaml"
    with pytest.raises(ManagerError, match=words):
        all_of_it()


def test_the_mark_is_an_annotation_of_the_template_and_of_nothing_else(cluster: Scene) -> None:
    restart(cluster.manager(), "run 7, 2026-11-22T08:00:00.000+00:00")
    template = cluster.deployment["spec"]["template"]["metadata"]
    assert template["annotations"] == {MARK: "run 7, 2026-11-22T08:00:00.000+00:00"}
    assert "annotations" not in cluster.deployment["metadata"]


def test_with_less_load_prepared_a_restart_is_a_stop_and_a_start(cluster: Scene) -> None:
    """It may begin with the one workload and end with the other."""
    cluster.server.add("Deployment", "small", replicas=0)
    both = EitherOf(cluster.manager(), cluster.manager(name="small", restart="pod"), Usual())
    scale = "PATCH llm/deployment/vllm/scale: replicas"
    assert both.describe("restart").startswith(f"{scale} 0, then {scale} as before (with less")
    assert not isinstance(both, Replaces)
    assert list(both.concerns()) == []
    cluster.server.autoscalers = [autoscaler("Deployment", "small", 0)]
    assert any("llm/small: the HorizontalPodAut" in said for said in both.concerns())


class Usual:
    """The usual one is to run."""

    def since(self) -> float | None:
        return None

    def has_begun(self) -> bool:
        return False


JUNK = (None, [], {}, "x", -1, 1e400, [{}], {"x": []}, "0001-01-01")


def mutants(raw: Any) -> Iterator[Any]:
    """`raw` with each of its values in turn replaced or taken away."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            yield {k: v for k, v in raw.items() if k != key}
            yield from ({**raw, key: other} for other in (*JUNK, *mutants(value)))
    elif isinstance(raw, list):
        for number, value in enumerate(raw):
            for other in (*JUNK, *mutants(value)):
                yield [*raw[:number], other, *raw[number + 1 :]]


def test_whatever_is_answered_is_understood_or_an_error_of_ours(cluster: Scene) -> None:
    cluster.server.end(cluster.server.pod(), 137, "OOMKilled", waits="CrashLoopBackOff")
    spec = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}}}
    cluster.server.edit("deployments", "vllm", spec)
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "x", "message": "y"}
    cluster.deployment["status"] |= {"conditions": [condition]}
    pods = {"items": list(cluster.server.pods.values())}
    sets = {"items": list(cluster.server.sets.values())}
    seen = 0
    for read, raw in (
        (lambda raw: parse_workload(raw, "deployment"), cluster.deployment),
        (lambda raw: parse_pods(raw, "server"), pods),
        (lambda raw: owned(raw, "a"), sets),
    ):
        for mutant in mutants(raw):
            seen += 1
            with contextlib.suppress(ManagerError):
                found = read(mutant)
                if isinstance(found, Workload):
                    Seen(found, ()).status(0.0)
                elif found and isinstance(found[0], Pod):
                    Seen(parse_workload(cluster.deployment, "deployment"), found).status(0.0)
    assert seen > 1000
