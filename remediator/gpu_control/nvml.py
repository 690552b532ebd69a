"""NVML power control, each call in a process of its own.

The process holds no NVML handle afterwards (a handle blocks a reset and goes stale after one),
and a driver call that never returns costs one process, not the remediator.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from remediator import runner
from remediator.errors import ControlError, ManagerError, OutcomeUnknown
from remediator.gpu_control.base import PowerState

if TYPE_CHECKING:
    from remediator.config import GpuConfig

_MODULE = "remediator.gpu_control.nvml_call"


def create(config: GpuConfig) -> NvmlControl:
    """The control of the configuration."""
    return NvmlControl(config.timeout)


class NvmlControl:
    """GPU control through `python -m remediator.gpu_control.nvml_call`."""

    name = "nvml"

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def power(self, uuid: str) -> PowerState:
        """The power limits the driver reports, in milliwatts."""
        try:
            raw = self._call("power", uuid)
        except OutcomeUnknown as error:
            raise ControlError(str(error)) from None
        return PowerState(raw["limit"], raw["default"], raw["minimum"], raw["maximum"])

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        """Set the power management limit."""
        self._call("set-power-limit", uuid, str(milliwatts))

    def uuids(self) -> tuple[str, ...]:
        """The cards that the driver reports.

        Raises:
            ControlError: it did not answer.
        """
        try:
            raw = self._call("list")
        except OutcomeUnknown as error:
            raise ControlError(str(error)) from None
        return tuple(raw["uuids"])

    def describe_set_power_limit(self, uuid: str, milliwatts: int) -> str:
        """The argv that would be run."""
        return " ".join(self._argv("set-power-limit", uuid, str(milliwatts)))

    @staticmethod
    def _argv(verb: str, *arguments: str) -> list[str]:
        # -P (safe path): the child never imports from a directory that somebody else chose.
        return [sys.executable, "-P", "-m", _MODULE, verb, *arguments]

    def _call(self, verb: str, *arguments: str) -> Any:
        try:
            result = runner.run(self._argv(verb, *arguments), timeout=self._timeout)
        except ManagerError as error:
            raise ControlError(str(error)) from None
        try:
            answer = json.loads(result.stdout)
        except ValueError:
            raise OutcomeUnknown(
                f"the driver call ended with status {result.returncode} and said nothing"
            ) from None
        if "error" in answer:
            raise ControlError(str(answer["error"]))
        return answer
