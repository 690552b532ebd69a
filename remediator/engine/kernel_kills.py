"""Which process of a service the kernel log says was killed for memory; the exporter reads that log.

It names pids, and a pid is given to one process after another. So a process is taken for the one in
the log only when it was seen alive itself, on this boot of this machine, by pid and start time, and
the log's time lies between that last look and the first at which it was gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from remediator.clock import boot_id
from remediator.errors import NoEvidence
from remediator.host_reading import KernelKill
from remediator.managers.base import ProcessIdentity, identity_from
from remediator.world import World

# What died longer ago is not counted: an alert about it would come too late.
_HORIZON = 600.0
# For so long after an end the exporter is asked: it may read the log a moment later.
_ASKED_FOR = 30.0
_KEEP_EVERY = 60.0
# The line is written first, and a process that gives back much memory ends seconds later.
_DYING = 10.0
# Start times are told in whole seconds, and the exporter stamps a line when it reads it.
_STAMPS = 2.0
# The kernel's own number for the namespace that the machine began with.
_FIRST_NAMESPACE = "pid:[4026531836]"


def _in_first_namespace() -> bool:
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == _FIRST_NAMESPACE
    except OSError:
        return False


def _started_at(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


@dataclass(frozen=True)
class Machine:
    """What is known of this machine; a test plays another.

    Attributes:
        boot_id: of this boot; empty where the kernel does not say.
        in_first_namespace: whether a pid is here what it is in the kernel log.
        started_at: of the process that has this pid now (Unix seconds); None where none has.
    """

    boot_id: Callable[[], str] = boot_id
    in_first_namespace: Callable[[], bool] = _in_first_namespace
    started_at: Callable[[int], float | None] = _started_at


@dataclass(frozen=True)
class _Seen:
    """A process that was there itself, last at `at` (Unix seconds)."""

    identity: ProcessIdentity
    at: float


@dataclass(frozen=True)
class _Ended:
    """One that was gone, or replaced, at `gone_at`."""

    seen: _Seen
    gone_at: float


@dataclass
class _Followed:
    seen: _Seen | None = None
    ended: _Ended | None = None
    kept_at: float = 0.0


@dataclass
class KernelKills:
    """Follows the processes of services, each in its own probing thread."""

    world: World
    machine: Machine = field(default_factory=Machine)
    _followed: dict[str, _Followed] = field(default_factory=dict)

    def follow(self, name: str, identity: ProcessIdentity | None) -> None:
        """Take which process of service `name` runs now.

        Raises:
            StorageError: it could not be kept.
        """
        one, now = self._of(name), self.world.clock.now()
        if one.ended is not None and one.ended.seen.identity.same(identity):
            # Its manager had lost sight of it.
            one.ended = None
        if one.seen is not None and not one.seen.identity.same(identity):
            gone = one.ended is not None and one.ended.seen.identity.same(one.seen.identity)
            one.ended = one.ended if gone else _Ended(one.seen, now)
        if identity is not None and self._is_here(identity):
            is_new = one.seen is None or not one.seen.identity.same(identity)
            one.seen = _Seen(identity, now)
            if is_new or not 0 <= now - one.kept_at < _KEEP_EVERY:
                self._keep(name, one.seen)
                one.kept_at = now

    def of(self, name: str, victim: ProcessIdentity | None) -> KernelKill | None:
        """The kill of `victim`, which was the process of service `name`; None where none is told.

        None as well where the exporter does not answer, is of another machine or reads no log.
        """
        ended, now = self._of(name).ended, self.world.clock.now()
        if ended is None or not ended.seen.identity.same(victim):
            return None
        if not 0 <= now - ended.gone_at <= _ASKED_FOR:
            return None
        try:
            log = self.world.gpus.host().oom_kill_log
        except NoEvidence:
            return None
        if log is None or not log.boot_id or log.boot_id != self.machine.boot_id():
            return None
        return next((one for one in log.kills if self._is_of(one, ended, now)), None)

    def _is_of(self, kill: KernelKill, ended: _Ended, now: float) -> bool:
        seen = ended.seen
        since = max(seen.identity.started_at - 1.0, seen.at - _DYING, now - _HORIZON)
        if kill.pid != seen.identity.pid or not since <= kill.at <= ended.gone_at + _STAMPS:
            return False
        started_at = self.machine.started_at(kill.pid)
        if started_at is None or abs(started_at - seen.identity.started_at) < _STAMPS:
            return True
        # The pid is another process's by now: it may have been when the line was written, too.
        return started_at > kill.at

    def _is_here(self, identity: ProcessIdentity) -> bool:
        """Whether the process is there by itself, with the pid that the kernel log would give it."""
        if identity.pid <= 0 or not self.machine.in_first_namespace():
            return False
        started_at = self.machine.started_at(identity.pid)
        return started_at is not None and abs(started_at - identity.started_at) < _STAMPS

    def _of(self, name: str) -> _Followed:
        if name not in self._followed:
            with self.world.store.reading() as tx:
                kept = json.loads(tx.get_meta(_key(name)) or "{}")
            identity = identity_from(kept.get("identity"))
            # A pid of an earlier boot is nobody's.
            known = identity is not None and kept["boot_id"] == self.machine.boot_id()
            seen = _Seen(identity, kept["at"]) if known and identity else None
            self._followed[name] = _Followed(seen)
        return self._followed[name]

    def _keep(self, name: str, seen: _Seen) -> None:
        kept = {
            "identity": seen.identity.to_json(),
            "at": seen.at,
            "boot_id": self.machine.boot_id(),
        }
        with self.world.store.transaction() as tx:
            tx.set_meta(_key(name), json.dumps(kept))


def _key(name: str) -> str:
    return f"seen_alive:{name}"
