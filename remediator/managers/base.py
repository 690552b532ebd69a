"""The contract of a process manager.

A process is pinned by identity (pid and start time, or a name of its manager's), so that a stop
meant for one process can never hit the one that came after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from remediator.clock import Clock

State = Literal["running", "starting", "stopping", "stopped", "exited", "failed", "unknown"]
"""`stopped` is on purpose, by whoever runs the manager; `exited` and `failed` are not."""


@dataclass(frozen=True)
class ProcessIdentity:
    """One process: its pid and when it started (Unix seconds), which together name it for ever.

    Where its manager does not tell a pid of this machine, `pid` is 0, and `name` says which it is.
    """

    pid: int
    started_at: float
    name: str = ""

    def same(self, other: ProcessIdentity | None) -> bool:
        """Whether `other` is this very process (start times agree to within two seconds)."""
        return (
            other is not None
            and self.pid == other.pid
            and self.name == other.name
            and abs(self.started_at - other.started_at) < 2.0
        )

    @property
    def told(self) -> str:
        """For a person."""
        return self.name or f"pid {self.pid}"

    def to_json(self) -> dict[str, Any]:
        """For the journal."""
        named = {"name": self.name} if self.name else {}
        return {"pid": self.pid, "started_at": self.started_at, **named}


def identity_from(raw: Mapping[str, Any] | None) -> ProcessIdentity | None:
    """The identity that `to_json` wrote; None where there is none."""
    if not raw or "pid" not in raw:
        return None
    return ProcessIdentity(int(raw["pid"]), float(raw["started_at"]), str(raw.get("name") or ""))


@dataclass(frozen=True)
class ProcessStatus:
    """What the manager says now.

    `oom_killed`: whether the kernel killed the last process for memory; None where the manager
    cannot tell.
    """

    state: State
    identity: ProcessIdentity | None
    detail: str
    oom_killed: bool | None = None

    @property
    def running(self) -> bool:
        """Whether a process is up (it may not serve yet)."""
        return self.state == "running"


@dataclass(frozen=True)
class Context:
    """What a manager may use: the clock, and where it keeps who it started."""

    clock: Clock
    load_identity: Callable[[], Mapping[str, Any]]
    save_identity: Callable[[Mapping[str, Any]], None]


class ProcessManager(Protocol):
    """Starts and stops exactly one configured unit."""

    kind: str
    unit: str

    def status(self) -> ProcessStatus:
        """What the manager says now.

        Raises:
            ManagerError: the manager cannot be asked.
        """

    def stop(self, identity: ProcessIdentity | None, timeout: float) -> None:
        """Stop the process (SIGTERM first) and wait until it is gone; done when it already is.

        With an identity only that very process is stopped.

        Raises:
            ManagerError: it is still there after `timeout` seconds, or the manager refused.
        """

    def start(self, timeout: float) -> ProcessIdentity:
        """Start the process unless it runs, and wait until the manager says it does.

        Raises:
            ManagerError: it did not come up within `timeout` seconds.
        """

    def describe(self, verb: Literal["start", "stop", "restart"]) -> str:
        """What `verb` would do, for `plan`; does nothing."""


@runtime_checkable
class Replaces(Protocol):
    """A process manager that can have a process replaced in one request, without a stop before."""

    def replace(self, identity: ProcessIdentity, mark: str, timeout: float) -> ProcessIdentity:
        """Have this very process replaced, and wait until the one that comes after it is up.

        Where it is gone already, only wait. With the same `mark` it is asked for once, however
        often this is called.

        Raises:
            ManagerError: it was refused, or did not come about within `timeout` seconds.
            OutcomeUnknown: it is not known whether it was asked for.
        """

    def replacing(self, identity: ProcessIdentity, mark: str) -> bool:
        """Whether the replacement with this `mark` was asked for, or the process is gone.

        Raises:
            ManagerError: the manager cannot be asked.
        """


@runtime_checkable
class Concerned(Protocol):
    """A process manager that can tell beforehand what it would refuse."""

    def concerns(self) -> Iterator[str]:
        """One sentence for each; changes nothing, and asks for a few seconds at most."""
