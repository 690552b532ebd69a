"""Did the kernel kill a process for memory? Its counts of such kills, and how the process ended.

SIGKILL alone proves nothing: a person, a supervisor whose patience ended, and the kernel send the
same. Only together with a count of kills for memory that rose meanwhile is it one. The count of
the process's own cgroup is asked first, where it can be read; else the machine's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from remediator.clock import Clock
from remediator.managers.base import ProcessIdentity

PROCFS = Path("/proc")
# The kernel counts before the process is gone, so a look in between must not become the baseline.
_BASELINE_AGE = 10.0
_CGROUPS = 3


@dataclass(frozen=True)
class _Counts:
    """Kills for memory so far, by the machine (None: not known) and by the cgroups that can be read."""

    at: float
    machine: int | None
    cgroups: Mapping[Path, int]


class DeathWatch:
    """Follows the process of one unit, and says of the one that ended last what ended it."""

    def __init__(
        self, clock: Clock, procfs: Path, sigkilled: Callable[[ProcessIdentity], bool | None]
    ) -> None:
        """`sigkilled` says whether SIGKILL ended a process; None where it cannot tell."""
        self._clock = clock
        self._procfs = procfs
        self._sigkilled = sigkilled
        self._lock = threading.Lock()
        self._watched: ProcessIdentity | None = None
        # Newest first: a wrapper may move itself before it becomes the server, and a process that
        # is just ending seems to be in the root.
        self._events: tuple[Path, ...] = ()
        self._older = self._newer = _Counts(0.0, None, {})
        self._verdict: bool | None = None

    def oom_killed(self, identity: ProcessIdentity | None) -> bool | None:
        """Look again, with the process that runs now; whether memory ended the last one.

        None where no end was seen, or where it cannot be told.
        """
        with self._lock:
            if self._watched is not None and not self._watched.same(identity):
                self._verdict = self._judge(self._watched)
                self._watched = None
            if identity is not None:
                self._follow(identity)
            return self._verdict

    def _follow(self, identity: ProcessIdentity) -> None:
        events = _cgroup_events(self._procfs, identity.pid)
        if self._watched is None:
            self._watched = identity
            self._events = () if events is None else (events,)
            self._older = self._newer = self._counts()
        elif events is not None and events not in self._events:
            self._events = (events, *self._events)[:_CGROUPS]
            known = self._counts().cgroups
            self._older = replace(self._older, cgroups={**known, **self._older.cgroups})
            self._newer = replace(self._newer, cgroups={**known, **self._newer.cgroups})
        elif self._clock.monotonic() - self._newer.at >= _BASELINE_AGE:
            self._older, self._newer = self._newer, self._counts()

    def _judge(self, ended: ProcessIdentity) -> bool | None:
        sigkilled = self._sigkilled(ended)
        before, now = self._older, self._counts()
        if not sigkilled:
            return sigkilled
        both = [path for path in now.cgroups if path in before.cgroups]
        if both:
            return any(now.cgroups[path] > before.cgroups[path] for path in both)
        if before.machine is None or now.machine is None:
            return None
        return now.machine > before.machine

    def _counts(self) -> _Counts:
        machine = _count(self._procfs / "vmstat")
        found = {path: _count(path) for path in self._events}
        cgroups = {path: count for path, count in found.items() if count is not None}
        return _Counts(self._clock.monotonic(), machine, cgroups)


def _count(path: Path) -> int | None:
    """`oom_kill` in a file of `name value` lines (/proc/vmstat, a cgroup's own)."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    except (OSError, ValueError, IndexError):
        return None


def _cgroup_events(procfs: Path, pid: int) -> Path | None:
    """What counts the kills in the process's cgroup; None where it cannot be told.

    `memory.events` of a cgroup v2, `memory.oom_control` of the memory controller of version 1.
    """
    try:
        lines = (procfs / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    root = procfs.parent / "sys" / "fs" / "cgroup"
    found = None
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        # Outside of our own cgroup namespace the path begins with `..` and names nothing here.
        inside = None if ".." in Path(path).parts else path.lstrip("/")
        if inside is not None and "memory" in controllers.split(","):
            return root / "memory" / inside / "memory.oom_control"
        if inside is not None and not controllers:
            found = root / inside / "memory.events"
    return found
