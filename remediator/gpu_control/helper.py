"""Power control through the helper, which runs as root: the remediator then needs no privilege."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remediator.errors import ControlError
from remediator.gpu_control.base import PowerState
from remediator.helper.client import Helper

if TYPE_CHECKING:
    from remediator.config import GpuConfig


def create(config: GpuConfig) -> HelperControl:
    """The control of the configuration."""
    return HelperControl(Helper(config.helper_socket, config.timeout))


class HelperControl:
    """GPU control over the helper's socket."""

    name = "helper"

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def power(self, uuid: str) -> PowerState:
        """The power limits that the driver tells the helper, in milliwatts."""
        raw = self._helper.ask("power_limit", uuid)
        try:
            return PowerState(raw["limit"], raw["default"], raw["minimum"], raw["maximum"])
        except KeyError as error:
            raise ControlError(f"the helper does not say {error} of {uuid}") from None

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        """Set the power limit."""
        self._helper.ask("set_power_limit", uuid, milliwatts)

    def describe_set_power_limit(self, uuid: str, milliwatts: int) -> str:
        """What the helper would be asked for."""
        return f"the helper at {self._helper.path}: set_power_limit {uuid} {milliwatts} mW"
