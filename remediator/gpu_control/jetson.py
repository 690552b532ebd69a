"""Throttling a Jetson's own GPU by the `max_freq` of its devfreq device, in hertz, and its fan.

NVML sets no power limit there. Not nvpmodel, which outlives a reboot and may ask for one, and not
jetson_clocks, which pins clocks up. What a card really runs at is the lowest of this limit and
those of nvpmodel and of the firmware. The fan is left to nvfancontrol wherever that runs: what is
written beside it holds for a second.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from remediator import runner
from remediator.errors import ControlError, ManagerError, OutcomeUnknown
from remediator.gpu_control.base import FAN, FrequencyState, GpuControl, Knob, PowerState
from remediator.helper.client import Helper

if TYPE_CHECKING:
    from remediator.config import GpuConfig

_MODULE = "remediator.gpu_control.jetson_call"
_UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{2,63}")


# What the helper calls the verbs of `jetson_call`.
_OF_THE_HELPER = {
    "read": "clock",
    "write": "set_clock",
    "fan": "fan",
    "fan-write": "set_fan",
}


def create(config: GpuConfig) -> JetsonControl:
    """The control of the configuration: by itself, or through the helper where its socket is named."""
    socket = config.helper_socket
    return JetsonControl(config.timeout, helper=Helper(socket, config.timeout) if socket else None)


@dataclass(frozen=True)
class FanState(PowerState):
    """Where the fan stands and between what it may stand, in thousandths of a step.

    `owner` is the daemon that runs it, empty where none does.
    """

    knob: ClassVar[Knob] = FAN

    owner: str = ""


class JetsonControl:
    """GPU control through `python -m remediator.gpu_control.jetson_call`.

    Each call is a process of its own: a kernel call that never returns costs that one only. With a
    `helper` it is the helper that makes the call.
    """

    name = "jetson"

    def __init__(
        self, timeout: float, root: Path = Path("/"), *, helper: Helper | None = None
    ) -> None:
        """`root` is where `sys/class/devfreq` is; a test gives a recorded tree."""
        self._timeout = timeout
        self._root = root
        self._helper = helper

    def power(self, uuid: str) -> FrequencyState:
        """Where the highest clock of the only GPU stands, and its steps, in hertz."""
        try:
            raw = self.call(uuid, "read")
        except OutcomeUnknown as error:
            raise ControlError(str(error)) from None
        steps = tuple(raw["steps"])
        return FrequencyState(raw["limit"], steps[-1], steps[0], steps[-1], steps)

    def set_power_limit(self, uuid: str, hertz: int) -> None:
        """Set the highest clock."""
        self.call(uuid, "write", str(hertz))

    def describe_set_power_limit(self, uuid: str, hertz: int) -> str:
        """The argv that would be run or what the helper would be asked for, and for which card."""
        if self._helper is not None:
            return f"the helper at {self._helper.path}: set_clock {uuid} {hertz} Hz"
        return f"{' '.join(self._argv('write', str(hertz)))} (for {uuid})"

    def _argv(self, verb: str, *arguments: str) -> list[str]:
        # -P (safe path): the child never imports from a directory that somebody else chose.
        return [sys.executable, "-P", "-m", _MODULE, str(self._root), verb, *arguments]

    def call(self, uuid: str, verb: str, *arguments: str) -> Any:
        """One call of `jetson_call`; what it printed.

        Raises:
            ControlError: it was refused; nothing was changed.
            OutcomeUnknown: it is not known what it did.
        """
        # A Jetson has one GPU, so its uuid chooses nothing here; text that is none is refused.
        if not _UUID.fullmatch(uuid):
            raise ControlError(f"{uuid!r} is not a GPU uuid")
        if self._helper is not None:
            return self._helper.ask(_OF_THE_HELPER[verb], uuid, *map(int, arguments))
        try:
            result = runner.run(self._argv(verb, *arguments), timeout=self._timeout)
        except ManagerError as error:
            raise ControlError(str(error)) from None
        try:
            answer = json.loads(result.stdout)
        except ValueError:
            raise OutcomeUnknown(
                f"the kernel call ended with status {result.returncode} and said nothing"
            ) from None
        if "error" in answer:
            raise ControlError(str(answer["error"]))
        return answer


class JetsonFan:
    """The fan by the same contract as the clock: read, write, read back."""

    name = JetsonControl.name

    def __init__(self, control: JetsonControl) -> None:
        self._control = control

    def power(self, uuid: str) -> FanState:
        """Where the fan stands.

        Raises:
            ControlError: there is none, or it cannot be read; the message says which.
        """
        try:
            raw = self._control.call(uuid, "fan")
        except OutcomeUnknown as error:
            raise ControlError(str(error)) from None
        full = 255 * FAN.per_unit
        return FanState(raw["duty"] * FAN.per_unit, full, 0, full, raw["owner"])

    def set_power_limit(self, uuid: str, value: int) -> None:
        """Set the fan's duty."""
        self._control.call(uuid, "fan-write", str(round(value / FAN.per_unit)))

    def describe_set_power_limit(self, uuid: str, value: int) -> str:
        """What would be set, and for which card."""
        return f"set the fan of {uuid} to {FAN.say(value)}"


def fan_of(control: GpuControl) -> JetsonFan | None:
    """The fan that a control has beside its knob; None where it has none."""
    return JetsonFan(control) if isinstance(control, JetsonControl) else None


def control_of(control: GpuControl, knob: str) -> GpuControl:
    """What turns the knob that a lease names: the control itself, or its fan."""
    fan = fan_of(control) if knob == FAN.name else None
    return control if fan is None else fan
