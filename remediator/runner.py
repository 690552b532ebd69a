"""The one place that starts processes: argv lists, no shell, timeouts, capped output."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from remediator.clock import SystemClock
from remediator.errors import ManagerError, OutcomeUnknown

OUTPUT_CAP = 64 * 1024
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}
# What the dynamic linker and the stand-in driver of the tests need to reach a child.
_INHERITED = ("LD_LIBRARY_PATH", "NVML_STANDIN_DIR", "PYTHONPATH", "VIRTUAL_ENV", "HOME")


@dataclass(frozen=True)
class Result:
    """What a finished process left: exit status and the first 64 KiB of each stream."""

    returncode: int
    stdout: str
    stderr: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The minimal environment of a child; `extra` comes from the configuration, never an alert."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**_ENVIRONMENT, **inherited, **(extra or {})}


def run(argv: Sequence[str], *, timeout: float) -> Result:
    """Run `argv` to its end, at most `timeout` seconds.

    A process that does not end is asked to (SIGTERM to its group) and then left alone: killing
    a process that is inside the driver has frozen cards.

    Raises:
        ManagerError: the program could not be started.
        OutcomeUnknown: it did not end in time; what it did is not known.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment(),
                cwd="/",
                start_new_session=True,
                close_fds=True,
            )
        except OSError as error:
            raise ManagerError(f"cannot run {argv[0]}: {error.strerror}") from None
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                _children.append(process)
            raise OutcomeUnknown(f"{argv[0]} did not end within {timeout:g} s") from None
        return Result(process.returncode, _head(out), _head(err))


@dataclass(frozen=True)
class Beginning:
    """The beginning of what a process wrote; `cut` where it had more to write, and was ended."""

    returncode: int
    stdout: bytes
    stderr: str
    cut: bool


def read_some(argv: Sequence[str], *, timeout: float, limit: int) -> Beginning:
    """Run `argv`, which only reads, until it ends or has written `limit` bytes.

    Raises:
        ManagerError: the program could not be started.
        OutcomeUnknown: it did not end within `timeout` seconds.
    """
    with tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                env=environment(),
                cwd="/",
                start_new_session=True,
                close_fds=True,
            )
        except OSError as error:
            raise ManagerError(f"cannot run {argv[0]}: {error.strerror}") from None
        with process.stdout as pipe:  # type: ignore[union-attr]
            output, timely = _read_pipe(pipe.fileno(), timeout, limit)
        cut = len(output) >= limit
        # With its pipe closed it ends by itself as soon as it writes.
        if cut or not timely:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            _children.append(process)
            timely = False
        if not timely:
            raise OutcomeUnknown(f"{argv[0]} did not end within {timeout:g} s")
        return Beginning(process.returncode, output, _head(err), cut)


def _read_pipe(pipe: int, timeout: float, limit: int) -> tuple[bytes, bool]:
    """What comes through it, at most `limit` bytes; whether its end or that came in time."""
    clock = SystemClock()
    deadline = clock.monotonic() + timeout
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(output) < limit:
            if not selector.select(max(0.0, deadline - clock.monotonic())):
                return bytes(output), False
            data = os.read(pipe, min(OUTPUT_CAP, limit - len(output)))
            if not data:
                break
            output += data
    return bytes(output), True


def spawn_detached(
    argv: Sequence[str],
    *,
    cwd: Path,
    extra_environment: Mapping[str, str],
    log_file: Path | None,
) -> int:
    """Start `argv` as a process that outlives this one; returns its pid.

    It gets its own session and no standard input; output goes to `log_file` (appended) or nowhere.

    Raises:
        ManagerError: it could not be started.
    """
    try:
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context((log_file or Path(os.devnull)).open("ab"))
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment(extra_environment),
                cwd=cwd,
                start_new_session=True,
                close_fds=True,
            )
    except OSError as error:
        raise ManagerError(f"cannot start {argv[0]}: {error.strerror}") from None
    _children.append(process)
    return process.pid


def reap() -> None:
    """Collect those of our detached or abandoned children that have ended: none stays a zombie."""
    _children[:] = [child for child in _children if child.poll() is None]


_children: list[subprocess.Popen[bytes]] = []


def _head(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read(OUTPUT_CAP).decode("utf-8", "replace")
