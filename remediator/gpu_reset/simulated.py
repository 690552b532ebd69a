"""Resets a card of the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from remediator import http
from remediator.errors import ControlError, OutcomeUnknown, ServiceError, ServiceRefused
from remediator.gpu_reset.base import Check, Client

if TYPE_CHECKING:
    from remediator.config import GpuConfig


def create(config: GpuConfig) -> SimulatedReset:
    """The reset of the configuration."""
    return SimulatedReset(config.simulator_url, config.timeout)


class SimulatedReset:
    """A reset over the simulator's HTTP."""

    name = "simulated"

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout

    def checks(self, uuid: str) -> tuple[Check, ...]:
        """Whether the simulator knows the card."""
        try:
            self._card(uuid)
        except ControlError as error:
            return (Check("control", passed=False, answer=str(error)),)
        return (Check("control", passed=True, answer=f"the simulator at {self._url}"),)

    def clients(self, uuid: str) -> tuple[Client, ...]:
        """The processes that the simulator has on the card."""
        found = self._card(uuid).get("processes") or ()
        return tuple(Client(int(one["pid"]), str(one.get("name", ""))) for one in found)

    def reset(self, uuid: str, timeout: float) -> bool:
        """Reset the simulated card."""
        try:
            answer = http.call("POST", self._path(uuid) + "/reset", timeout=timeout)
            raw = answer.json()
        except ServiceRefused as error:
            raise ControlError(f"the simulator did not answer: {error}") from None
        except ServiceError as error:
            raise OutcomeUnknown(f"the simulator did not confirm: {error}") from None
        if answer.status != 200:
            said = raw.get("error") if isinstance(raw, dict) else None
            raise ControlError(f"the simulator refused: {said or f'HTTP {answer.status}'}")
        return isinstance(raw, dict) and raw.get("reset") is True

    def describe(self, uuid: str) -> str:
        """The request that would be sent."""
        return f"POST {self._path(uuid)}/reset"

    def _card(self, uuid: str) -> dict[str, Any]:
        try:
            answer = http.call("GET", self._path(uuid), timeout=self._timeout)
            raw = answer.json()
        except ServiceError as error:
            raise ControlError(f"the simulator did not answer: {error}") from None
        if answer.status != 200 or not isinstance(raw, dict):
            said = raw.get("error") if isinstance(raw, dict) else None
            raise ControlError(f"the simulator says of {uuid}: {said or answer.status}")
        return raw

    def _path(self, uuid: str) -> str:
        return f"{self._url}/api/v1/gpus/{quote(uuid, safe='')}"
