"""A Deployment or StatefulSet and its pods, read from the API's JSON (apps/v1, v1). No IO."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from remediator.errors import ManagerError
from remediator.managers._workload import Ending, Kind, Pod, Workload

MARK = "gpu-remediator/restarted-by"
"""Annotation of the pod template: which run restarted it last. A new value is a new rollout."""

NOT_SO = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What reading raises where something is not what the API says that it is."""

# What becomes part of a path that is asked for, and of what a process is known by.
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}")
_UID = re.compile(r"[A-Za-z0-9-]{8,128}")
_GPU = "nvidia.com/"
_MAX_SENTENCE = 200


def parse_workload(raw: Mapping[str, Any], kind: Kind) -> Workload:
    """A workload from its JSON.

    Raises:
        ManagerError: it is none of that kind.
    """
    try:
        return _workload(raw, kind)
    except NOT_SO:
        raise ManagerError(f"the API server answered what is no {kind}") from None


def parse_pods(raw: Mapping[str, Any], container: str) -> tuple[Pod, ...]:
    """Pods from the JSON of a list; `container` is the name of the server's container.

    Raises:
        ManagerError: it is no list of pods.
    """
    try:
        return tuple(_pod(one, container) for one in raw["items"])
    except NOT_SO:
        raise ManagerError("the API server answered what is no list of pods") from None


def owned(raw: Mapping[str, Any], uid: str) -> tuple[str, ...]:
    """The uids of those objects of a list that `uid` controls: labels alone could be anybody's.

    Raises:
        ManagerError: it is no list of objects.
    """
    try:
        return tuple(str(o["metadata"]["uid"]) for o in raw["items"] if _controller(o) == uid)
    except NOT_SO:
        raise ManagerError("the API server answered what is no list") from None


def scaled_from_0(raw: Mapping[str, Any], kind: Kind, name: str) -> str:
    """Which autoscaler of a list would scale this workload up from 0; empty where none would.

    A HorizontalPodAutoscaler leaves alone what was scaled to 0 (`ScalingDisabled`) and goes on when
    it is scaled up, unless its minReplicas is 0: "Implicit maintenance-mode deactivation" of
    Kubernetes' page on it, pkg/controller/podautoscaler/horizontal.go since 1.23. KEDA, which makes
    one for each ScaledObject, scales from 0 itself: pkg/scaling/executor of KEDA 2.

    Raises:
        ManagerError: it is no list of autoscalers.
    """
    try:
        found = (_why_from_0(one) for one in raw["items"] if _scales(one, kind, name))
        return next((why for why in found if why), "")
    except NOT_SO:
        raise ManagerError("the API server answered what is no list of autoscalers") from None


def _scales(raw: Mapping[str, Any], kind: Kind, name: str) -> bool:
    target = raw["spec"]["scaleTargetRef"]
    group = str(target.get("apiVersion") or "").partition("/")[0]
    return bool((group, str(target["kind"]).lower(), target["name"]) == ("apps", kind, name))


def _why_from_0(raw: Mapping[str, Any]) -> str:
    said = f"the HorizontalPodAutoscaler {raw['metadata']['name']}"
    if any(one["kind"] == "ScaledObject" for one in raw["metadata"].get("ownerReferences") or ()):
        return f"{said} is KEDA's"
    return f"{said} has minReplicas 0" if raw["spec"].get("minReplicas") == 0 else ""


def _controller(raw: Mapping[str, Any]) -> str:
    owners = raw["metadata"].get("ownerReferences") or ()
    return next((str(one["uid"]) for one in owners if one.get("controller")), "")


def _workload(raw: Mapping[str, Any], kind: Kind) -> Workload:
    meta, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    template = spec["template"]
    replicas = int(spec.get("replicas", 1))
    return Workload(
        uid=str(meta["uid"]),
        version=str(meta["resourceVersion"]),
        generation=int(meta.get("generation") or 0),
        observed=int(status.get("observedGeneration") or 0),
        replicas=replicas,
        total=int(status.get("replicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        paused=bool(spec.get("paused")),
        mark=str((template["metadata"].get("annotations") or {}).get(MARK, "")),
        selector=_selector(spec["selector"]),
        containers=tuple(str(one["name"]) for one in template["spec"]["containers"]),
        failure=_condition(status, "ReplicaFailure", "True"),
        stuck=_condition(status, "Progressing", "False"),
        unrollable=_unrollable(kind, spec, replicas),
        scaled_by=_scaled_by(meta),
    )


def _scaled_by(meta: Mapping[str, Any]) -> str:
    entries = sorted(meta.get("managedFields") or (), key=lambda one: str(one.get("time") or ""))
    owners = [
        str(one.get("manager") or "")
        for one in entries
        if "f:replicas" in ((one.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    return owners[-1] if owners else ""


def _selector(raw: Mapping[str, Any]) -> str:
    """The selector of a workload as the query parameter `labelSelector` has it."""
    terms = [f"{key}={value}" for key, value in sorted((raw.get("matchLabels") or {}).items())]
    for one in raw.get("matchExpressions") or ():
        values = ",".join(one.get("values") or ())
        terms.append(
            {
                "In": f"{one['key']} in ({values})",
                "NotIn": f"{one['key']} notin ({values})",
                "Exists": str(one["key"]),
                "DoesNotExist": f"!{one['key']}",
            }[one["operator"]]
        )
    return ",".join(terms)


def _condition(status: Mapping[str, Any], kind: str, value: str) -> str:
    for one in status.get("conditions") or ():
        if one["type"] == kind and one["status"] == value:
            return f"{one.get('reason', '')}: {one.get('message', '')}"[:_MAX_SENTENCE]
    return ""


def _unrollable(kind: Kind, spec: Mapping[str, Any], replicas: int) -> str:
    strategy = spec.get("strategy" if kind == "deployment" else "updateStrategy") or {}
    rolling = strategy.get("rollingUpdate") or {}
    if strategy.get("type") == "OnDelete":
        return "its update strategy is OnDelete, so that nothing follows a change of its template"
    if kind == "statefulset":
        if int(rolling.get("partition") or 0) > 0:
            return "its update strategy has a partition, so that not all of its pods would follow"
        return ""
    if strategy.get("type") == "Recreate" or not _asks_for_gpu(spec["template"]["spec"]):
        return ""
    if _share(rolling.get("maxUnavailable", "25%"), replicas) > 0:
        return ""
    return (
        "its rollout would begin with a new pod beside the old one, which needs a free GPU: give it "
        "strategy Recreate, or maxUnavailable 1 and maxSurge 0"
    )


def _asks_for_gpu(pod: Mapping[str, Any]) -> bool:
    claims = pod.get("resourceClaims") or ()
    if any(one.get("resourceClaimTemplateName") for one in claims):
        # What is claimed by each pod for itself is hardly ever anything but a card.
        return True
    limits = [(one.get("resources") or {}).get("limits") or {} for one in pod["containers"]]
    return any(name.startswith(_GPU) for one in limits for name in one)


def _share(amount: Any, replicas: int) -> int:
    """A number, or a percentage of the replicas, which the Deployment's controller rounds down."""
    if isinstance(amount, int):
        return amount
    return math.floor(int(str(amount).removesuffix("%")) * replicas / 100)


def _pod(raw: Mapping[str, Any], container: str) -> Pod:
    meta, status = raw["metadata"], raw.get("status") or {}
    found: Sequence[Mapping[str, Any]] = status.get("containerStatuses") or ()
    server: Mapping[str, Any] = next((one for one in found if one["name"] == container), {})
    state = server.get("state") or {}
    running = state.get("running")
    last = state.get("terminated") or (server.get("lastState") or {}).get("terminated")
    ready = _conditions(status).get("Ready", {}).get("status")
    return Pod(
        name=_like(_NAME, meta["name"]),
        uid=_like(_UID, meta["uid"]),
        owner=_controller(raw),
        node=str((raw.get("spec") or {}).get("nodeName") or ""),
        container=container,
        phase=str(status.get("phase") or ""),
        ready=ready == "True",
        lost=status.get("phase") == "Unknown" or ready == "Unknown",
        terminating="deletionTimestamp" in meta,
        started_at=_unix(running.get("startedAt")) if running is not None else None,
        waiting="" if running is not None else _waiting(status, state),
        container_id=_id(server.get("containerID")),
        restarts=int(server.get("restartCount") or 0),
        ended=None if not last else _ending(last),
        ended_id=_id((last or {}).get("containerID")),
    )


def _like(form: re.Pattern[str], text: Any) -> str:
    if not form.fullmatch(text):
        raise ValueError(text)
    return str(text)


def _waiting(status: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    said = _waits(state)
    for one in status.get("initContainerStatuses") or ():
        found = _waits(one.get("state") or {})
        # The server's own container, and those that come later, only wait for that one.
        if found and found[0] != "PodInitializing":
            said = [f"init container {one['name']}", *found]
            break
    scheduled = _conditions(status).get("PodScheduled", {})
    if scheduled.get("status") == "False":
        said = [str(scheduled.get("reason") or ""), str(scheduled.get("message") or "")]
    if not said:
        said = ["ended"] if "terminated" in state else [str(status.get("phase") or "not made yet")]
    return ": ".join(said)[:_MAX_SENTENCE]


def _waits(state: Mapping[str, Any]) -> list[str]:
    waits = state.get("waiting") or {}
    return [str(waits[key]) for key in ("reason", "message") if waits.get(key)]


def _conditions(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = status.get("conditions") or ()
    return {str(one["type"]): one for one in found}


def _ending(raw: Mapping[str, Any]) -> Ending:
    return Ending(
        str(raw.get("reason") or ""), int(raw["exitCode"]), _unix(raw.get("finishedAt")) or 0.0
    )


def _id(text: Any) -> str:
    """`containerd://ID` is `ID`."""
    return str(text or "").rpartition("://")[2]


def _unix(text: Any) -> float | None:
    """Unix seconds of an RFC 3339 time; None where there is none."""
    return datetime.fromisoformat(str(text)).timestamp() if text else None
