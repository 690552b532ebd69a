"""Who a pid is: process name, systemd unit, container and pod, from /proc. Never a command line."""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from exporter.cgroups import Place, place
from exporter.clock import Clock
from exporter.container_names import ContainerNames, short
from exporter.readings import ProcessUse

_log = logging.getLogger(__name__)
NameProcesses: TypeAlias = Callable[[Sequence[ProcessUse]], list[ProcessUse]]

_COMM_LENGTH = 15  # the kernel cuts /proc/<pid>/comm there
_WHOLE_NAME = re.compile(r"[\w.+:-]{1,64}", re.ASCII)
# The kernel's own number for the namespace that the machine began with.
_FIRST_NAMESPACE = "pid:[4026531836]"
_DEVICES = ("/dev/nvidia", "/dev/nvhost", "/dev/nvgpu", "/dev/nvmap")
# One read that takes longer will not come back: a process stuck in the driver can hold the lock
# of its memory, which reading its arguments takes.
_STUCK_SECONDS = 5.0
_STUCK_LIMIT = 3
_KEPT_SECONDS = 300.0


@dataclass(slots=True)
class _Facts:
    """What is known of one process; `started` tells a pid that was used again."""

    started: bytes
    name: str
    place: Place
    cut: bool
    used_at: float


class _Batch:
    """The pids of one question, and what was found so far."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = pids
        self.found: dict[int, _Facts] = {}
        self.done = threading.Event()
        self.abandoned = False


class Attributor:
    """Names processes; what it found is kept for as long as the same process lives.

    It reads in a thread of its own, and who asks waits half a second at most: a read that hangs
    costs names, and never a reading of a GPU. A name is given only to what was looked at again for
    this very question, so that none outlives its process.
    """

    def __init__(
        self, proc: Path, clock: Clock, names: ContainerNames | None = None, patience: float = 0.5
    ) -> None:
        """Read below `proc`; without `names` a container is called by the beginning of its id."""
        self._proc = proc
        self._clock = clock
        self._names = names
        self._patience = patience
        # Else a number may be another process's here: then only what holds a card open is named.
        self._same_pids = in_first_namespace(proc)
        self._known: dict[int, _Facts] = {}
        self._lock = threading.Lock()
        self._reader: _Reader | None = None
        self._stuck = 0

    def name(self, processes: Sequence[ProcessUse]) -> list[ProcessUse]:
        """Fill in who they are; what cannot be told in time stays as the backend said it."""
        batch = _Batch([use.pid for use in processes if use.pid is not None])
        if batch.pids and self._submit(batch):
            batch.done.wait(self._patience)
            batch.abandoned = True
        found = dict(batch.found)
        return [self._named(use, found.get(use.pid or 0)) for use in processes]

    def look(self, batch: _Batch, reader: _Reader) -> None:
        """Find out; the reader's own thread calls this."""
        for pid in batch.pids:
            if batch.abandoned:
                return
            reader.began_at = self._clock.monotonic()
            facts = self._facts(pid)
            if facts is None:
                self._known.pop(pid, None)
            else:
                self._known[pid] = batch.found[pid] = facts
        # Last, because it is what may hang: by now everything else is told.
        for pid, facts in list(batch.found.items()):
            if batch.abandoned:
                return
            if facts.cut:
                facts.cut = False
                reader.began_at = self._clock.monotonic()
                facts.name = self._whole_name(pid, facts.name)
        self._prune()

    def _named(self, use: ProcessUse, facts: _Facts | None) -> ProcessUse:
        if facts is None:
            return use
        container = facts.place.container_id
        called = self._names.of(container) if self._names and container else short(container)
        return replace(
            use,
            process=use.process or facts.name,
            unit=use.unit or facts.place.unit,
            container_name=use.container_name or called,
            container_id=container,
            pod_uid=facts.place.pod_uid,
        )

    def _submit(self, batch: _Batch) -> bool:
        with self._lock:
            if self._reader is not None and self._reader.is_stuck(self._clock.monotonic()):
                if self._stuck >= _STUCK_LIMIT:
                    return False
                self._stuck += 1
                self._reader = None
            if self._reader is None:
                self._reader = _Reader(self)
            self._reader.batches.put(batch)
            return True

    def may_go_on(self, reader: _Reader) -> bool:
        """Tell a reader whether it is still the one; one that was replaced is stuck no more."""
        with self._lock:
            if self._reader is reader:
                return True
            self._stuck -= 1
            return False

    def _facts(self, pid: int) -> _Facts | None:
        comm, started = self._stat(pid)
        now = self._clock.monotonic()
        known = self._known.get(pid)
        if known is not None and known.started == started:
            known.used_at = now
            return known
        if not started or not (self._same_pids or self._holds_a_card(pid)):
            return None
        where = place(_read(self._proc / str(pid) / "cgroup").decode(errors="replace"))
        if self._stat(pid)[1] != started:
            return None
        name = _printable(comm.decode(errors="replace"))
        return _Facts(started, name, where, len(comm) >= _COMM_LENGTH, now)

    def _stat(self, pid: int) -> tuple[bytes, bytes]:
        """Return name and start time; empty when it is gone, or hidden from us."""
        head, _, tail = _read(self._proc / str(pid) / "stat").rpartition(b")")
        fields = tail.split()
        return (head.partition(b"(")[2], fields[19]) if len(fields) > 19 else (b"", b"")

    def _holds_a_card(self, pid: int) -> bool:
        try:
            with os.scandir(self._proc / str(pid) / "fd") as entries:
                return any(_target(Path(entry)).startswith(_DEVICES) for entry in entries)
        except OSError:
            return False

    def _whole_name(self, pid: int, comm: str) -> str:
        program = _read(self._proc / str(pid) / "cmdline").partition(b"\0")[0]
        whole = program.rpartition(b"/")[2].decode(errors="replace")
        # A title that a process gave itself may hold anything.
        return whole if whole.startswith(comm) and _WHOLE_NAME.fullmatch(whole) else comm

    def _prune(self) -> None:
        old = self._clock.monotonic() - _KEPT_SECONDS
        for pid, facts in list(self._known.items()):
            if facts.used_at < old:
                self._known.pop(pid, None)


class _Reader:
    """One thread that answers batches, until it is replaced because a read does not come back."""

    def __init__(self, owner: Attributor) -> None:
        self.batches: queue.SimpleQueue[_Batch] = queue.SimpleQueue()
        self.began_at: float | None = None
        self._owner = owner
        threading.Thread(target=self._run, name="attribution", daemon=True).start()

    def is_stuck(self, now: float) -> bool:
        began_at = self.began_at
        return began_at is not None and now - began_at > _STUCK_SECONDS

    def _run(self) -> None:
        while True:
            batch = self.batches.get()
            try:
                self._owner.look(batch, self)
            except Exception:  # noqa: BLE001  a bug here costs names, and must not end the thread
                _log.exception("processes cannot be named")
            finally:
                self.began_at = None
                batch.done.set()
            if not self._owner.may_go_on(self):
                return


def processes_root(procfs: Path) -> Path:
    """Return where processes are: where only some files of the host's /proc are lent, in our own."""
    return procfs if (procfs / "self").is_symlink() else Path("/proc")


def in_first_namespace(proc: Path = Path("/proc")) -> bool:
    """Tell whether a pid of the driver is the one of this machine, and `proc` shows those."""
    try:
        return _target(proc / "self" / "ns" / "pid") == _FIRST_NAMESPACE
    except OSError:
        return False


def cap(processes: Sequence[ProcessUse], limit: int) -> list[ProcessUse]:
    """Keep the `limit` biggest; the rest becomes one row without a pid, so that sums stay right."""
    ranked = sorted(processes, key=lambda one: (-(one.memory_used_bytes or 0), one.pid or 0))
    kept, rest = ranked[:limit], ranked[limit:]
    if rest:
        memory = [one.memory_used_bytes for one in rest if one.memory_used_bytes is not None]
        busy = [one.utilization_ratio for one in rest if one.utilization_ratio is not None]
        kept.append(
            ProcessUse(
                pid=None,
                process="other",
                memory_used_bytes=sum(memory) if memory else None,
                utilization_ratio=round(sum(busy), 6) if busy else None,
            )
        )
    return kept


def _target(link: Path) -> str:
    return str(link.readlink())


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
