"""A workload of Kubernetes as a process: looked at, scaled to 0, and scaled back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from remediator.errors import ManagerError
from remediator.managers._kubernetes_api import Written
from remediator.managers._pod_log import PodLog
from remediator.managers._server_log import ServerLog
from remediator.managers._workload import Pod, Seen
from remediator.managers._workload_changes import Asked, Changes
from remediator.managers._workload_client import Restart, WorkloadClient
from remediator.managers.base import Context, ProcessIdentity, ProcessStatus


class WorkloadManager:
    """`ProcessManager` over one workload; a restart is a stop and a start."""

    kind = "kubernetes"
    restart: Restart = "stop_start"

    def __init__(self, client: WorkloadClient, context: Context, node: str, replicas: int) -> None:
        """Nothing is asked yet.

        Args:
            client: Of the workload.
            context: Keeps how many pods it had.
            node: The only node where it may be acted on; empty where any is.
            replicas: How many to go back to where it is not known how many there were.
        """
        self.unit = client.unit
        self._client, self._context = client, context
        self._node, self._replicas = node, replicas
        self._had: int | None = None
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
            return identity is not None and not seen.has(identity)

        def to_zero(seen: Seen) -> Asked:
            if spares(seen):
                return "spared"
            self._changes.refuse(self._why_not_scaled(seen))
            # Known here also where it cannot be kept: a full disk is no reason not to stop.
            self._had = seen.workload.replicas
            self._context.save_identity({"replicas": self._had})
            return self._client.scale(seen, 0)

        asked = self._changes.ask(lambda seen: seen.workload.replicas == 0, to_zero, deadline)
        if asked == "done":
            self._changes.wait("stop", deadline, timeout, self._why_not_down)

    def start(self, timeout: float) -> ProcessIdentity:
        """Scale back to what it had, unless that is asked for already, and wait until it runs."""
        deadline = self._clock.monotonic() + timeout

        def back(seen: Seen) -> Written:
            return self._client.scale(seen, self._remembered())

        self._changes.ask(lambda seen: seen.workload.replicas > 0, back, deadline)
        return self._await_servers("start", deadline, timeout, why_not_up)

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
                for right in self._client.rights(self.restart)
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
        kept = self._had or self._context.load_identity().get("replicas")
        return kept if isinstance(kept, int) and kept > 0 else self._replicas

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

    def _why_not_restarted(self, seen: Seen) -> str:  # noqa: ARG002
        """What more stands against a restart, which here is a stop and a start."""
        return ""

    def _why_elsewhere(self, seen: Seen) -> str:
        here = self._node
        others = [pod for pod in seen.alive if here and pod.node not in ("", here)]
        return f"{others[0].told}, not on {here}: its cards are not ours" if others else ""

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


def why_not_up(seen: Seen) -> str:
    """What is missing until so many servers run as are wanted; else empty."""
    if seen.all_run:
        return ""
    return "; ".join([seen.workload.failure or "not all run", *(pod.told for pod in seen.there)])
