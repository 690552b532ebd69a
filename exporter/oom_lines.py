r"""What the kernel logs when it kills a process for want of memory: mm/oom_kill.c, mm/memcontrol.c.

Of Linux 5.10, 6.1 and 6.18 one line names the process: `Out of memory: Killed process 12 (name)
total-vm:1kB, anon-rss:1kB, …`, with `Memory cgroup out of memory` where the limit of a cgroup was
met. Up to 4.19 the cause stands before it in a line of its own, which may name another process than
the one that is killed: `Out of memory: Kill process 11 (name) score 900 or sacrifice child`.
Newer ones may tell more of it first: `oom-kill:constraint=…,task_memcg=/its/cgroup,task=name,pid=12,
uid=0`; not in a storm, and the first of them tell a wrong constraint (fixed by 432b1de0de02).

Names and paths are what users chose. The kernel writes what is not printable ASCII as `\x0a`, and a
backslash too; a process's name has 15 bytes at most.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

Constraint: TypeAlias = Literal["host", "cgroup"]

_CAUSE = rb"(Out of memory|Memory cgroup out of memory)(?: \(oom_kill_allocating_task\))?: "
_PID = rb"(\d{1,10})"
_KILL = re.compile(_CAUSE + rb"Kill process \d+ \(.*\) score \d+ or sacrifice child$", re.DOTALL)
_KILLED = re.compile(
    rb"(?:"
    + _CAUSE
    + rb")?Killed process "
    + _PID
    + rb" \((.*)\)(?:, UID \d+,)? total-vm:\d+kB, anon-rss:\d+kB, file-rss:\d+kB"
    # Nothing but figures: a name that imitates the rest is part of the name.
    rb"(?:, shmem-rss:\d+kB)?(?:, UID:\d+)?(?: pgtables:\d+kB)?(?: oom_score_adj:-?\d+)?$",
    re.DOTALL,
)
_CONTEXT = re.compile(rb"oom-kill:constraint=.*,task=.*,pid=" + _PID + rb",uid=\d+$", re.DOTALL)
_TASK, _MEMCG = b",task=", b",task_memcg="
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_NAME_LIMIT = 64
_PATH_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Killed:
    """One process that the kernel killed for want of memory.

    Attributes:
        pid: in the kernel's first pid namespace.
        process: its name as the process chose it, without what cannot be printed.
        constraint: whose memory ran out; None where the log does not say.
        cgroup: the path of its cgroup; empty where the log does not say, or not clearly.
    """

    pid: int
    process: str
    constraint: Constraint | None
    cgroup: str = ""


class OomLines:
    """Reads line after line: of some kernels one kill is told in several."""

    def __init__(self) -> None:
        """Nothing was read yet."""
        self._cause: bytes | None = None
        self._context: tuple[int, str] | None = None

    def take(self, message: bytes) -> Killed | None:
        """Read one line of the kernel's; return the process that it says was killed."""
        if context := _CONTEXT.match(message):
            self._context = int(context[1]), _cgroup(message)
        elif cause := _KILL.match(message):
            self._cause = cause[1]
        elif killed := _KILLED.match(message):
            return self._killed(int(killed[2]), killed[3], killed[1])
        return None

    def _killed(self, pid: int, name: bytes, cause: bytes | None) -> Killed:
        context, self._context = self._context, None
        before, self._cause = self._cause, None
        known = context is not None and context[0] == pid
        return Killed(
            pid,
            _printable(name, _NAME_LIMIT),
            _constraint(cause or before),
            context[1] if known and context else "",
        )


def _constraint(cause: bytes | None) -> Constraint | None:
    if cause is None:
        return None
    # A cpuset or a memory policy that leaves it a part of the host's memory counts as the host.
    return "cgroup" if cause.startswith(b"Memory cgroup") else "host"


def _cgroup(message: bytes) -> str:
    """Return the path, unless a name or another path in the line looks like a part of it."""
    if message.count(_MEMCG) != 1 or message.count(_TASK) != 1:
        return ""
    path = message.partition(_MEMCG)[2].partition(_TASK)[0]
    return _printable(path, _PATH_LIMIT) if path.startswith(b"/") else ""


def _printable(raw: bytes, limit: int) -> str:
    plain = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), raw)
    text = plain.decode(errors="replace")[:limit]
    return "".join(one if one.isprintable() else "?" for one in text)
