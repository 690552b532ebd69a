"""Xid errors and kills for memory in the kernel log, `/dev/kmsg`: those of before, then as they come.

The format is the kernel's, Documentation/ABI/testing/dev-kmsg: a read gives one record,
`priority,sequence,microseconds,flags[,...];message`. The lines are those of the open kernel module,
kernel_rc.c: `Xid (PCI:0000:17:00 GPU-I:05 GPU-CI:00): 31, pid=…, name=…, …`; without the instances
outside of MIG, without pid and name where there is none, and without `PCI:` before driver 319.
`SXid` lines are of NVSwitches, which are no GPUs: they are not looked at. Those about processes that
were killed for want of memory are in `oom_lines.py`.
"""

from __future__ import annotations

import errno
import os
import re
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from exporter.clock import Clock
from exporter.oom_lines import Killed, OomLines

PciAddress: TypeAlias = tuple[int, int, int]

_ADDRESS = r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-7])?"
_PCI = re.compile(_ADDRESS)
# Only at the beginning: what else the kernel logs may hold names that a user chose.
_XID = re.compile(rf"NVRM: Xid \((?:PCI:)?{_ADDRESS}(?: [^)]*)?\): (\d{{1,4}})\b".encode())
# From here on a record was written by a program, which can write what it likes.
_FIRST_OF_PROGRAMS = 8
# No record of the kernel is longer.
_READ_BYTES = 1 << 14
# In a storm so many records, then a pause: what the kernel overwrites meanwhile is counted as lost.
_RECORDS_AT_ONCE = 2000
_PAUSE_SECONDS = 0.1
_POLL_SECONDS = 0.5
_WITHOUT = "Xid errors are those that the driver tells, and nobody says which processes are killed for memory"


@dataclass(frozen=True, slots=True)
class LoggedXid:
    """One line about an Xid.

    Attributes:
        time: epoch; of one that was there before us from the kernel's own clock, which may drift.
    """

    address: PciAddress
    xid: int
    time: float
    sequence: int


@dataclass(frozen=True, slots=True)
class LoggedKill:
    """A process that was killed for want of memory; `time` as of an Xid."""

    killed: Killed
    time: float
    sequence: int


@dataclass(frozen=True, slots=True)
class LogBatch:
    """What was read in one go.

    Attributes:
        sequence: of the last record that was read, of whatever kind; None when none was.
        lost: how often the kernel had overwritten records before they were read.
        history: the lines were there before we came.
        caught_up: there is no more of that.
    """

    xids: tuple[LoggedXid, ...] = ()
    sequence: int | None = None
    lost: int = 0
    history: bool = False
    caught_up: bool = False
    kills: tuple[LoggedKill, ...] = ()


class LogSink(Protocol):
    """Where it goes: the store."""

    def take_log(self, batch: LogBatch) -> None:
        """Take what was read."""
        ...

    def log_unreadable(self, why: str) -> None:
        """Take that there is no kernel log, or none any more."""
        ...


class KernelLog:
    """Reads in a thread of its own: if a read does not come back, only that thread waits."""

    def __init__(
        self,
        path: Path,
        sink: LogSink,
        clock: Clock,
        read: Callable[[int, int], bytes] = os.read,
    ) -> None:
        """Nothing is opened yet; `read` stands for the system's."""
        self._path = path
        self._sink = sink
        self._clock = clock
        self._read = read
        self._rest = b""
        self._oom_lines = OomLines()
        self._history = True
        self._ended = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kernel-log", daemon=True)

    def start(self) -> None:
        """Begin with the oldest record that the kernel still has."""
        self._thread.start()

    def stop(self) -> None:
        """End; a read that does not come back is left alone."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(2 * _POLL_SECONDS)

    def _run(self) -> None:
        try:
            # A path that is a pipe must not hold us up either.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._sink.log_unreadable(unreadable(self._path, error))
            return
        try:
            self._follow(descriptor)
        except OSError as error:
            self._sink.log_unreadable(unreadable(self._path, error))
        except Exception as error:
            self._sink.log_unreadable(f"{self._path} is not followed any more, a bug: {error!r}")
            raise
        finally:
            os.close(descriptor)

    def _follow(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not self._stop.is_set():
            batch, more = self._read_some(descriptor)
            caught_up = batch.history and batch.caught_up
            if batch.xids or batch.kills or batch.lost or caught_up:
                self._sink.take_log(batch)
            if more:
                # No pause in what is of before: until all of it is read no count is complete.
                self._clock.wait(self._stop, 0.0 if batch.history else _PAUSE_SECONDS)
            elif self._ended:
                # A file, or a pipe that nobody writes to: it is always ready and has nothing.
                self._clock.wait(self._stop, _POLL_SECONDS)
            else:
                poll.poll(_POLL_SECONDS * 1000)

    def _read_some(self, descriptor: int) -> tuple[LogBatch, bool]:
        """Read until there is nothing, or for one turn; the second value says that there is more."""
        found: list[LoggedXid | LoggedKill] = []
        last, lost, more = None, 0, True
        history, self._ended = self._history, False
        for _ in range(_RECORDS_AT_ONCE):
            try:
                chunk = self._read(descriptor, _READ_BYTES)
            except BlockingIOError:
                more = False
                break
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                lost += 1
                continue
            if not chunk:
                more, self._ended = False, True
                break
            last = self._take(chunk, found) or last
        self._history = history and more
        caught_up = history and not more
        xids = tuple(one for one in found if isinstance(one, LoggedXid))
        kills = tuple(one for one in found if isinstance(one, LoggedKill))
        return LogBatch(xids, last, lost, history, caught_up, kills), more

    def _take(self, chunk: bytes, found: list[LoggedXid | LoggedKill]) -> int | None:
        """Add what a chunk tells, which is one record; of a pipe it may be any part of several."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        last = None
        for line in lines:
            # What begins with a space says more about the record before it.
            header, mark, message = line.partition(b";")
            fields = header.split(b",")
            if not mark or line.startswith(b" ") or len(fields) < 3 or not _numbers(fields[:3]):
                continue
            last = int(fields[1])
            if int(fields[0]) < _FIRST_OF_PROGRAMS:
                told = self._told(message, last, int(fields[2]))
                found.extend([told] if told is not None else [])
        if len(self._rest) > _READ_BYTES:
            self._rest = b""
        return last

    def _told(
        self, message: bytes, sequence: int, microseconds: int
    ) -> LoggedXid | LoggedKill | None:
        killed = self._oom_lines.take(message)
        if killed is not None:
            return LoggedKill(killed, self._when(microseconds), sequence)
        match = _XID.match(message)
        if match is None:
            return None
        address = (int(match[1], 16), int(match[2], 16), int(match[3], 16))
        return LoggedXid(address, int(match[4]), self._when(microseconds), sequence)

    def _when(self, microseconds: int) -> float:
        now = self._clock.time()
        if self._history:
            now = min(now, now - self._clock.monotonic() + microseconds / 1e6)
        return now


def pci_address(text: str) -> PciAddress | None:
    """Read an address as NVML, nvidia-smi and the kernel write it; None when it is none."""
    match = _PCI.fullmatch(text)
    return None if match is None else (int(match[1], 16), int(match[2], 16), int(match[3], 16))


def unreadable(path: Path, error: OSError) -> str:
    """Say why a kernel log cannot be read, and what to do."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return (
            f"{path} cannot be read without CAP_SYSLOG: {_WITHOUT}; "
            "deploy/systemd/kernel-log.conf gives it"
        )
    return f"{path} cannot be read ({error.strerror}): {_WITHOUT}"


def _numbers(fields: list[bytes]) -> bool:
    return all(field.isdigit() for field in fields)
