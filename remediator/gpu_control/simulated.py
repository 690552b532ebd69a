"""Writes to the simulator, so that a cap really cools the simulated card."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from remediator import http
from remediator.errors import ControlError, OutcomeUnknown, ServiceError, ServiceRefused
from remediator.gpu_control.base import PowerState

if TYPE_CHECKING:
    from remediator.config import GpuConfig


def create(config: GpuConfig) -> SimulatedControl:
    """The control of the configuration."""
    return SimulatedControl(config.simulator_url, config.timeout)


class SimulatedControl:
    """GPU control over the simulator's HTTP."""

    name = "simulated"

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout

    def power(self, uuid: str) -> PowerState:
        """The power limits of the simulated card, in milliwatts."""
        try:
            answer = http.call("GET", self._path(uuid), timeout=self._timeout)
            raw = answer.json()
        except ServiceError as error:
            raise ControlError(f"the simulator did not answer: {error}") from None
        if answer.status != 200:
            raise ControlError(f"the simulator says of {uuid}: {raw.get('error', answer.status)}")
        return PowerState(
            limit=round(raw["power_limit_watts"] * 1000),
            default=round(raw["power_limit_default_watts"] * 1000),
            minimum=round(raw["power_limit_min_watts"] * 1000),
            maximum=round(raw["power_limit_max_watts"] * 1000),
        )

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        """Set the simulated card's power limit."""
        body = {"watts": milliwatts / 1000}
        try:
            answer = http.call(
                "PUT", self._path(uuid) + "/power-limit", timeout=self._timeout, body=body
            )
        except ServiceRefused as error:
            raise ControlError(f"the simulator did not answer: {error}") from None
        except ServiceError as error:
            raise OutcomeUnknown(f"the simulator did not confirm: {error}") from None
        if answer.status != 200:
            raise ControlError(f"the simulator refused {milliwatts} mW (HTTP {answer.status})")

    def describe_set_power_limit(self, uuid: str, milliwatts: int) -> str:
        """The request that would be sent."""
        return f"PUT {self._path(uuid)}/power-limit {milliwatts / 1000:g} W"

    def _path(self, uuid: str) -> str:
        return f"{self._url}/api/v1/gpus/{quote(uuid, safe='')}"
