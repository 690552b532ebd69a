"""The first worker: forked while this process is small, so that the two share what both need.

A new interpreter has its own copy of the standard library and of our modules; one that is forked
shares those pages until it writes to them. Replacements are started anew: by then this process has
threads, sockets and much that a worker must not inherit.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import sys
import threading
import traceback
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from exporter import worker
from exporter.clock import Clock, SystemClock
from exporter.worker import WorkerOptions
from exporter.worker_process import Started, WorkerProcess

_INPUT, _OUTPUT, _ERRORS = 0, 1, 2
_POLL_SECONDS = 0.02
# It does nothing but wait for its input, which is closed then.
_END_SECONDS = 2.0


class EarlyWorker:
    """A process that waits to be told what to do; once it has been, workers are started anew."""

    def __init__(self) -> None:
        """Fork; only the caller's thread may run, and nothing may be open that is not for both.

        Where other threads run, or the system has no process to give, there is none, and the first
        worker is started anew too. It touches no driver before `start`, and ends when this process
        does.
        """
        self._waiting: Started | None = None
        with contextlib.suppress(OSError):
            # A thread that is not copied may hold a lock that is.
            if len(list(Path("/proc/self/task").iterdir())) == 1:
                self._waiting = _fork()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Have the process that still waits end."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            _let_end(waiting)

    def start(self, options: WorkerOptions) -> WorkerProcess:
        """Start a worker.

        Raises:
            OSError: the system has no process to give, or the one that waited is gone.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return WorkerProcess(options)
        return WorkerProcess(options, partial(_told, waiting))


class ForkedProcess:
    """A child that was forked, as `subprocess.Popen` has the ones that it started."""

    def __init__(self, pid: int, clock: Clock | None = None) -> None:
        """Watch the child `pid`."""
        self.returncode: int | None = None
        self._pid = pid
        self._clock = clock or SystemClock()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            try:
                ended, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:
                # Whoever waited for all children has its exit code.
                self.returncode = 0
            else:
                if ended:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int | None:
        """Wait at most `timeout` seconds for its end; None when it did not come."""
        never = threading.Event()
        deadline = self._clock.monotonic() + timeout
        while self.poll() is None and self._clock.monotonic() < deadline:
            self._clock.wait(never, _POLL_SECONDS)
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended: its id may be another's by then."""
        if self.poll() is None:
            os.kill(self._pid, signal.SIGTERM)


def _told(waiting: Started, options: WorkerOptions) -> Started:
    try:
        waiting.orders.write(options.to_json().encode() + b"\n")
    except OSError:
        _let_end(waiting)
        raise
    return waiting


def _let_end(waiting: Started) -> None:
    waiting.orders.close()
    os.close(waiting.frames)
    waiting.process.wait(_END_SECONDS)


def _fork() -> Started:
    # What was written and not yet sent would be sent twice.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    orders, give = os.pipe()
    frames, emit = os.pipe()
    # The collector writes to every object that it looks at: a page written to is shared no more.
    gc.freeze()
    try:
        pid = os.fork()
    except OSError:
        for descriptor in (orders, give, frames, emit):
            os.close(descriptor)
        raise
    if not pid:
        _be_worker(orders, emit)
    os.close(orders)
    os.close(emit)
    return Started(ForkedProcess(pid), os.fdopen(give, "wb", buffering=0), frames)


def _be_worker(orders: int, emit: int) -> NoReturn:
    """Become what `python -m exporter.worker` is, and never return to who called."""
    code = 1
    try:
        # Ctrl-C in a terminal is for the parent, which then asks the worker to end.
        os.setsid()
        emit = _arrange(orders, emit)
        options = _options()
        code = worker.main([options, str(emit)]) if options else 0
    except BaseException:  # noqa: BLE001  the parent's own code must not run here
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
        os._exit(code)


def _arrange(orders: int, emit: int) -> int:
    """Keep input, errors and the frames' descriptor, which is returned; close all else."""
    # Where a standard stream was closed, a pipe may have its place.
    orders, emit = (fcntl.fcntl(one, fcntl.F_DUPFD, _ERRORS + 1) for one in (orders, emit))
    os.dup2(orders, _INPUT)
    with contextlib.suppress(OSError):
        # Frames have a pipe of their own: a library that prints must not break them.
        os.dup2(_ERRORS, _OUTPUT)
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) not in {_INPUT, _OUTPUT, _ERRORS, emit}:
            with contextlib.suppress(OSError):
                os.close(int(entry.name))
    return emit


def _options() -> str:
    """Wait for the options; empty when the parent is gone. What comes after them are orders."""
    line = bytearray()
    while not line.endswith(b"\n"):
        received = os.read(_INPUT, 1)
        if not received:
            return ""
        line += received
    return line.decode()
