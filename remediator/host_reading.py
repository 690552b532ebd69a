"""The host's memory as the exporter's JSON gives it; what could not be read is None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from remediator.readings import number

# The exporter's clock and ours are one machine's: what lies further ahead is no reading of now.
_CLOCK_SLACK = 1.0
_NAME_LIMIT = 256
_KILLS_LIMIT = 64


@dataclass(frozen=True)
class KernelKill:
    """A process that the kernel log says was killed for want of memory.

    `at` in Unix seconds; `pid` of the machine's first pid namespace; `process` is a name that it
    gave itself; `constraint` says whose memory ran out, None where the log does not; `sequence` is
    the number of the record.
    """

    at: float
    pid: int
    process: str
    constraint: Literal["host", "cgroup"] | None
    unit: str
    sequence: int


@dataclass(frozen=True)
class OomKillLog:
    """What the kernel log of the boot `boot_id` says of them, oldest first."""

    boot_id: str
    kills: tuple[KernelKill, ...]


@dataclass(frozen=True)
class HostReading:
    """One reading of this machine.

    Memory in bytes, `used_ratio` from 0 to 1, `oom_kills` since boot, `timestamp` in Unix seconds.
    `oom_kill_log` is None where the exporter reads no kernel log.
    """

    total_bytes: float | None
    available_bytes: float | None
    used_ratio: float | None
    oom_kills: float | None
    timestamp: float | None
    oom_kill_log: OomKillLog | None = None

    @property
    def used_bytes(self) -> float | None:
        """What is not available to a new program; None where it could not be read."""
        if self.total_bytes is None or self.available_bytes is None:
            return None
        return self.total_bytes - self.available_bytes

    def fresh(self, now: float, max_age: float) -> bool:
        """Whether it was read at most `max_age` seconds ago, by the same machine's clock."""
        return self.timestamp is not None and -_CLOCK_SLACK <= now - self.timestamp <= max_age


def parse_host(raw: Mapping[str, Any]) -> HostReading:
    """The reading in the exporter's `/api/host`."""
    memory = raw.get("memory")
    memory = memory if isinstance(memory, Mapping) else {}
    return HostReading(
        total_bytes=number(memory.get("total_bytes")),
        available_bytes=number(memory.get("available_bytes")),
        used_ratio=number(memory.get("used_ratio")),
        oom_kills=number(raw.get("oom_kills")),
        timestamp=number(raw.get("timestamp")),
        oom_kill_log=_oom_kill_log(raw.get("oom_kill_log")),
    )


def _oom_kill_log(raw: object) -> OomKillLog | None:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("kills"), list):
        return None
    newest = raw["kills"][-_KILLS_LIMIT:]
    kills = [_kernel_kill(one) for one in newest if isinstance(one, Mapping)]
    known = tuple(one for one in kills if one is not None)
    return OomKillLog(_text(raw.get("boot_id")), known)


def _kernel_kill(raw: Mapping[str, Any]) -> KernelKill | None:
    at, pid, sequence = (number(raw.get(key)) for key in ("timestamp", "pid", "sequence"))
    if at is None or pid is None or sequence is None:
        return None
    constraint = raw.get("constraint")
    return KernelKill(
        at,
        int(pid),
        _text(raw.get("process")),
        constraint if constraint in ("host", "cgroup") else None,
        _text(raw.get("unit")),
        int(sequence),
    )


def _text(raw: object) -> str:
    """Names that users chose go into the audit: of these a line's worth."""
    return raw[:_NAME_LIMIT] if isinstance(raw, str) else ""
