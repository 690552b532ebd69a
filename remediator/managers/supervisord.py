"""supervisord, over its XML-RPC on a Unix socket or loopback HTTP (facts: supervisor 4.3).

Never `supervisor.restart()`: that restarts the daemon with everything in it.
"""

from __future__ import annotations

import http.client
import re
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from xml.parsers.expat import ExpatError

from remediator.config.strict import Seconds
from remediator.errors import ConfigError, ManagerError
from remediator.managers import _unix_http
from remediator.managers._kernel_kills import PROCFS, DeathWatch
from remediator.managers._server_log import ServerLog
from remediator.managers._supervisor_log import SupervisorLog
from remediator.managers.base import Context, ProcessIdentity, ProcessStatus, State
from remediator.waiting import wait_until

_PROCESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(:[A-Za-z0-9][A-Za-z0-9_.-]*)?")
_PORT = 9001
_LOG_TAIL = 64 * 1024
_FAULT_NOT_RUNNING = 70
_FAULT_ALREADY_STARTED = 60
_FAULTS_OF_A_FILE = (20, 30)  # NO_FILE, FAILED
# What a program writes may hold bytes that XML may not; each is one byte, so that lengths stay.
_NOT_XML = bytes(one if one >= 0x20 or one in b"\t\n" else 0x20 for one in range(256))
_MAX_ANSWER = 4 * 1024 * 1024
# process states of supervisor/states.py
_STATES: dict[int, State] = {
    0: "stopped",
    10: "starting",
    20: "running",
    30: "starting",  # BACKOFF: supervisord is about to try again
    40: "stopping",
    100: "exited",
    200: "failed",
    1000: "unknown",
}


@dataclass(frozen=True)
class Options:
    """`url` is `unix:///path/to/supervisor.sock` or `http://127.0.0.1:PORT`.

    `procfs`: where the kernel's counts of kills for memory are read.
    """

    url: str
    process: str
    timeout: Seconds = 10.0
    procfs: Path = PROCFS


def create(options: Options, service: str, context: Context) -> Supervisord:
    """The manager of one supervisord program."""
    where = f"services.{service}.manager"
    parts = urlsplit(options.url)
    if "@" in parts.netloc:
        # Not quoted in the message: what stands there is a password.
        raise ConfigError(
            f"{where}.url must not hold a user or password: let supervisord listen on a Unix socket "
            "that only its user can open"
        )
    if parts.scheme not in ("unix", "http"):
        raise ConfigError(f"{where}.url must begin with unix:// or http://, not {options.url!r}")
    if not _PROCESS.fullmatch(options.process):
        raise ConfigError(f"{where}.process must be a program's name or group:name")
    return Supervisord(options, context)


class Supervisord:
    """`ProcessManager` over supervisord."""

    kind = "supervisord"

    def __init__(self, options: Options, context: Context) -> None:
        self._options = options
        self._context = context
        self._deaths = DeathWatch(context.clock, options.procfs, self._was_sigkilled)
        self.unit = options.process

    def status(self) -> ProcessStatus:
        """What `supervisor.getProcessInfo` says."""
        info = self._call("getProcessInfo", self.unit)
        state = _STATES.get(int(info["state"]), "unknown")
        pid = int(info.get("pid") or 0)
        identity = ProcessIdentity(pid, float(info["start"])) if pid else None
        detail = str(info.get("spawnerr") or info.get("description") or info["statename"])
        killed = self._deaths.oom_killed(identity)
        return ProcessStatus(state, identity, f"{info['statename']} ({detail})", killed)

    def stop(self, identity: ProcessIdentity | None, timeout: float) -> None:
        """`supervisor.stopProcess`, then wait until it says so."""
        status = self.status()
        if status.state in ("stopped", "exited", "failed"):
            return
        if identity is not None and not identity.same(status.identity):
            # That process is gone; what runs, starts or is about to start is another one.
            return
        try:
            self._call("stopProcess", self.unit, False)
        except _FaultError as error:
            if error.code != _FAULT_NOT_RUNNING:
                raise
        if not wait_until(
            self._context.clock,
            timeout,
            lambda: self.status().state in ("stopped", "exited", "failed"),
        ):
            raise ManagerError(f"supervisord could not stop {self.unit} within {timeout:g} s")

    def start(self, timeout: float) -> ProcessIdentity:
        """`supervisor.startProcess`, then wait until it runs."""
        status = self.status()
        if status.state not in ("running", "starting"):
            try:
                self._call("startProcess", self.unit, False)
            except _FaultError as error:
                if error.code != _FAULT_ALREADY_STARTED:
                    raise
        found: list[ProcessIdentity] = []

        def running() -> bool:
            now = self.status()
            if now.state == "failed":
                raise ManagerError(f"supervisord gave up on {self.unit}: {now.detail}")
            if now.running and now.identity is not None:
                found.append(now.identity)
            return bool(found)

        if not wait_until(self._context.clock, timeout, running):
            raise ManagerError(f"supervisord did not start {self.unit} within {timeout:g} s")
        return found[0]

    def describe(self, verb: Literal["start", "stop", "restart"]) -> str:
        """The XML-RPC calls."""
        calls = {"start": ["startProcess"], "stop": ["stopProcess"]}.get(
            verb, ["stopProcess", "startProcess"]
        )
        return ", ".join(f"supervisor.{call}({self.unit})" for call in calls)

    def log(self) -> ServerLog:
        """What the program writes to its standard output and standard error."""
        return SupervisorLog(self.unit, self._log_call)

    def _log_call(self, method: str, *arguments: Any) -> Any | None:
        try:
            return self._call(method, *arguments)
        except _FaultError as error:
            if error.code in _FAULTS_OF_A_FILE:
                return None
            raise

    def _was_sigkilled(self, identity: ProcessIdentity) -> bool | None:
        """What supervisord's own log says ended this process: its XML-RPC does not name a signal."""
        try:
            log = str(self._call("readLog", -_LOG_TAIL, 0))
        except ManagerError:
            return None
        name = self.unit.rpartition(":")[2]
        _, spawned, after = log.rpartition(f"spawned: '{name}' with pid {identity.pid}\n")
        ended = re.search(rf"(exited|stopped): {re.escape(name)} \((.*)\)", after)
        if not spawned or ended is None:
            return None
        # A program that it stops itself, it kills when `stopwaitsecs` is over.
        return ended[1] == "exited" and ended[2].startswith("terminated by SIGKILL")

    def _call(self, method: str, *arguments: Any) -> Any:
        transport = _Transport(self._options.url, self._options.timeout)
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1/RPC2", transport=transport)
        try:
            with proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise _FaultError(fault.faultCode, fault.faultString) from None
        except (OSError, http.client.HTTPException, xmlrpc.client.Error, ExpatError) as error:
            raise ManagerError(f"supervisord at {self._options.url}: {error}") from None


class _FaultError(ManagerError):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"supervisord refused: {text}")
        self.code = code


class _Transport(xmlrpc.client.Transport):
    def __init__(self, url: str, timeout: float) -> None:
        super().__init__()
        self._url, self._timeout = url, timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _unix_http.connection(self._url, self._timeout, _PORT)
        # Where the base class keeps it, so that closing the proxy closes the socket.
        self._connection = host, connection
        return connection

    def parse_response(self, response: Any) -> Any:
        """The answer, with blanks for the control characters that a log may hold."""
        parser, target = self.getparser()
        parser.feed(response.read(_MAX_ANSWER).translate(_NOT_XML))
        parser.close()
        return target.close()
