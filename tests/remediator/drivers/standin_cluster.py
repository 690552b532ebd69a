"""The objects of a stand-in Kubernetes namespace, moved by stand-in controllers and a kubelet.

Objects are those of the API reference of Kubernetes 1.37. Time is the test's.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

Object = dict[str, Any]
NAMESPACE = "llm"
GPU = {"nvidia.com/gpu": "1"}


def rfc3339(unix: float) -> str:
    return dt.datetime.fromtimestamp(unix, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class Cluster:
    """What is in the namespace. `frozen`: no controller and no kubelet moves."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.lock = threading.RLock()
        self.version = 100
        self.workloads: dict[tuple[str, str], Object] = {}
        self.sets: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self.autoscalers: list[Object] = []
        self.logs: dict[tuple[str, bool], list[tuple[float, str]]] = {}
        # Template of a StatefulSet's pod by its uid, and for how many steps a pod has been ending.
        self.made_of: dict[str, str] = {}
        self.ending: dict[str, int] = {}
        self.frozen = False
        self.gpus = 8
        self.slow_to_be_ready = False
        self.node = "gpu-1"

    # what a test sets up and does

    def add(
        self, kind: str, name: str, *, replicas: int = 1, gpu: bool = True, **spec: Any
    ) -> Object:
        container: Object = {"name": "server", "image": "vllm:1"}
        if gpu:
            container["resources"] = {"limits": dict(GPU)}
        labels = {"app": name}
        made: Object = {
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": self._meta(name, generation=1),
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
                **spec,
            },
            "status": {},
        }
        if kind == "Deployment":
            made["spec"].setdefault("strategy", {"type": "Recreate"})
        else:
            made["spec"].setdefault("serviceName", name)
            made["spec"].setdefault("updateStrategy", {"type": "RollingUpdate"})
        self.workloads[kind.lower() + "s", name] = made
        self.settle()
        return made

    def settle(self, steps: int = 8) -> None:
        for _ in range(steps):
            self.step()

    def edit(self, plural: str, name: str, patch: Object, by: str = "kubectl") -> None:
        """Somebody else's change."""
        with self.lock:
            self._put(self.workloads[plural, name], patch, by)

    def pod(self, number: int = 0) -> Object:
        return sorted(self.pods.values(), key=lambda pod: pod["metadata"]["name"])[number]

    def end(self, pod: Object, code: int, reason: str = "Error", *, waits: str = "") -> None:
        """Its container ends, and the kubelet starts it again, or `waits` to."""
        with self.lock:
            status = pod["status"]["containerStatuses"][0]
            ended = {
                "exitCode": code,
                "reason": reason,
                "startedAt": status["state"].get("running", {}).get("startedAt"),
                "finishedAt": rfc3339(self.now()),
                "containerID": status["containerID"],
            }
            status["lastState"] = {"terminated": ended}
            status["restartCount"] += 1
            status["ready"] = status["started"] = False
            self.logs[pod["metadata"]["name"], True] = self.logs.pop(
                (pod["metadata"]["name"], False), []
            )
            if waits:
                status["state"] = {"waiting": {"reason": waits, "message": "back-off 40s"}}
            else:
                self._run(pod)
            self._touch(pod)

    # the controllers and the kubelet

    def step(self) -> None:
        with self.lock:
            if self.frozen:
                return
            self._kubelet()
            for (plural, _), workload in self.workloads.items():
                self._deployment(workload) if plural == "deployments" else self._stateful(workload)
                self._count(workload)

    def _kubelet(self) -> None:
        for name, pod in list(self.pods.items()):
            if "deletionTimestamp" in pod["metadata"]:
                self.ending[uid_of(pod)] = self.ending.get(uid_of(pod), 0) + 1
                if self.ending[uid_of(pod)] > 1:
                    del self.pods[name]
                continue
            status = pod["status"]
            if status["phase"] == "Pending":
                self._schedule(pod)
            elif not self.slow_to_be_ready and "running" in status["containerStatuses"][0]["state"]:
                status["containerStatuses"][0]["ready"] = True
                status["conditions"] = [{"type": "Ready", "status": "True"}]

    def _schedule(self, pod: Object) -> None:
        asks = pod["spec"]["containers"][0].get("resources", {}).get("limits", {}) == GPU
        taken = sum(bool(p["spec"].get("nodeName")) for p in self.pods.values() if p is not pod)
        if asks and taken >= self.gpus:
            message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
            pod["status"]["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": message,
                }
            ]
            return
        pod["spec"]["nodeName"] = self.node
        pod["status"] = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "False"}],
            "containerStatuses": [
                {
                    "name": "server",
                    "image": "vllm:1",
                    "imageID": "",
                    "restartCount": 0,
                    "ready": False,
                    "state": {},
                    "lastState": {},
                    "containerID": "",
                }
            ],
        }
        self._run(pod)

    def _run(self, pod: Object) -> None:
        status = pod["status"]["containerStatuses"][0]
        status["containerID"] = f"containerd://{uuid.uuid4().hex}{uuid.uuid4().hex}"
        status["state"] = {"running": {"startedAt": rfc3339(self.now())}}
        status["started"] = True
        self._touch(pod)

    def _deployment(self, workload: Object) -> None:
        newest = self._newest_set(workload)
        mine = self._pods_of(
            {
                s["metadata"]["uid"]
                for s in self.sets.values()
                if s["metadata"]["ownerReferences"][0]["uid"] == uid_of(workload)
            }
        )
        new = [p for p in mine if _owner(p) == uid_of(newest)]
        old = [p for p in mine if _owner(p) != uid_of(newest)]
        alive = [p for p in new if "deletionTimestamp" not in p["metadata"]]
        want = workload["spec"]["replicas"]
        recreate = workload["spec"]["strategy"]["type"] == "Recreate"
        ready = sum(_ready(p) for p in alive)
        if old and (recreate or want == 0 or ready >= want):
            for one in old:
                self._delete(one)
        for one in alive[want:]:
            self._delete(one)
        if not (recreate and old):
            for _ in range(want - len(alive)):
                self._make_pod(
                    newest,
                    f"{newest['metadata']['name']}-{uuid.uuid4().hex[:5]}",
                    newest["spec"]["template"],
                    "ReplicaSet",
                )
        workload["status"]["updatedReplicas"] = len(alive)

    def _newest_set(self, workload: Object) -> Object:
        template = json.dumps(workload["spec"]["template"], sort_keys=True)
        mine = [
            s
            for s in self.sets.values()
            if s["metadata"]["ownerReferences"][0]["uid"] == uid_of(workload)
        ]
        for one in mine:
            if json.dumps(one["spec"]["template"], sort_keys=True) == template:
                return one
        if mine and workload["spec"].get("paused"):
            return mine[-1]
        name = f"{workload['metadata']['name']}-{uuid.uuid4().hex[:9]}"
        made = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": self._meta(name, owner=workload),
            "spec": {
                "selector": workload["spec"]["selector"],
                "template": copy.deepcopy(workload["spec"]["template"]),
            },
        }
        made["metadata"]["labels"] = dict(workload["spec"]["template"]["metadata"]["labels"])
        self.sets[name] = made
        return made

    def _stateful(self, workload: Object) -> None:
        want, name = workload["spec"]["replicas"], workload["metadata"]["name"]
        template = json.dumps(workload["spec"]["template"], sort_keys=True)
        mine = {p["metadata"]["name"]: p for p in self._pods_of({uid_of(workload)})}
        for number in range(want):
            if f"{name}-{number}" not in mine:
                self._make_pod(
                    workload,
                    f"{name}-{number}",
                    workload["spec"]["template"],
                    "StatefulSet",
                    of=template,
                )
        for number in range(want, len(mine)):
            self._delete(mine[f"{name}-{number}"])
        stale = [p for p in mine.values() if self.made_of[uid_of(p)] != template]
        if stale and workload["spec"]["updateStrategy"]["type"] == "RollingUpdate":
            self._delete(stale[-1])
        fresh = [
            p for p in self._pods_of({uid_of(workload)}) if self.made_of[uid_of(p)] == template
        ]
        workload["status"]["updatedReplicas"] = len(fresh)

    def _count(self, workload: Object) -> None:
        owners = {uid_of(workload)} | {
            uid_of(s)
            for s in self.sets.values()
            if s["metadata"]["ownerReferences"][0]["uid"] == uid_of(workload)
        }
        alive = [p for p in self._pods_of(owners) if "deletionTimestamp" not in p["metadata"]]
        status = workload["status"] | {
            "observedGeneration": workload["metadata"]["generation"],
            "replicas": len(alive),
            "readyReplicas": sum(_ready(p) for p in alive),
        }
        if status != workload["status"]:
            workload["status"] = status
            self._touch(workload)

    def _pods_of(self, owners: set[str]) -> list[Object]:
        return [p for p in self.pods.values() if _owner(p) in owners]

    def _make_pod(
        self, owner: Object, name: str, template: Object, kind: str, of: str = ""
    ) -> None:
        made = copy.deepcopy(template)
        made["metadata"] |= self._meta(name, owner=owner, kind=kind)
        self.made_of[uid_of(made)] = of
        made |= {"apiVersion": "v1", "kind": "Pod", "status": {"phase": "Pending"}}
        self.pods[name] = made

    def _delete(self, pod: Object) -> None:
        pod["metadata"].setdefault("deletionTimestamp", rfc3339(self.now()))
        self._touch(pod)

    def _meta(
        self,
        name: str,
        *,
        generation: int = 0,
        owner: Object | None = None,
        kind: str = "Deployment",
    ) -> Object:
        self.version += 1
        meta: Object = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": str(uuid.uuid4()),
            "resourceVersion": str(self.version),
        }
        if generation:
            meta["generation"] = generation
        if owner is not None:
            meta["ownerReferences"] = [
                {
                    "apiVersion": "apps/v1",
                    "kind": kind,
                    "name": owner["metadata"]["name"],
                    "uid": uid_of(owner),
                    "controller": True,
                }
            ]
        return meta

    def _touch(self, made: Object) -> None:
        self.version += 1
        made["metadata"]["resourceVersion"] = str(self.version)

    def _put(self, target: Object, patch: Object, by: str) -> None:
        spec = merged(target["spec"], patch.get("spec") or {})
        if spec == target["spec"]:
            return
        if spec["replicas"] != target["spec"]["replicas"]:
            target["metadata"]["managedFields"] = [
                {
                    "manager": by,
                    "operation": "Update",
                    "time": rfc3339(self.now()),
                    "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": {"f:replicas": {}}},
                }
            ]
        target["spec"] = spec
        target["metadata"]["generation"] += 1
        self._touch(target)


def uid_of(made: Object) -> str:
    return made["metadata"]["uid"]


def _owner(made: Object) -> str:
    return made["metadata"]["ownerReferences"][0]["uid"]


def _ready(pod: Object) -> bool:
    found = pod["status"].get("containerStatuses") or [{}]
    return bool(found[0].get("ready"))
