"""A Deployment or StatefulSet of Kubernetes, whose pods are one server.

A stop is a scale to 0, a start the scale back to what it had, which is kept before it is changed.
A restart is one request: a rollout, which is marked with the run that asks for it, or the deletion
of the one pod by its uid. Either can be asked for again without being done twice, so that a request
whose answer was lost is looked for in the world and not guessed.

Kubernetes pins a change to a version of the workload, not to a process. What a stop could hit in
place of the process that it is meant for is one that came within the same version.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remediator.config.strict import Seconds
from remediator.errors import ConfigError, ManagerError
from remediator.managers._kubernetes_api import IN_CLUSTER, Api, Written, is_address
from remediator.managers._pod_log import PodLog
from remediator.managers._server_log import ServerLog
from remediator.managers._workload import Kind, Pod, Seen
from remediator.managers._workload_changes import Asked, Changes
from remediator.managers._workload_client import Restart, WorkloadClient, rights
from remediator.managers.base import Context, ProcessIdentity, ProcessStatus

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAMES = {
    "namespace": re.compile(_LABEL),
    "name": re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*"),
    "container": re.compile(rf"({_LABEL})?"),
    "node": re.compile(rf"((?=.{{1,253}}$){_LABEL}(\.{_LABEL})*)?"),
}


@dataclass(frozen=True)
class Options:
    """Which workload, on which API server, and how it is restarted.

    `container`: where its pods have several. `node`: the only node where it may be acted on.
    `replicas`: how many to go back to where it is not known how many there were.
    """

    namespace: str
    name: str
    kind: Kind = "deployment"
    container: str = ""
    node: str = ""
    restart: Restart = "rollout"
    replicas: int = 1
    url: str = IN_CLUSTER
    token_file: Path = _ACCOUNT / "token"
    ca_file: Path = _ACCOUNT / "ca.crt"
    timeout: Seconds = 10.0


def create(options: Options, service: str, context: Context) -> Kubernetes:
    """The manager of one workload."""
    where = f"services.{service}.manager"
    for key, form in _NAMES.items():
        if not form.fullmatch(getattr(options, key)):
            raise ConfigError(f"{where}.{key} must be a name of Kubernetes, in lower case")
    if not is_address(options.url):
        raise ConfigError(
            f"{where}.url must be https://HOST:PORT of an API server, or http://127.0.0.1:PORT of "
            "`kubectl proxy`, without a path and without a user in it"
        )
    if options.timeout <= 0:
        raise ConfigError(f"{where}.timeout must be longer than 0s")
    if options.replicas < 1:
        raise ConfigError(f"{where}.replicas must be at least 1")
    api = Api(options.url, options.token_file, options.ca_file, options.timeout)
    client = WorkloadClient(api, options.namespace, options.kind, options.name, options.container)
    makes = {"rollout": Rollout, "pod": PodDeletion, "stop_start": Kubernetes}
    return makes[options.restart](options, client, context)


class Kubernetes:
    """`ProcessManager` over one workload; a restart is a stop and a start."""

    kind = "kubernetes"

    def __init__(self, options: Options, client: WorkloadClient, context: Context) -> None:
        self.unit = f"{options.namespace}/{options.kind}/{options.name}"
        self._options, self._client, self._context = options, client, context
        self._clock = context.clock
        self._changes = Changes(client, context.clock)

    def status(self) -> ProcessStatus:
        """What the API server says of the workload and its pods."""
        return self._client.look().status(self._clock.now())

    def stop(self, identity: ProcessIdentity | None, timeout: float) -> None:
        """Scale to 0, and wait until no pod is left; kubelet sends SIGKILL after the pod's own time."""
        deadline = self._clock.monotonic() + timeout

        def spares(seen: Seen) -> bool:
            # That process is gone; what runs, starts or is about to start is another one.
            return identity is not None and not identity.same(seen.identity)

        def to_zero(seen: Seen) -> Asked:
            if spares(seen):
                return "spared"
            self._changes.refuse(self._why_not_scaled(seen))
            self._context.save_identity({"replicas": seen.workload.replicas})
            return self._client.scale(seen, 0)

        if spares(self._client.look()):
            return
        asked = self._changes.ask(lambda seen: seen.workload.replicas == 0, to_zero, deadline)
        if asked == "done":
            self._changes.wait("stop", deadline, timeout, self._why_not_down)

    def start(self, timeout: float) -> ProcessIdentity:
        """Scale back to what it had, unless that is asked for already, and wait until it runs."""
        deadline = self._clock.monotonic() + timeout

        def back(seen: Seen) -> Written:
            return self._client.scale(seen, self._remembered())

        self._changes.ask(lambda seen: seen.workload.replicas > 0, back, deadline)
        return self._await_servers("start", deadline, timeout, _why_not_up)

    def describe(self, verb: Literal["start", "stop", "restart"]) -> str:
        """The API requests."""
        stop = f"PATCH {self.unit}/scale: replicas 0"
        start = f"PATCH {self.unit}/scale: replicas as before"
        return {"start": start, "stop": stop}.get(verb, f"{stop}, then {start}")

    def log(self) -> ServerLog:
        """What the server's container wrote, as kubelet keeps it."""
        return PodLog(self._client.told, self._newest, self._client.log)

    def concerns(self) -> Iterator[str]:
        """What would be refused now, by the API server or by us."""
        said = f"{self._client.told}: "
        try:
            missing = [
                right.told
                for right in rights(self._options.kind, self._options.name, self._options.restart)
                if not self._client.may(right)
            ]
            if missing:
                yield f"{said}its service account may not {', '.join(missing)}; see role.yaml"
                return
            seen = self._client.look()
            reasons = (self._why_not_scaled(seen), self._why_not_restarted(seen))
        except ManagerError as error:
            yield str(error)
            return
        for reason in dict.fromkeys(reasons):
            if reason:
                yield f"{said}{reason}"

    def _remembered(self) -> int:
        kept = self._context.load_identity().get("replicas")
        return kept if isinstance(kept, int) and kept > 0 else self._options.replicas

    def _newest(self) -> Pod | None:
        pods = self._client.look().there
        return max(pods, key=lambda pod: pod.started_at or 0.0, default=None)

    def _why_not_scaled(self, seen: Seen) -> str:
        """Why it is not scaled to 0; empty where it may be."""
        autoscaler = self._client.scaled_from_0()
        if autoscaler:
            return (
                f"{autoscaler}, and would scale it up again from 0: it is not stopped beside that; "
                "take the one or the other out of what is to be automatic"
            )
        return self._why_elsewhere(seen)

    def _why_not_restarted(self, seen: Seen) -> str:
        """The same of a restart."""
        return self._why_not_scaled(seen)

    def _why_elsewhere(self, seen: Seen) -> str:
        node = self._options.node
        others = [pod for pod in seen.there if node and pod.node not in ("", node)]
        return f"{others[0].told}, not on {node}: its cards are not ours" if others else ""

    def _why_not_down(self, seen: Seen) -> str:
        if seen.workload.replicas > 0:
            by = seen.workload.scaled_by or "somebody"
            raise ManagerError(
                f"{self._client.told} was scaled back to {seen.workload.replicas} by {by}: what keeps "
                "it so (GitOps, an autoscaler) has to leave its replicas alone"
            )
        return "; ".join(pod.told for pod in seen.there)

    def _await_servers(
        self, verb: str, deadline: float, timeout: float, missing: Callable[[Seen], str]
    ) -> ProcessIdentity:
        identity = self._changes.wait(verb, deadline, timeout, missing).identity
        if identity is None:
            raise ManagerError(f"{self._client.told} has no container that runs")
        return identity


class _Replacing(Kubernetes, ABC):
    """A restart is one request, which can be asked for again without being done twice."""

    def replace(self, identity: ProcessIdentity, mark: str, timeout: float) -> ProcessIdentity:
        """Ask, then wait until the old pods are gone and new ones run, and for a while are ready.

        A server that takes longer to be ready than there is time runs all the same: what waits for
        it is the playbook's own step.
        """
        deadline = self._clock.monotonic() + timeout

        def ask(seen: Seen) -> Asked:
            if not identity.same(seen.identity):
                return "spared"
            self._changes.refuse(self._why_not_restarted(seen))
            return self._request(seen, identity, mark)

        asked = self._changes.ask(lambda seen: self._asked(seen, identity, mark), ask, deadline)
        if asked == "spared":
            return self._await_servers("restart", deadline, timeout, _why_not_up)
        newest: list[ProcessIdentity] = []

        def missing(seen: Seen) -> str:
            newest.clear()
            why = self._why_not_replaced(seen, identity) or _why_not_up(seen)
            if not why and seen.identity is not None:
                newest.append(seen.identity)
            return why or _why_not_ready(seen)

        try:
            return self._await_servers("restart", deadline, timeout, missing)
        except ManagerError:
            if newest:
                return newest[0]
            raise

    def replacing(self, identity: ProcessIdentity, mark: str) -> bool:
        """Whether it was asked for already, by what the workload and its pods say."""
        seen = self._client.look()
        return self._asked(seen, identity, mark) or not identity.same(seen.identity)

    @abstractmethod
    def _asked(self, seen: Seen, identity: ProcessIdentity, mark: str) -> bool:
        """Whether nothing more has to be asked for."""

    @abstractmethod
    def _request(self, seen: Seen, identity: ProcessIdentity, mark: str) -> Written:
        """Ask for it."""

    def _why_not_replaced(self, seen: Seen, identity: ProcessIdentity) -> str:
        return "; ".join(pod.told for pod in seen.there if pod.uid in identity.name)


class Rollout(_Replacing):
    """A restart is a rollout: an annotation of the pod template is set to the run's mark."""

    def describe(self, verb: Literal["start", "stop", "restart"]) -> str:
        """The API requests."""
        if verb == "restart":
            return f"PATCH {self.unit}: an annotation of its pod template, which is a rollout"
        return super().describe(verb)

    def _asked(self, seen: Seen, identity: ProcessIdentity, mark: str) -> bool:  # noqa: ARG002
        return seen.workload.mark == mark

    def _request(self, seen: Seen, identity: ProcessIdentity, mark: str) -> Written:  # noqa: ARG002
        return self._client.roll(seen, mark)

    def _why_not_restarted(self, seen: Seen) -> str:
        if seen.workload.paused:
            return "it is paused by somebody (spec.paused), so that no rollout begins: resume it"
        return seen.workload.unrollable or self._why_elsewhere(seen)

    def _why_not_replaced(self, seen: Seen, identity: ProcessIdentity) -> str:
        why = seen.workload.not_rolled_out()
        if seen.workload.stuck and seen.workload.observed >= seen.workload.generation:
            raise ManagerError(
                f"the rollout of {self._client.told} is stuck: {seen.workload.stuck}"
            )
        return why or super()._why_not_replaced(seen, identity)


class PodDeletion(_Replacing):
    """A restart is the deletion of the one pod, by its uid; its controller makes another."""

    def describe(self, verb: Literal["start", "stop", "restart"]) -> str:
        """The API requests."""
        if verb == "restart":
            return f"DELETE the one pod of {self.unit}, by its uid"
        return super().describe(verb)

    def _asked(self, seen: Seen, identity: ProcessIdentity, mark: str) -> bool:  # noqa: ARG002
        return not any(pod.uid in identity.name for pod in seen.alive)

    def _request(self, seen: Seen, identity: ProcessIdentity, mark: str) -> Written:  # noqa: ARG002
        (pod,) = (pod for pod in seen.alive if pod.uid in identity.name)
        return self._client.delete(pod)

    def _why_not_restarted(self, seen: Seen) -> str:
        if len(seen.alive) > 1:
            return (
                f"{len(seen.alive)} pods run, and which of them is meant is not known: use rollout"
            )
        return self._why_elsewhere(seen)


def _why_not_up(seen: Seen) -> str:
    if seen.all_run:
        return ""
    return "; ".join([seen.workload.failure or "not all run", *(pod.told for pod in seen.there)])


def _why_not_ready(seen: Seen) -> str:
    ready = sum(pod.ready for pod in seen.alive)
    return "" if ready >= seen.workload.replicas else f"{ready} of them are ready"
