"""Restarts that are one request: a rollout, or the deletion of the one pod."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from remediator.errors import ManagerError
from remediator.managers._kubernetes_api import Written
from remediator.managers._workload import Seen
from remediator.managers._workload_changes import Asked
from remediator.managers._workload_client import Restart
from remediator.managers._workload_manager import WorkloadManager, why_not_up
from remediator.managers.base import ProcessIdentity


class _Replacing(WorkloadManager, ABC):
    """A restart is one request, which can be asked for again without being done twice."""

    def replace(self, identity: ProcessIdentity, mark: str, timeout: float) -> ProcessIdentity:
        """Ask, then wait until the old pods are gone and new ones run, and for a while are ready.

        A server that takes longer to be ready than there is time runs all the same: what waits for
        it is the playbook's own step.
        """
        deadline = self._clock.monotonic() + timeout

        def ask(seen: Seen) -> Asked:
            if not seen.has(identity):
                return "spared"
            self._changes.refuse(self._why_not_restarted(seen))
            return self._request(seen, identity, mark)

        asked = self._changes.ask(lambda seen: self._asked(seen, identity, mark), ask, deadline)
        if asked == "spared":
            return self._await_servers("restart", deadline, timeout, why_not_up)
        newest: list[ProcessIdentity] = []

        def missing(seen: Seen) -> str:
            newest.clear()
            why = self._why_not_replaced(seen, identity) or why_not_up(seen)
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
        return self._asked(seen, identity, mark) or not seen.has(identity)

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

    restart: Restart = "rollout"

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
        workload = seen.workload
        why = workload.not_rolled_out() or super()._why_not_replaced(seen, identity)
        # Its controller gives up on a server that only takes long to be ready, too: that is up.
        late = bool(why or why_not_up(seen))
        if late and workload.stuck and workload.observed >= workload.generation:
            raise ManagerError(f"the rollout of {self._client.told} is stuck: {workload.stuck}")
        return why


class PodDeletion(_Replacing):
    """A restart is the deletion of the one pod, by its uid; its controller makes another."""

    restart: Restart = "pod"

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


def _why_not_ready(seen: Seen) -> str:
    ready = sum(pod.ready for pod in seen.alive)
    return "" if ready >= seen.workload.replicas else f"{ready} of them are ready"
