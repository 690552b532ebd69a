"""A plain process without a manager of its own: the remediator starts it and knows it again.

It is started detached, so that it outlives the remediator, and is known by pid and start time.
A process that somebody else started is adopted when exactly one has the configured argv. That of a
`#!` script has its interpreter in front, put there by the kernel.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import psutil

from remediator import runner
from remediator.config.strict import Seconds
from remediator.errors import ConfigError, ManagerError
from remediator.managers._file_log import FileLog
from remediator.managers._kernel_kills import PROCFS, DeathWatch
from remediator.managers._server_log import ServerLog
from remediator.managers.base import Context, ProcessIdentity, ProcessStatus, identity_from
from remediator.waiting import wait_until

_LONGEST_FIRST_LINE = 1024

_LOCK = threading.Lock()
_ENDINGS: dict[int, int | None] = {}
"""The processes that were started here, and which signal ended each (0: none); None: it runs."""


@dataclass(frozen=True)
class Options:
    """`command` is an argv list, never a shell line.

    `procfs`: where the kernel's counts of kills for memory are read.
    """

    command: tuple[str, ...]
    working_directory: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=dict)
    log_file: Path | None = None
    stop_timeout: Seconds = 30.0
    procfs: Path = PROCFS


def create(options: Options, service: str, context: Context) -> PlainProcess:
    """The manager of one plain process."""
    if not options.command or not Path(options.command[0]).is_absolute():
        raise ConfigError(
            f"services.{service}.manager.command must be a list that begins with the absolute "
            "path of a program"
        )
    return PlainProcess(options, service, context)


class PlainProcess:
    """`ProcessManager` over one process."""

    kind = "process"

    def __init__(self, options: Options, service: str, context: Context) -> None:
        self._options = options
        self._context = context
        # Who was found or started, also where the store could not keep it: a second start would
        # put a second process beside the first.
        self._seen: ProcessIdentity | None = None
        self._deaths = DeathWatch(context.clock, options.procfs, _was_sigkilled)
        self.unit = service

    def status(self) -> ProcessStatus:
        """Whether the process that we know, or the only one with its argv, is alive."""
        _collect()
        found = self._look()
        return replace(found, oom_killed=self._deaths.oom_killed(found.identity))

    def _look(self) -> ProcessStatus:
        known = identity_from(self._context.load_identity())
        if known is not None and _alive(known) is not None:
            return ProcessStatus("running", known, f"pid {known.pid}")
        if self._seen is not None and _alive(self._seen) is not None:
            return self._adopted(self._seen)
        found = self._matching()
        if len(found) > 1:
            pids = ", ".join(str(one.pid) for one in found)
            raise ManagerError(f"{len(found)} processes have the configured command (pids {pids})")
        if found:
            return self._adopted(found[0])
        if known is not None:
            return ProcessStatus("exited", None, f"pid {known.pid} is gone")
        return ProcessStatus("exited", None, "no process has the configured command")

    def stop(self, identity: ProcessIdentity | None, timeout: float) -> None:
        """SIGTERM and wait; never SIGKILL, for a killed GPU client can freeze a card."""
        status = self.status()
        if status.identity is None or (identity is not None and not identity.same(status.identity)):
            return
        process = _alive(status.identity)
        if process is None:
            return
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            return
        except psutil.Error as error:
            raise ManagerError(
                f"pid {process.pid} may not be stopped by this user: {type(error).__name__}"
            ) from None
        gone = wait_until(
            self._context.clock,
            min(timeout, self._options.stop_timeout),
            lambda: _alive(status.identity) is None,
        )
        if not gone:
            raise ManagerError(f"pid {process.pid} did not end on SIGTERM; it is left alone")

    def start(self, timeout: float) -> ProcessIdentity:  # noqa: ARG002 - the contract
        """Start the process, unless it runs."""
        status = self.status()
        if status.identity is not None:
            return status.identity
        pid = runner.spawn_detached(
            self._options.command,
            cwd=self._options.working_directory,
            extra_environment=self._options.environment,
            log_file=self._options.log_file,
        )
        try:
            identity = ProcessIdentity(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            raise ManagerError("the process ended at once; see its log") from None
        with _LOCK:
            _ENDINGS[pid] = None
        self._remember(identity)
        return identity

    def describe(self, verb: Literal["start", "stop", "restart"]) -> str:
        """The argv and the signal."""
        command = " ".join(self._options.command)
        return {"start": f"run: {command}", "stop": "SIGTERM to the process of " + command}.get(
            verb, f"SIGTERM, then run: {command}"
        )

    def log(self) -> ServerLog | None:
        """What it writes, where a `log_file` keeps that."""
        return None if self._options.log_file is None else FileLog(self._options.log_file)

    def _adopted(self, identity: ProcessIdentity) -> ProcessStatus:
        self._remember(identity)
        return ProcessStatus("running", identity, f"pid {identity.pid}")

    def _remember(self, identity: ProcessIdentity) -> None:
        self._seen = identity
        self._context.save_identity(identity.to_json())

    def _matching(self) -> list[ProcessIdentity]:
        """The processes with exactly the configured argv; else those of it as a script."""
        wanted = list(self._options.command)
        interpreter = _interpreter(Path(wanted[0]))
        exact, scripts = [], []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                argv = process.cmdline()
                if argv[-len(wanted) :] != wanted or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                identity = ProcessIdentity(process.pid, process.create_time())
                if argv == wanted:
                    exact.append(identity)
                elif interpreter is not None and _stem(argv[0]) in (interpreter, "python"):
                    # Python's installers write `#!/bin/sh` where the path of python is too long.
                    scripts.append(identity)
        return exact or scripts


def _collect() -> None:
    """Reap what has ended, and keep how: a reaped child cannot be asked any more."""
    with _LOCK:
        for pid in [pid for pid, ending in _ENDINGS.items() if ending is None]:
            with contextlib.suppress(ChildProcessError):
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is not None:
                    _ENDINGS[pid] = 0 if ended.si_code == os.CLD_EXITED else ended.si_status
        runner.reap()


def _was_sigkilled(identity: ProcessIdentity) -> bool | None:
    """None for a process that somebody else started: its parent alone knows how it ended."""
    _collect()
    with _LOCK:
        ending = _ENDINGS.pop(identity.pid, None)
    return None if ending is None else ending == signal.SIGKILL


def _interpreter(program: Path) -> str | None:
    """What runs `program` where it is a `#!` script, without folder and version.

    Without this an editor or a pager on the script would be taken for the service.
    """
    try:
        with program.open("rb") as file:
            line = file.readline(_LONGEST_FIRST_LINE)
    except OSError:
        return None
    if not line.startswith(b"#!"):
        return None
    words = line[2:].decode("utf-8", "replace").split()
    return _behind_env(words) if words else None


def _behind_env(words: Sequence[str]) -> str | None:
    """The stem of the first word that is not `env`, one of its options or an assignment."""
    if _stem(words[0]) != "env":
        return _stem(words[0])
    names = (word for word in words[1:] if not word.startswith("-") and "=" not in word)
    first = next(names, None)
    return None if first is None else _stem(first)


def _stem(program: str) -> str:
    """`/usr/bin/python3.11` is `python`."""
    return re.sub(r"[\d.-]+$", "", Path(program).name)


def _alive(identity: ProcessIdentity | None) -> psutil.Process | None:
    if identity is None:
        return None
    try:
        process = psutil.Process(identity.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if not identity.same(ProcessIdentity(process.pid, process.create_time())):
            return None
    except psutil.Error:
        return None
    return process
