"""systemd, through `systemctl` (facts: systemd 239 to 257).

Never `daemon-reload`: with the systemd cgroup driver it takes the cards away from containers.
Never `reset-failed` either: a start limit that was hit is a question for a person.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remediator import runner
from remediator.config.strict import Seconds
from remediator.errors import ConfigError, ManagerError, OutcomeUnknown
from remediator.managers._journal import Journal
from remediator.managers._server_log import ServerLog
from remediator.managers.base import Context, ProcessIdentity, ProcessStatus, State
from remediator.waiting import wait_until

_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@\\-]{0,246}\.service")
_PLACES = (Path("/usr/bin/systemctl"), Path("/bin/systemctl"))
_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "Job",
    "MainPID",
    "NRestarts",
    "ConditionResult",
    "ConditionTimestampMonotonic",
    "ExecMainCode",
    "ExecMainStatus",
    "ExecMainStartTimestampMonotonic",
    "ExecMainExitTimestampMonotonic",
    "ActiveExitTimestampMonotonic",
)
_DOWN = ("inactive", "failed")
# The results that a stop on request can have: the others are systemd's or the kernel's own doing.
_OF_A_STOP = ("success", "exit-code", "signal", "core-dump", "timeout")
_START_LIMIT = "start-limit-hit"
_MAX_SENTENCE = 300


@dataclass(frozen=True)
class Options:
    """`systemctl`: its absolute path; without one it is looked for in /usr/bin and /bin."""

    unit: str
    systemctl: Path | None = None
    timeout: Seconds = 10.0


def create(options: Options, service: str, context: Context) -> Systemd:
    """The manager of one systemd service unit."""
    where = f"services.{service}.manager"
    if not _UNIT.fullmatch(options.unit) or "@." in options.unit:
        raise ConfigError(
            f"{where}.unit must be the full name of one service, like ollama.service, "
            f"not {options.unit!r}"
        )
    if options.timeout <= 0:
        raise ConfigError(f"{where}.timeout must be longer than 0s")
    return Systemd(options.unit, _systemctl(options.systemctl, where), options.timeout, context)


def _systemctl(configured: Path | None, where: str) -> Path:
    places = _PLACES if configured is None else (configured,)
    for place in places:
        if place.is_absolute() and place.is_file():
            return place
    raise ConfigError(
        f"there is no systemctl at {' or '.join(map(str, places))}: set {where}.systemctl to its "
        "absolute path"
    )


@dataclass(frozen=True)
class _Unit:
    """What `systemctl show` says of the unit. Times are microseconds of the monotonic clock."""

    properties: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.properties.get(name, "")

    def number(self, name: str) -> int:
        text = self[name]
        return int(text) if text.isdigit() else 0

    @property
    def settled(self) -> bool:
        """Whether no job waits or works."""
        return not self.number("Job")

    @property
    def down(self) -> bool:
        return self["ActiveState"] in _DOWN

    @property
    def stopped_on_request(self) -> bool:
        """Whether the unit began to stop before its process ended: the process did not just end."""
        began = self.number("ActiveExitTimestampMonotonic")
        started = self.number("ExecMainStartTimestampMonotonic")
        ended = self.number("ExecMainExitTimestampMonotonic")
        return self["Result"] in _OF_A_STOP and 0 < started <= began < ended

    @property
    def state(self) -> State:
        match self["ActiveState"], self["Result"]:
            case "active" | "reloading" | "refreshing", _:
                if self.number("MainPID"):
                    return "running"
                return "exited" if self["SubState"] == "exited" else "unknown"
            case "activating", _:
                return "starting"
            case "deactivating", _:
                return "stopping"
            case "inactive" | "failed", _ if self.stopped_on_request:
                return "stopped"
            case "inactive", "success":
                return "exited" if self._ended_by_itself else "stopped"
            case "inactive" | "failed", _:
                return "failed"
        return "unknown"

    @property
    def oom_killed(self) -> bool | None:
        """By its result, which a start forgets; an older systemd calls such a kill `signal`."""
        if self["Result"] == "oom-kill":
            return True
        if not self.down or not self.number("ExecMainExitTimestampMonotonic"):
            return None
        sigkilled = self["Result"] == "signal" and self["ExecMainStatus"] == "9"
        return None if sigkilled else False

    @property
    def _ended_by_itself(self) -> bool:
        ended = self.number("ExecMainExitTimestampMonotonic")
        return 0 < ended <= self.number("ActiveExitTimestampMonotonic")

    @property
    def detail(self) -> str:
        said = f"{self['ActiveState']} ({self['SubState']})"
        if self["LoadState"] == "masked":
            said += ", masked"
        if self["Result"] not in ("", "success"):
            said += f", result {self['Result']}"
        if self.down and self.number("ExecMainExitTimestampMonotonic"):
            said += f", {_ending(self.number('ExecMainCode'), self['ExecMainStatus'])}"
        if self.number("NRestarts"):
            said += f", restarted {self['NRestarts']} times by systemd"
        return said


def _ending(code: int, status: str) -> str:
    # CLD_EXITED is 1, CLD_KILLED 2, CLD_DUMPED 3
    return f"exit status {status}" if code == 1 else f"ended by signal {status}"


class Systemd:
    """`ProcessManager` over one service unit of the system's systemd."""

    kind = "systemd"

    def __init__(self, unit: str, systemctl: Path, timeout: float, context: Context) -> None:
        self.unit = unit
        self._systemctl = str(systemctl)
        self._timeout = timeout
        self._clock = context.clock
        # Fixed once, so that a step of the wall clock does not rename a process.
        self._epoch = context.clock.now() - context.clock.monotonic()

    def status(self) -> ProcessStatus:
        """What `systemctl show` says."""
        return self._status(self._show())

    def stop(self, identity: ProcessIdentity | None, timeout: float) -> None:
        """Stop the unit and wait until it is down; systemd sends SIGKILL after `TimeoutStopSec`."""
        unit = self._show()
        if unit.down and unit.settled:
            return
        if identity is not None and not identity.same(self._status(unit).identity):
            # That process is gone; what runs, starts or is about to start is another one.
            return
        self._request("stop")

        def is_down() -> bool:
            now = self._show()
            return now.down and now.settled

        if not wait_until(self._clock, timeout, is_down):
            raise ManagerError(
                f"systemd did not stop {self.unit} within {timeout:g} s: {self._show().detail}"
            )

    def start(self, timeout: float) -> ProcessIdentity:
        """Start the unit, unless it runs or systemd is starting it already, and wait for it."""
        before = self._show()
        if before.state not in ("running", "starting"):
            self._request("start")
        found: list[ProcessIdentity] = []

        def running() -> bool:
            unit = self._show()
            status = self._status(unit)
            if status.running and status.identity is not None and unit.settled:
                found.append(status.identity)
            elif unit.settled and status.state not in ("starting", "stopping", "running"):
                raise ManagerError(self._why_not(unit, before))
            return bool(found)

        if not wait_until(self._clock, timeout, running):
            raise ManagerError(
                f"systemd did not start {self.unit} within {timeout:g} s: {self._show().detail}"
            )
        return found[0]

    def describe(self, verb: Literal["start", "stop", "restart"]) -> str:
        """The argv; a restart is a stop and a start, so that the stop is pinned to one process."""
        verbs = ("stop", "start") if verb == "restart" else (verb,)
        return ", then ".join(" ".join(self._argv(one)) for one in verbs)

    def log(self) -> ServerLog | None:
        """What the unit's processes wrote to the journal; journalctl is beside systemctl."""
        journalctl = Path(self._systemctl).with_name("journalctl")
        return Journal(self.unit, journalctl, self._timeout) if journalctl.is_file() else None

    def _argv(self, verb: str) -> list[str]:
        # Without --no-block a slow stop would outlive our own deadline inside systemctl.
        return [self._systemctl, "--no-ask-password", "--no-block", verb, self.unit]

    def _request(self, verb: Literal["start", "stop"]) -> None:
        result = runner.run(self._argv(verb), timeout=self._timeout)
        if result.returncode != 0:
            raise ManagerError(
                f"systemd refused to {verb} {self.unit}: {_first_line(result)}{_advice(result)}"
            )

    def _show(self) -> _Unit:
        argv = [self._systemctl, "--no-ask-password", "--no-pager", "show"]
        argv += ["-p", ",".join(_PROPERTIES), self.unit]
        try:
            result = runner.run(argv, timeout=self._timeout)
        except OutcomeUnknown as error:
            raise ManagerError(f"systemd does not answer: {error}") from None
        if result.returncode != 0:
            raise ManagerError(f"systemctl show {self.unit}: {_first_line(result)}")
        lines = (line.partition("=") for line in result.stdout.splitlines())
        unit = _Unit({name: value for name, _, value in lines})
        if not unit["ActiveState"]:
            raise ManagerError(f"systemctl show {self.unit} did not say whether it is active")
        if unit["LoadState"] == "not-found" and unit.down:
            raise ManagerError(f"systemd knows no unit {self.unit}: is its name right?")
        return unit

    def _status(self, unit: _Unit) -> ProcessStatus:
        pid = unit.number("MainPID")
        started = unit.number("ExecMainStartTimestampMonotonic")
        identity = ProcessIdentity(pid, self._epoch + started / 1e6) if pid and started else None
        return ProcessStatus(unit.state, identity, unit.detail, unit.oom_killed)

    def _why_not(self, unit: _Unit, before: _Unit) -> str:
        if unit["Result"] == _START_LIMIT:
            return (
                f"systemd starts {self.unit} no more, it was started too often ({_START_LIMIT}): "
                f"find out why it ends, then run `systemctl reset-failed {self.unit}` and start it"
            )
        if unit["ActiveState"] == "active":
            return (
                f"{self.unit} is active but systemd knows no main process of it: give it "
                "Type=simple, exec or notify, or a PIDFile="
            )
        if unit["ConditionResult"] == "no" and unit.number("ConditionTimestampMonotonic"):
            return f"systemd skipped the start of {self.unit}: a Condition of the unit is not met"
        started = "ExecMainStartTimestampMonotonic"
        if unit[started] == before[started]:
            # systemd keeps an older failure as the result, so a start limit may not be named.
            return (
                f"systemd did not start the process of {self.unit} ({unit.detail}): it was started "
                f"too often ({_START_LIMIT}), a unit that it needs failed, or its ExecStartPre= "
                f"did; see `journalctl -u {self.unit}`"
            )
        return f"{self.unit} did not stay up: {unit.detail}"


def _first_line(result: runner.Result) -> str:
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    return lines[0][:_MAX_SENTENCE] if lines else f"exit status {result.returncode}"


def _advice(result: runner.Result) -> str:
    said = result.stderr.lower()
    if "access denied" in said or "authentication" in said or "not permitted" in said:
        return "; the remediator's user needs a polkit rule for this unit and verb"
    return ""
