"""The calls of the Kubernetes API that are made about one workload (facts: Kubernetes 1.37).

Each is one line of `deploy/kubernetes/role.yaml`; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

from remediator.errors import ManagerError
from remediator.managers._kubernetes_api import Api, RefusedError, Written
from remediator.managers._workload import Kind, Pod, Seen
from remediator.managers._workload_json import (
    MARK,
    NOT_SO,
    owned,
    parse_pods,
    parse_workload,
    scaled_from_0,
)

Restart = Literal["rollout", "pod", "stop_start"]

_PLURAL = {"deployment": "deployments", "statefulset": "statefulsets"}


@dataclass(frozen=True)
class Right:
    """One thing that a role allows; without a name to all of that resource."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    name: str = ""

    @property
    def told(self) -> str:
        """For a person."""
        what = self.resource + (f"/{self.subresource}" if self.subresource else "")
        return f"{self.verb} {what}" + (f" {self.name}" if self.name else "")


def rights(kind: Kind, name: str, restart: Restart) -> Iterator[Right]:
    """What is needed to look at a workload, and to stop, start and restart it."""
    plural = _PLURAL[kind]
    yield Right("get", "apps", plural, name=name)
    if kind == "deployment":
        yield Right("list", "apps", "replicasets")
    yield Right("list", "", "pods")
    yield Right("list", "autoscaling", "horizontalpodautoscalers")
    yield Right("patch", "apps", plural, "scale", name)
    if restart == "rollout":
        yield Right("patch", "apps", plural, name=name)
    if restart == "pod":
        yield Right("delete", "", "pods")


class WorkloadClient:
    """One workload: its kind, namespace and name are fixed, whatever the server answers."""

    def __init__(self, api: Api, namespace: str, kind: Kind, name: str, container: str) -> None:
        """Nothing is asked yet.

        Args:
            api: The server.
            namespace: Where it is.
            kind: What it is.
            name: Its name.
            container: The server's container in its pods; empty where they have only one.
        """
        self._api, self._kind, self._container = api, kind, container
        self._namespace, self._name = namespace, name
        self.told = f"{kind} {namespace}/{name}"
        self.unit = f"{namespace}/{kind}/{name}"
        self._apps = f"/apis/apps/v1/namespaces/{namespace}"
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._path = f"{self._apps}/{_PLURAL[kind]}/{name}"

    def rights(self, restart: Restart) -> Iterator[Right]:
        """What is needed for it, where it is restarted so."""
        return rights(self._kind, self._name, restart)

    def look(self) -> Seen:
        """The workload with those pods that are truly its own.

        Raises:
            ManagerError: it cannot be read, or there is none.
        """
        try:
            workload = parse_workload(self._api.get(self._path), self._kind)
        except RefusedError as error:
            if error.gone:
                raise ManagerError(f"there is no {self.told}: is its name right?") from None
            raise
        container = self._chosen(workload.containers)
        query = {"labelSelector": workload.selector}
        owners: tuple[str, ...] = (workload.uid,)
        if self._kind == "deployment":
            owners = owned(self._api.list(f"{self._apps}/replicasets", query), workload.uid)
        pods = parse_pods(self._api.list(self._pods, query), container)
        return Seen(workload, tuple(pod for pod in pods if pod.owner in owners))

    def scaled_from_0(self) -> str:
        """Which autoscaler would scale it up again from 0; empty where none would.

        Raises:
            ManagerError: they cannot be listed.
        """
        path = f"/apis/autoscaling/v2/namespaces/{self._namespace}/horizontalpodautoscalers"
        try:
            found = self._api.list(path, {})
        except RefusedError as error:
            if error.gone:
                return ""
            raise
        return scaled_from_0(found, self._kind, self._name)

    def scale(self, seen: Seen, replicas: int) -> Written:
        """Ask for so many pods, if it is as it was seen."""
        body = {
            "metadata": {"resourceVersion": seen.workload.version},
            "spec": {"replicas": replicas},
        }
        return self._api.patch(f"{self._path}/scale", body)

    def roll(self, seen: Seen, mark: str) -> Written:
        """Ask for a rollout, if it is as it was seen; the same mark again is none."""
        template = {"metadata": {"annotations": {MARK: mark}}}
        body = {
            "metadata": {"resourceVersion": seen.workload.version},
            "spec": {"template": template},
        }
        return self._api.patch(self._path, body)

    def delete(self, pod: Pod) -> Written:
        """Delete this very pod, with the time to end that it was given by its owner."""
        return self._api.delete(f"{self._pods}/{pod.name}", pod.uid)

    def log(self, pod: Pod, query: str, limit: int) -> bytes:
        """What the server's container of a pod wrote."""
        container = urlencode({"container": pod.container})
        return self._api.text(f"{self._pods}/{pod.name}/log?{container}&{query}", limit)

    def may(self, right: Right) -> bool:
        """Whether the API server would let us.

        Raises:
            ManagerError: it does not say.
        """
        attributes = {
            "namespace": self._namespace,
            "verb": right.verb,
            "group": right.group,
            "resource": right.resource,
            "subresource": right.subresource,
            "name": right.name,
        }
        found = self._api.review(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
        )
        try:
            return found["status"]["allowed"] is True
        except NOT_SO:
            raise ManagerError("the API server answered what is no review of our rights") from None

    def _chosen(self, containers: tuple[str, ...]) -> str:
        if self._container in containers:
            return self._container
        if not self._container and len(containers) == 1:
            return containers[0]
        names = ", ".join(containers)
        raise ManagerError(f"{self.told} has the containers {names}: set manager.container to one")
