"""The host's own memory and filesystems, from /proc and statvfs."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter.clock import Clock

# What a page waits for all filesystems together: a server of one that is gone may not answer for days.
_PATIENCE_SECONDS = 0.2


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
    """

    read_at: float
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    oom_kills: int | None = None
    filesystems: tuple[Filesystem, ...] = field(default=())


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
        self._mounts = [_Mount(one, statvfs) for one in dict.fromkeys(mountpoints)]
        self._clock = clock
        self._proc = proc

    def read(self) -> HostReading:
        """Read all; what fails is left out."""
        return replace(self.read_memory(), filesystems=tuple(self._filesystems()))

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

    def _filesystems(self) -> Iterator[Filesystem]:
        now = self._clock.monotonic()
        looks = [mount.look(now) for mount in self._mounts]
        for look in looks:
            look.done.wait(look.began_at + _PATIENCE_SECONDS - self._clock.monotonic())
            if look.found is not None:
                yield look.found


class _Look:
    """One question to a filesystem, and its answer once it is `done`."""

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.done = threading.Event()
        self.found: Filesystem | None = None


class _Mount:
    """One mount point, asked in a thread of its own: one on a network may not answer for long."""

    def __init__(self, mountpoint: str, statvfs: Callable[[str], os.statvfs_result]) -> None:
        self._mountpoint = mountpoint
        self._statvfs = statvfs
        self._lock = threading.Lock()
        self._last: _Look | None = None

    def look(self, now: float) -> _Look:
        """Begin to look, or return the look that has not come back: there is one at a time."""
        with self._lock:
            if self._last is not None and not self._last.done.is_set():
                return self._last
            look = self._last = _Look(now)
        threading.Thread(target=self._ask, args=(look,), name="filesystem", daemon=True).start()
        return look

    def _ask(self, look: _Look) -> None:
        try:
            stat = self._statvfs(self._mountpoint)
            size, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
            look.found = Filesystem(self._mountpoint, size, free)
        except OSError:
            return
        finally:
            look.done.set()


def _kibibytes(value: int | None) -> int | None:
    return None if value is None else value * 1024
