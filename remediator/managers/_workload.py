"""A Deployment or StatefulSet and its pods as values, and what follows from them. No IO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remediator.managers.base import ProcessIdentity, ProcessStatus, State

Kind = Literal["deployment", "statefulset"]

_FINISHED = ("Succeeded", "Failed")
_OUT_OF_MEMORY, _SIGKILL = "OOMKilled", 137
# A death is told for so long; after that it is history, and nobody counts it any more.
_DEATH_TOLD = 600.0
# Pods that end within so long of one another may have ended for one reason.
_TOGETHER = 60.0
_SHORT = 12


@dataclass(frozen=True)
class Ending:
    """How a container ended last (Unix seconds)."""

    reason: str
    exit_code: int
    at: float

    @property
    def told(self) -> str:
        """For a person."""
        return f"{self.reason or 'ended'}, exit code {self.exit_code}"


@dataclass(frozen=True)
class Pod:
    """One pod, and the state of the server's container in it, which is called `container`.

    `started_at` (Unix seconds) is None while that container does not run, and `waiting` then says
    why. `container_id` is empty where none was made yet. `lost`: its node does not answer.
    """

    name: str
    uid: str
    owner: str
    node: str
    container: str
    phase: str
    ready: bool
    lost: bool
    terminating: bool
    started_at: float | None
    waiting: str
    container_id: str
    restarts: int
    ended: Ending | None
    ended_id: str

    @property
    def finished(self) -> bool:
        """Whether it ended for good (evicted, for example): its controller puts another there."""
        return self.phase in _FINISHED

    @property
    def running(self) -> bool:
        """Whether the server's container runs."""
        return self.started_at is not None and not self.finished

    @property
    def identity(self) -> str:
        """It, and the very container: a container that kubelet starts again is another process."""
        return f"pod {self.name} (uid {self.uid}, container {self.container_id[:_SHORT]})"

    @property
    def told(self) -> str:
        """For a person."""
        said = f"pod {self.name}"
        if self.node:
            said += f" on {self.node}"
        if self.terminating:
            said += ", ending"
        if self.lost:
            said += ", whose node does not answer"
        if self.waiting:
            said += f": {self.waiting}"
        if self.restarts:
            last = f", last {self.ended.told}" if self.ended else ""
            said += f" (restarted {self.restarts} times by the kubelet{last})"
        elif self.ended:
            said += f" (last {self.ended.told})"
        return said


@dataclass(frozen=True)
class Workload:
    """What is asked of the workload, and what its controller says.

    `replicas` is the wanted number, `total` that of all its pods, `updated` that of its newest
    template, `ready` that of the ready ones. `failure` is why its controller can make no pods.
    `unrollable` is why a change of its template would not replace its pods; empty where it would.
    `scaled_by` is who set `replicas` last, as the API server calls them.
    """

    uid: str
    version: str
    generation: int
    observed: int
    replicas: int
    total: int
    updated: int
    ready: int
    paused: bool
    mark: str
    selector: str
    containers: tuple[str, ...]
    failure: str
    stuck: str
    unrollable: str
    scaled_by: str

    def not_rolled_out(self) -> str:
        """What is missing until the newest template is all that runs, ready or not; else empty."""
        if self.observed < self.generation:
            return "its controller has not seen the change yet"
        if self.updated < self.replicas:
            return f"{self.updated} of {self.replicas} pods are new"
        if self.total > self.updated:
            return f"{self.total - self.updated} old pods are still there"
        return ""


@dataclass(frozen=True)
class Seen:
    """A workload with its pods, at one look."""

    workload: Workload
    pods: tuple[Pod, ...]

    @property
    def alive(self) -> tuple[Pod, ...]:
        """Those that are neither ending nor over."""
        return tuple(pod for pod in self.pods if not pod.terminating and not pod.finished)

    @property
    def there(self) -> tuple[Pod, ...]:
        """Those whose processes may still be there."""
        return tuple(pod for pod in self.pods if not pod.finished)

    @property
    def identity(self) -> ProcessIdentity | None:
        """All servers that run, as one."""
        running = self._running
        if not running:
            return None
        started = max(pod.started_at or 0.0 for pod in running)
        return ProcessIdentity(0, started, ", ".join(sorted(pod.identity for pod in running)))

    @property
    def _running(self) -> list[Pod]:
        """Those whose server runs; of those that end only where there is no other."""
        running = [pod for pod in self.alive if pod.running]
        return running or [pod for pod in self.there if pod.running]

    def has(self, identity: ProcessIdentity) -> bool:
        """Whether one of these servers runs still: all pods of a workload are one server."""
        return any(pod.identity in identity.name for pod in self._running)

    @property
    def all_run(self) -> bool:
        """Whether so many servers run as are wanted."""
        return sum(pod.running for pod in self.alive) >= max(1, self.workload.replicas)

    def status(self, now: float) -> ProcessStatus:
        """As a process manager says it."""
        return ProcessStatus(self._state(), self.identity, self._detail(), self._oom_killed(now))

    def _state(self) -> State:
        if self.workload.replicas == 0:
            return "stopping" if self.there else "stopped"
        lost = any(pod.lost for pod in self.alive)
        if not lost and any(pod.running for pod in self.alive):
            return "running"
        if lost or any(pod.lost for pod in self.there):
            return "unknown"
        if self.workload.failure and not self.there:
            return "failed"
        # Also where it ends: its controller or kubelet is about to start it again.
        return "stopping" if self.there and not self.alive else "starting"

    def _detail(self) -> str:
        workload = self.workload
        wanted = workload.replicas
        said = f"{workload.ready} of {wanted} ready" if wanted else "scaled to 0"
        if workload.paused:
            said += ", paused by somebody"
        if workload.failure:
            said += f", {workload.failure}"
        return "; ".join([said, *(pod.told for pod in self.there)])

    def _oom_killed(self, now: float) -> bool | None:
        endings = [pod.ended for pod in self.pods if pod.ended]
        last = max((one.at for one in endings), default=0.0)
        since = max(now - _DEATH_TOLD, last - _TOGETHER)
        endings = [one for one in endings if one.at > since]
        if any(one.reason == _OUT_OF_MEMORY for one in endings):
            return True
        # A container's last process may be one that its server had started; SIGKILL proves nothing.
        return False if endings and all(e.exit_code != _SIGKILL for e in endings) else None
