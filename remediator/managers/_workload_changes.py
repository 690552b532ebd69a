"""Changing a workload of Kubernetes: asking for it once, and looking until it has come about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from remediator.clock import Clock
from remediator.errors import ManagerError, OutcomeUnknown
from remediator.managers._kubernetes_api import AwayError, Written
from remediator.managers._workload import Seen
from remediator.managers._workload_client import WorkloadClient
from remediator.waiting import wait_until

Asked = Written | Literal["spared"]
"""`spared`: what it was meant for is gone, and nothing was asked for."""


# A rollout takes minutes, and each look is three requests to a server that others need, too.
_LOOK_EVERY = 1.0
# One that is being replaced is back by then. Others on the same card wait for their own stop.
_AWAY_FOR = 15.0


class Changes:
    """Of one workload."""

    def __init__(self, client: WorkloadClient, clock: Clock) -> None:
        self._client, self._clock = client, clock

    def refuse(self, why: str) -> None:
        """End here, if there is a reason to.

        Raises:
            ManagerError: there is.
        """
        if why:
            raise ManagerError(f"{self._client.told}: {why}")

    def ask(
        self, done: Callable[[Seen], bool], write: Callable[[Seen], Asked], deadline: float
    ) -> Literal["done", "spared"]:
        """Write once it is seen that it is not done yet, and again only after another look.

        Args:
            done: Whether it was asked for already.
            write: Asks for it.
            deadline: By the monotonic clock.

        Raises:
            OutcomeUnknown: an answer was lost, and the world did not say what became of it.
            ManagerError: it was refused, the API server stayed away, or somebody else changed it
                all the time.
        """
        said: list[Asked] = []
        failed: ManagerError | None = None
        heard = self._clock.monotonic()

        def asked() -> bool:
            nonlocal failed, heard
            try:
                seen = self._client.look()
                said.append("done" if done(seen) else write(seen))
            except ManagerError as error:
                failed = error
                gone = self._clock.monotonic() - heard >= _AWAY_FOR
                if not isinstance(error, AwayError) or ("lost" not in said and gone):
                    raise
                return False
            failed, heard = None, self._clock.monotonic()
            return said[-1] in ("done", "spared")

        left = deadline - self._clock.monotonic()
        try:
            if wait_until(self._clock, left, asked, poll=_LOOK_EVERY):
                return "spared" if said[-1] == "spared" else "done"
        except ManagerError:
            if "lost" not in said:
                raise
        if "lost" in said:
            told = f"whether {self._client.told} was changed is not known"
            why = f": {failed}" if failed else ""
            raise OutcomeUnknown(f"{told}: the API server did not answer{why}")
        raise failed or ManagerError(f"{self._client.told} is changed by others all the time")

    def wait(
        self, verb: str, deadline: float, timeout: float, missing: Callable[[Seen], str]
    ) -> Seen:
        """Look until nothing is missing; an API server that is away meanwhile is waited for.

        Args:
            verb: What was asked for, for a person.
            deadline: By the monotonic clock.
            timeout: How many seconds there were in all.
            missing: What is missing yet; raises `ManagerError` where it will never come.

        Raises:
            ManagerError: something is still missing at the deadline.
        """
        found: list[Seen] = []
        why = "nobody has looked yet"

        def arrived() -> bool:
            nonlocal why
            try:
                seen = self._client.look()
            except ManagerError as error:
                why = str(error)
                return False
            why = missing(seen)
            if not why:
                found.append(seen)
            return not why

        left = deadline - self._clock.monotonic()
        if not wait_until(self._clock, left, arrived, poll=_LOOK_EVERY):
            raise ManagerError(f"{self._client.told} did not {verb} within {timeout:g} s: {why}")
        return found[0]
