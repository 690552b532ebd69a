"""The host's own memory and filesystems, from /proc and statvfs."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter.clock import Clock
from exporter.oom_kills import OomKillLog
from serving.question import Asked, Question, Unanswered

# What a page waits for all filesystems together: a server of one that is gone may not answer for days.
_PATIENCE_SECONDS = 0.2
_WORDS = {
    errno.ENOENT: "not_found",
    errno.EACCES: "no_permission",
    errno.EPERM: "no_permission",
    errno.ETIMEDOUT: "timeout",
}


@dataclass(frozen=True, slots=True)
class Filesystem:
    """One mount point; bytes."""

    mountpoint: str
    size_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class HostReading:
    """What could be read; what could not is None or missing.

    Attributes:
        read_at: time (epoch).
        oom_kills: processes that the kernel killed for memory since boot.
        errors: one word for each filesystem that could not be read.
        oom_kill_log: which processes these were; None where the kernel log is not read.
    """

    read_at: float
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    oom_kills: int | None = None
    filesystems: tuple[Filesystem, ...] = field(default=())
    errors: tuple[str, ...] = ()
    oom_kill_log: OomKillLog | None = None


class HostReader:
    """Reads the host; a filesystem that does not answer is left out, and holds up nothing."""

    def __init__(
        self,
        mountpoints: Iterable[str],
        clock: Clock,
        proc: Path = Path("/proc"),
        statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
    ) -> None:
        """Read below `proc`; `statvfs` stands for the system's."""
        self._mounts = [_question(one, statvfs) for one in dict.fromkeys(mountpoints)]
        self._lock = threading.Lock()
        self._clock = clock
        self._proc = proc

    def read(self) -> HostReading:
        """Read all; what fails is left out."""
        # Asked all at once, and waited for together.
        asked = [self._begin(mount) for mount in self._mounts]
        until = self._clock.monotonic() + _PATIENCE_SECONDS
        found = [self._filesystem(one, until) for one in asked]
        return replace(
            self.read_memory(),
            filesystems=tuple(one for one in found if isinstance(one, Filesystem)),
            errors=tuple(one for one in found if isinstance(one, str)),
        )

    def read_memory(self) -> HostReading:
        """Read all but the filesystems, of which one on a network may not answer for long."""
        memory = self._numbers("meminfo", rb"^(\w+):\s+(\d+) kB", {b"MemTotal", b"MemAvailable"})
        events = self._numbers("vmstat", rb"^(\w+) (\d+)", {b"oom_kill"})
        # A host without memory, or with more to be had than there is, was not read but made up.
        total = _kibibytes(memory.get(b"MemTotal")) or None
        available = _kibibytes(memory.get(b"MemAvailable"))
        if total is not None and available is not None and available > total:
            total = available = None
        return HostReading(
            read_at=self._clock.time(),
            memory_total_bytes=total,
            memory_available_bytes=available,
            oom_kills=events.get(b"oom_kill"),
        )

    def _numbers(self, name: str, pattern: bytes, wanted: set[bytes]) -> dict[bytes, int]:
        try:
            text = (self._proc / name).read_bytes()
        except OSError:
            return {}
        found = re.finditer(pattern, text, re.MULTILINE)
        return {match[1]: int(match[2]) for match in found if match[1] in wanted}

    def _begin(self, mount: Question[Filesystem]) -> Asked[Filesystem] | None:
        with self._lock, contextlib.suppress(Unanswered):
            return mount.begin()
        return None

    def _filesystem(self, asked: Asked[Filesystem] | None, until: float) -> Filesystem | str:
        """Return what it says, or in one word why it says nothing."""
        if asked is None:
            return "unknown"
        try:
            return asked.answer(until - self._clock.monotonic())
        except Unanswered:
            return "timeout"
        except OSError as error:
            return _WORDS.get(error.errno or 0, "unknown")


def _question(mountpoint: str, statvfs: Callable[[str], os.statvfs_result]) -> Question[Filesystem]:
    def ask() -> Filesystem:
        stat = statvfs(mountpoint)
        size, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
        return Filesystem(mountpoint, size, free)

    return Question(ask, "filesystem")


def _kibibytes(value: int | None) -> int | None:
    return None if value is None else value * 1024
