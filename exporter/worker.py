"""The worker: a child process that alone touches the driver.

The first is forked early (`early_worker`), a replacement is `python -m exporter.worker`.
It writes frames to a pipe, ends when its standard input closes (the parent is gone) or on
SIGTERM, and never before the driver call that it is in has come back. Orders come by its standard
input: to let go of the driver and end, and to go on after all if that takes too long.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from exporter.attribution import Attributor, NameProcesses, processes_root
from exporter.backends import registry
from exporter.backends.base import BackendOptions
from exporter.clock import Clock, SystemClock
from exporter.container_names import ContainerNames
from exporter.device_sampler import Schedule
from exporter.frames import Frame, HeartbeatFrame, LogFrame, encode
from exporter.sampling import Collector

LET_GO = b"r"
KEEP = b"k"
# With the uuid of a GPU and a line end: it had an Xid error.
XID = b"x"
_END = b""
_INPUT = 0
# Of a process, which has at most 15 characters.
_NAME = "gpu-exp-worker"
# Levels of `logging`, which takes half a MiB: lines go to the parent, who has it.
_DEBUG, _WARNING = 10, 30
_HEARTBEAT_SECONDS = 1.0
# While somebody waits for the driver to be let go.
_HURRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """All that a worker must know; it reads no configuration itself.

    Attributes:
        procfs: where processes are looked at.
        container_socket: of the engine that knows the names of containers; empty asks none.
        expected: uuids of the GPUs that were there before.
    """

    backend: str
    backend_options: BackendOptions
    schedule: Schedule
    procfs: str = "/proc"
    container_socket: str = ""
    expected: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Write for the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerOptions:
        """Read what `to_json` wrote."""
        body = json.loads(text)
        return cls(
            backend=body["backend"],
            backend_options=BackendOptions(**body["backend_options"]),
            schedule=Schedule(**body["schedule"]),
            procfs=body["procfs"],
            container_socket=body["container_socket"],
            expected=tuple(body["expected"]),
        )


class FrameWriter:
    """Writes whole frames from many threads; sets `broken` when nobody reads any more."""

    def __init__(self, descriptor: int) -> None:
        self.broken = threading.Event()
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def emit(self, frame: Frame) -> None:
        """Write one frame; after the reader is gone, nothing."""
        line = encode(frame)
        with self._lock:
            if self.broken.is_set():
                return
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                self.broken.set()


def run(options: WorkerOptions, writer: FrameWriter, stop: threading.Event, clock: Clock) -> None:
    """Collect until told to stop, and return when no driver call is going on any more."""
    backend = registry.create(options.backend, options.backend_options)
    name = _namer(options, writer, clock)
    collector = Collector(
        backend, options.schedule, writer.emit, clock, name, expected=options.expected
    )
    collector.start()
    order = KEEP
    while not _finished(collector, order):
        if order != _END:
            told = _END if stop.is_set() or writer.broken.is_set() else _next_order(order)
            if told == XID:
                collector.heard_xid(_rest_of_line())
            else:
                order = told
                _OBEY[order](collector)
        running, wants = collector.running_since(), collector.wants_successor
        writer.emit(HeartbeatFrame(clock.monotonic(), running, wants))


def _namer(options: WorkerOptions, writer: FrameWriter, clock: Clock) -> NameProcesses:
    if not registry.of_this_machine(options.backend):
        # Its pids are not the ones of this machine.
        return list

    def say(sentence: str) -> None:
        writer.emit(LogFrame(_WARNING, sentence))

    socket = options.container_socket
    names = ContainerNames(Path(socket), clock, say) if socket else None
    return Attributor(processes_root(Path(options.procfs)), clock, names).name


_OBEY: Mapping[bytes, Callable[[Collector], None]] = {
    KEEP: Collector.keep,
    LET_GO: Collector.let_go,
    _END: Collector.request_stop,
}


def _finished(collector: Collector, order: bytes) -> bool:
    """Tell whether this process may end: also a bug in the collector ends it."""
    ended = collector.join(timeout=_HEARTBEAT_SECONDS if order == _END else 0)
    # A program that a backend started holds the driver too, and would outlive us.
    return ended and not (order == LET_GO and _has_children())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker: its options as JSON, and the descriptor that its frames go to."""
    options, descriptor = sys.argv[1:] if arguments is None else arguments
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with contextlib.suppress(OSError):
        # What `ps -e` and `top` show, where a forked worker has its parent's command line.
        Path("/proc/self/comm").write_text(_NAME)
    writer = FrameWriter(int(descriptor))
    writer.emit(LogFrame(_DEBUG, f"worker {os.getpid()} started"))
    run(WorkerOptions.from_json(options), writer, stop, SystemClock())
    # Who asks us to end closes our input and sends this: it may come when the handler is gone already.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0


def _next_order(last: bytes) -> bytes:
    """Wait a moment for an order; the last one when none comes, `_END` when nobody can give any."""
    timeout = _HURRY_SECONDS if last == LET_GO else _HEARTBEAT_SECONDS
    readable, _, _ = select.select([_INPUT], [], [], timeout)
    return os.read(_INPUT, 1) if readable else last


def _rest_of_line() -> str:
    """Read what comes with an order: it was written at once with it."""
    line = bytearray()
    while (byte := os.read(_INPUT, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode(errors="replace")


def _has_children() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
