"""Docker or Podman, over the Docker Engine API (1.24 and later; Podman 4.3 and later).

A request names the container's id, never its name, so that a container that was made anew under
the same name meanwhile is not hit. A restart is a stop and a start, so that the stop is pinned.

Whether a person stopped a container cannot always be told from how it ended. With a restart policy
it can: what the engine does not start again was stopped on purpose. Without one the stop signal
and exit code 0 count as a stop, a failure does not, and SIGKILL (137: a person, a stop that took
too long, or the kernel out of memory) is `unknown`.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from remediator.clock import Clock
from remediator.config.strict import Seconds
from remediator.errors import ConfigError, ManagerError
from remediator.managers import _unix_http
from remediator.managers._container_log import ContainerLog
from remediator.managers._server_log import ServerLog
from remediator.managers.base import Context, ProcessIdentity, ProcessStatus, State
from remediator.waiting import wait_until

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_MAX_BYTES = 4 * 1024 * 1024
_MAX_SENTENCE = 300
_STATES: dict[str, State] = {
    "running": "running",
    "restarting": "starting",
    "removing": "stopping",
    "stopping": "stopping",
    "paused": "stopped",
    "dead": "failed",
}
_ENDED = ("exited", "stopped")
_NEVER_STARTED = ("created", "configured", "initialized")
_SIGKILL = 128 + signal.SIGKILL
# The engine may be about to start it again (Podman calls it exited until then).
_RESTARTS_WITHIN = 10.0


@dataclass(frozen=True)
class Options:
    """`url` is `unix:///path/to/docker.sock`, or `http://127.0.0.1:PORT` of a filtering proxy."""

    container: str
    url: str = "unix:///var/run/docker.sock"
    timeout: Seconds = 10.0
    stop_timeout: Seconds = 45.0


def create(options: Options, service: str, context: Context) -> Docker:
    """The manager of one container."""
    where = f"services.{service}.manager"
    if not _NAME.fullmatch(options.container):
        raise ConfigError(
            f"{where}.container must be a container's name, not {options.container!r}"
        )
    if not _is_engine(options.url):
        raise ConfigError(
            f"{where}.url must be unix:///path/to/docker.sock or http://127.0.0.1:PORT, "
            "without a user in it"
        )
    for name in ("timeout", "stop_timeout"):
        if getattr(options, name) <= 0:
            raise ConfigError(f"{where}.{name} must be longer than 0s")
    return Docker(options, context.clock)


def _is_engine(url: str) -> bool:
    try:
        parts = urlsplit(url)
        remote = bool(parts.hostname and parts.port)
    except ValueError:
        return False
    if parts.scheme == "unix":
        return not parts.netloc and parts.path.startswith("/")
    return parts.scheme == "http" and remote and "@" not in parts.netloc


@dataclass(frozen=True)
class _Container:
    """What the engine says of the container. Times are Unix seconds, 0 where there is none."""

    id: str
    status: str
    pid: int
    exit_code: int
    oom_killed: bool
    error: str
    started_at: float
    finished_at: float
    policy: str
    retries: int
    retries_left: bool
    stop_code: int

    @property
    def up(self) -> bool:
        return self.status not in (*_ENDED, *_NEVER_STARTED, "dead")

    @property
    def identity(self) -> ProcessIdentity | None:
        return ProcessIdentity(self.pid, self.started_at) if self.pid and self.up else None

    @property
    def killed_for_memory(self) -> bool | None:
        """The engine misses kills, but invents none; only another ending than SIGKILL denies one."""
        if self.oom_killed:
            return True
        return False if self.status in _ENDED and self.exit_code != _SIGKILL else None

    @property
    def restarts(self) -> bool:
        """Whether its policy would start it again after such an end."""
        if self.policy == "on-failure":
            return self.exit_code != 0 and self.retries_left
        return self.policy in ("always", "unless-stopped")

    def state(self, now: float) -> State:
        if self.status in _NEVER_STARTED:
            return "failed" if self.error else "stopped"
        if self.status not in _ENDED:
            return _STATES.get(self.status, "unknown")
        if self.error:
            return "failed"
        if self.restarts:
            return "stopped" if now - self.finished_at > _RESTARTS_WITHIN else "unknown"
        if self.exit_code in (0, self.stop_code):
            return "stopped"
        if self.exit_code == _SIGKILL and not self.oom_killed and self.policy != "on-failure":
            return "unknown"
        return "failed"

    @property
    def detail(self) -> str:
        said = "paused by somebody" if self.status == "paused" else self.status
        if self.status in _ENDED:
            said = f"ended with code {self.exit_code}"
            if self.restarts:
                said += f", not started again although its restart policy is {self.policy}"
            elif self.exit_code == _SIGKILL and not self.oom_killed:
                said += " (SIGKILL: by a person, by a stop that took too long, or by the kernel)"
        if self.oom_killed:
            said += ", out of memory"
        if self.retries:
            said += f", restarted {self.retries} times by the engine"
        return said + (f": {self.error[:_MAX_SENTENCE]}" if self.error else "")


class Docker:
    """`ProcessManager` over one container."""

    kind = "docker"

    def __init__(self, options: Options, clock: Clock) -> None:
        self.unit = options.container
        self._options = options
        self._clock = clock

    def status(self) -> ProcessStatus:
        """What inspecting the container says."""
        found = self._inspect(self.unit)
        state = found.state(self._clock.now())
        return ProcessStatus(state, found.identity, found.detail, found.killed_for_memory)

    def stop(self, identity: ProcessIdentity | None, timeout: float) -> None:
        """Stop the container; the engine sends SIGKILL `stop_timeout` after the stop signal."""
        found = self._inspect(self.unit)
        if not found.up:
            return
        if identity is not None and not identity.same(found.identity):
            # That process is gone; what runs, starts or is about to start is another one.
            return
        deadline = self._clock.monotonic() + timeout
        self._request("stop", found.id, timeout, f"?t={round(self._options.stop_timeout)}")

        def gone() -> bool:
            try:
                return not self._inspect(found.id).up
            except _NoContainerError:
                return True

        if not wait_until(self._clock, deadline - self._clock.monotonic(), gone):
            raise ManagerError(f"{self.unit} did not stop within {timeout:g} s")

    def start(self, timeout: float) -> ProcessIdentity:
        """Start the container, unless it runs or the engine is starting it already."""
        before = self._inspect(self.unit)
        if before.status == "paused":
            raise ManagerError(f"{self.unit} is paused by somebody: unpause it, or stop it first")
        deadline, answered = self._clock.monotonic() + timeout, True
        if before.status not in ("running", "restarting"):
            answered = self._request("start", before.id, timeout)
        found: list[ProcessIdentity] = []

        def running() -> bool:
            now = self._inspect(before.id)
            if now.status == "running" and now.identity is not None:
                found.append(now.identity)
            elif answered and not now.up and not now.restarts:
                raise ManagerError(f"{self.unit} did not stay up: {now.detail}")
            return bool(found)

        if not wait_until(self._clock, deadline - self._clock.monotonic(), running):
            detail = self._inspect(before.id).detail
            raise ManagerError(f"{self.unit} did not start within {timeout:g} s: {detail}")
        return found[0]

    def describe(self, verb: Literal["start", "stop", "restart"]) -> str:
        """The API requests."""
        stop = f"POST /containers/{self.unit}/stop?t={round(self._options.stop_timeout)}"
        start = f"POST /containers/{self.unit}/start"
        return {"start": start, "stop": stop}.get(verb, f"{stop}, then {start}")

    def log(self) -> ServerLog:
        """What the container wrote, as its engine keeps it."""
        return ContainerLog(self.unit, self._log)

    def _log(self, query: str, limit: int) -> bytes:
        path = f"/containers/{self._inspect(self.unit).id}/logs?{query}"
        connection = _unix_http.connection(self._options.url, self._options.timeout)
        try:
            connection.request("GET", path, headers={"Host": "localhost"})
            response = connection.getresponse()
            data = response.read(limit)
        except (OSError, http.client.HTTPException) as error:
            raise ManagerError(f"the engine at {self._options.url}: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            said = data.decode("utf-8", "replace").strip()[:_MAX_SENTENCE]
            raise ManagerError(f"the engine does not give the log of {self.unit}: {said}")
        return data

    def _request(
        self, verb: Literal["start", "stop"], container: str, timeout: float, query: str = ""
    ) -> bool:
        """Whether the engine answered in time; what became of it is looked up in any case."""
        try:
            status, body = self._call("POST", f"/containers/{container}/{verb}{query}", timeout)
        except TimeoutError:
            return False
        # 304: it is so already; 404 after a stop: it was removed meanwhile
        if status in (204, 304) or (status == 404 and verb == "stop"):
            return True
        raise ManagerError(f"the engine refused to {verb} {self.unit}: {body}")

    def _inspect(self, container: str) -> _Container:
        try:
            status, body = self._call("GET", f"/containers/{container}/json", self._options.timeout)
        except TimeoutError:
            raise ManagerError(
                f"the engine at {self._options.url} did not answer within "
                f"{self._options.timeout:g} s"
            ) from None
        if status == 404:
            raise _NoContainerError(f"there is no container {self.unit}: is its name right?")
        if status != 200:
            raise ManagerError(f"the engine does not say how {self.unit} is: {body}")
        try:
            return _parse(body)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ManagerError(
                f"the answer of {self._options.url} is not one of a container engine"
            ) from None

    def _call(self, method: str, path: str, timeout: float) -> tuple[int, Any]:
        """Status and JSON body, or for an error its sentence.

        Raises:
            ManagerError: the engine cannot be reached.
            TimeoutError: it did not answer in time.
        """
        connection = _unix_http.connection(self._options.url, timeout)
        try:
            connection.request(method, path, headers={"Host": "localhost"})
            response = connection.getresponse()
            text = response.read(_MAX_BYTES)
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ManagerError(f"the engine at {self._options.url}: {error}") from None
        finally:
            connection.close()
        try:
            body = json.loads(text) if text else None
        except ValueError:
            body = text.decode("utf-8", "replace")
        if response.status >= 400:
            said = body.get("message") if isinstance(body, dict) else body
            body = f"HTTP {response.status}, {str(said or 'no reason given')[:_MAX_SENTENCE]}"
        return response.status, body


class _NoContainerError(ManagerError):
    pass


def _parse(raw: Mapping[str, Any]) -> _Container:
    state, config = raw["State"], raw.get("Config") or {}
    policy = (raw.get("HostConfig") or {}).get("RestartPolicy") or {}
    retries, most = int(raw.get("RestartCount") or 0), int(policy.get("MaximumRetryCount") or 0)
    return _Container(
        id=str(raw["Id"]),
        status=str(state["Status"]),
        pid=int(state.get("Pid") or 0),
        exit_code=int(state.get("ExitCode") or 0),
        oom_killed=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
        started_at=_unix(state.get("StartedAt")),
        finished_at=_unix(state.get("FinishedAt")),
        policy=str(policy.get("Name") or "no"),
        retries=retries,
        retries_left=not most or retries < most,
        stop_code=128 + _signal(config.get("StopSignal")),
    )


def _unix(text: Any) -> float:
    """Unix seconds of an RFC 3339 time; the engine's year 1 means never."""
    moment = datetime.fromisoformat(text) if text else None
    return moment.timestamp() if moment is not None and moment.year > 1 else 0.0


def _signal(name: Any) -> int:
    text = str(name or "SIGTERM").upper()
    if text.isdigit():
        return int(text)
    try:
        return int(signal.Signals["SIG" + text.removeprefix("SIG")])
    except KeyError:
        return int(signal.SIGTERM)
