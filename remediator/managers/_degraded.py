"""Two managers of one server: as it usually runs, and with less load, which its operator prepared.

Only one of the two is ever started. Who goes back starts the usual one: what runs is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

from remediator.errors import ManagerError
from remediator.managers._server_log import Logged, LogPage, ServerLog
from remediator.managers.base import (
    Concerned,
    ProcessIdentity,
    ProcessManager,
    ProcessStatus,
    Replaces,
)


class Choice(Protocol):
    """Which of the two is to be started, kept over a restart of the remediator."""

    def since(self) -> float | None:
        """Since when the degraded one is to be started (Unix seconds); None: the usual one."""

    def has_begun(self) -> bool:
        """Whether the degraded one was started since then."""

    def begun(self) -> None:
        """It was."""

    def restore(self) -> None:
        """From now on the usual one is to be started."""


class EitherOf:
    """`ProcessManager` over the one that runs, or else over the one that is to be started."""

    def __init__(self, usual: ProcessManager, degraded: ProcessManager, choice: Choice) -> None:
        """Nothing is asked yet.

        Args:
            usual: Starts the server as its owner wants it.
            degraded: Starts it with less load.
            choice: Which of the two it is to be.
        """
        self.kind, self.unit = usual.kind, usual.unit
        self._usual, self._degraded, self._choice = usual, degraded, choice

    def status(self) -> ProcessStatus:
        """That of the one that is up; where neither is, of the one that was started last."""
        usual, degraded = self._usual.status(), self._degraded.status()
        if _is_up(usual):
            self._see(usual)
            return usual
        if not _is_up(degraded) and not self._choice.has_begun():
            return usual
        return replace(
            degraded, detail=f"with less load ({self._degraded.unit}): {degraded.detail}"
        )

    def stop(self, identity: ProcessIdentity | None, timeout: float) -> None:
        """Stop the one whose process it is; without an identity whatever is up."""
        for one in self._both:
            status = one.status()
            if _is_up(status) and (identity is None or identity.same(status.identity)):
                one.stop(identity, timeout)

    def start(self, timeout: float) -> ProcessIdentity:
        """Start the one that is to run, unless either is up."""
        up = [one for one in self._both if _is_up(one.status())]
        one = up[0] if up else self._chosen
        identity = one.start(timeout)
        if one is self._degraded:
            self._choice.begun()
        return identity

    def describe(self, verb: Literal["start", "stop", "restart"]) -> str:
        """What both would do; a restart may begin with the one and end with the other."""
        usual, degraded = _described(self._usual, verb), _described(self._degraded, verb)
        return f"{usual} (with less load: {degraded})"

    def log(self) -> ServerLog | None:
        """The log of the one that is to run, looked up anew at each read."""
        found = [one.log() if isinstance(one, Logged) else None for one in self._both]
        if found == [None, None]:
            return None
        return _EitherLog(found[0], found[1], lambda: self._choice.since() is None)

    def concerns(self) -> Iterator[str]:
        """What either would refuse."""
        for one in self._both:
            if isinstance(one, Concerned):
                yield from one.concerns()

    @property
    def _both(self) -> tuple[ProcessManager, ProcessManager]:
        return self._usual, self._degraded

    @property
    def _chosen(self) -> ProcessManager:
        return self._usual if self._choice.since() is None else self._degraded

    def _see(self, usual: ProcessStatus) -> None:
        """Somebody may have gone back to the usual one."""
        since, identity = self._choice.since(), usual.identity
        if since is not None and identity is not None and identity.started_at > since:
            self._choice.restore()


def _described(one: ProcessManager, verb: Literal["start", "stop", "restart"]) -> str:
    if verb == "restart" and isinstance(one, Replaces):
        return f"{one.describe('stop')}, then {one.describe('start')}"
    return one.describe(verb)


def _is_up(status: ProcessStatus) -> bool:
    return status.state in ("running", "starting", "stopping")


class _EitherLog:
    """`ServerLog` over two, of which one is read at a time."""

    def __init__(
        self, usual: ServerLog | None, degraded: ServerLog | None, as_usual: Callable[[], bool]
    ) -> None:
        self._usual, self._degraded, self._as_usual = usual, degraded, as_usual
        self.where = " or ".join(one.where for one in (usual, degraded) if one is not None)

    def read(self, position: Mapping[str, Any], since: float) -> LogPage:
        """That of the one that is to run; a position in the other's is none in this."""
        usual = self._as_usual()
        log = self._usual if usual else self._degraded
        if log is None:
            raise ManagerError("the manager that it is started by now keeps no log")
        inner = position.get("in", {}) if position.get("usual") == usual else {}
        page = log.read(inner, since)
        return replace(page, position={"usual": usual, "in": dict(page.position)})
