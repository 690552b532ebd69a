"""The worker as its parent has it: the process, its orders and its frames.

The only place of this package that starts a program, beside the backend that needs nvidia-smi.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import exporter
from exporter import allocator
from exporter.errors import FrameError
from exporter.frames import Frame, decode
from exporter.worker import KEEP, LET_GO, XID, WorkerOptions

_READ_BYTES = 1 << 16
# A worker that writes without line ends is broken; it must not fill our memory.
_LINE_LIMIT = 1 << 22


class Process(Protocol):
    """A child; `subprocess.Popen` is one.

    Attributes:
        returncode: its exit code, None while it is not known to have ended.
    """

    returncode: int | None

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        ...

    def wait(self, timeout: float) -> int | None:
        """Wait for its end; None, or `subprocess.TimeoutExpired`, when it did not come."""
        ...

    def terminate(self) -> None:
        """Send SIGTERM."""
        ...


@dataclass(frozen=True, slots=True)
class Started:
    """A process that works, or is about to.

    Attributes:
        orders: its standard input.
        frames: the descriptor that its frames come from.
    """

    process: Process
    orders: IO[bytes]
    frames: int


class WorkerProcess:
    """One running worker and the pipe that its frames come through."""

    def __init__(
        self,
        options: WorkerOptions,
        start: Callable[[WorkerOptions], Started] | None = None,
    ) -> None:
        """Start it: as a program of its own, unless `start` knows another way.

        Raises:
            OSError: the system has no process or descriptor to give.
        """
        started = (start or _execute)(options)
        self._process, self._orders = started.process, started.orders
        self._frames = started.frames
        self._rest = b""
        self._open = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def read(self, timeout: float) -> list[Frame | FrameError]:
        """Wait at most `timeout` seconds for frames; a line that is none comes as its error."""
        if not self._open:
            return []
        readable, _, _ = select.select([self._frames], [], [], timeout)
        if not readable:
            return []
        received = os.read(self._frames, _READ_BYTES)
        if not received or len(self._rest) > _LINE_LIMIT:
            self.close()
            return []
        *lines, self._rest = (self._rest + received).split(b"\n")
        return [_decoded(line) for line in lines]

    @property
    def readable(self) -> bool:
        """False once the worker has closed its end."""
        return self._open

    def exit_code(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """Ask by SIGTERM and by closing its input. Never SIGKILL: it may be inside the driver."""
        self._close_input()
        if self._process.poll() is None:
            self._process.terminate()

    def let_go(self) -> None:
        """Ask it to let go of the driver and to end; it goes on if it cannot, or if told so."""
        self._order(LET_GO)

    def keep(self) -> None:
        """Tell it to go on after all; one that has let go already ends."""
        self._order(KEEP)

    def heard_xid(self, uuid: str) -> None:
        """Tell it that a GPU had an Xid error, so that it looks at its health."""
        self._order(XID + uuid.encode() + b"\n")

    def wait(self, timeout: float) -> int | None:
        """Wait at most `timeout` seconds for its end; None when it did not come."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Stop reading; a worker that still writes notices and ends when it can."""
        self._close_input()
        if self._open:
            self._open = False
            os.close(self._frames)

    def forget(self) -> None:
        """Leave a stuck worker alone, without a warning when this object goes away."""
        self.close()
        if self._process.poll() is None:
            self._process.returncode = 0

    def _order(self, order: bytes) -> None:
        if not self._orders.closed:
            # One that has ended already needs no order.
            with contextlib.suppress(OSError):
                self._orders.write(order)
                self._orders.flush()

    def _close_input(self) -> None:
        with contextlib.suppress(OSError):
            self._orders.close()


def _execute(options: WorkerOptions) -> Started:
    frames, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            _command(options, write_end),
            stdin=subprocess.PIPE,
            # Frames have a pipe of their own: a library that prints must not break them.
            stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
            pass_fds=(write_end,),
            env=_environment(),
            # Ctrl-C in a terminal is for the parent, which then asks the worker to end.
            start_new_session=True,
        )
    except OSError:
        os.close(frames)
        raise
    finally:
        os.close(write_end)
    assert process.stdin is not None  # noqa: S101  a pipe was asked for
    return Started(process, process.stdin, frames)


def _decoded(line: bytes) -> Frame | FrameError:
    try:
        return decode(line)
    except FrameError as error:
        return error


def _command(options: WorkerOptions, write_end: int) -> list[str]:
    module = [sys.executable, "-P", "-m", "exporter.worker"]
    return [*module, options.to_json(), str(write_end)]


def _environment() -> dict[str, str]:
    """Let the worker find this package when it is not installed, and nothing in the cwd."""
    environment = allocator.ENVIRONMENT | os.environ
    root = str(Path(exporter.__file__).resolve().parent.parent)
    if not re.search(r"(site|dist)-packages$", root):
        paths = [root, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _has_descriptor(stream: object) -> bool:
    try:
        return isinstance(stream.fileno(), int)  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return False
