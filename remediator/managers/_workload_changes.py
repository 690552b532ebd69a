"""Changing a workload of Kubernetes: asking for it once, and looking until it has come about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from remediator.clock import Clock
from remediator.errors import ManagerError, OutcomeUnknown
from remediator.managers._kubernetes_api import AwayError, LostError, Written
from remediator.managers._workload import Seen
from remediator.managers._workload_client import WorkloadClient
from remediator.waiting import wait_until

Asked = Written | Literal["spared"]
"""`spared`: what it was meant for is gone, and nothing was asked for."""


# A rollout takes minutes, and each look is three requests to a server that others need, too.
_LOOK_EVERY = 1.0
# One that is being replaced is back by then. Others on the same card wait for their own stop.
_AWAY_FOR = 15.0


class _Attempt:
    """What came of asking for one change until now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.said: Asked = "conflict"
        self.lost = False
        self.failed: ManagerError | None = None
        self._heard = clock.monotonic()

    def made(self, ask: Callable[[], Asked]) -> bool:
        """Ask once; False where it has to be looked at again.

        Raises:
            ManagerError: it would be refused again, or the API server stays away.
        """
        try:
            self.said = ask()
        except LostError as error:
            self.lost, self.failed = True, error
            return False
        except AwayError as error:
            self.failed = error
            if not self.lost and self._clock.monotonic() - self._heard >= _AWAY_FOR:
                raise
            return False
        if not self.lost:
            self.failed = None
        self._heard = self._clock.monotonic()
        return self.said != "conflict"

    def error(self, what: str) -> ManagerError | OutcomeUnknown:
        """Why it did not come about."""
        if self.lost:
            return OutcomeUnknown(f"whether {what} was changed is not known: {self.failed}")
        return self.failed or ManagerError(f"{what} is changed by others all the time")


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
        attempt = _Attempt(self._clock)

        def asked() -> Asked:
            seen = self._client.look()
            return "done" if done(seen) else write(seen)

        left = deadline - self._clock.monotonic()
        try:
            if wait_until(self._clock, left, lambda: attempt.made(asked), poll=_LOOK_EVERY):
                return "spared" if attempt.said == "spared" else "done"
        except ManagerError as error:
            attempt.failed = error
        raise attempt.error(self._client.told)

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
