"""Resets through the helper, which runs as root, looks for itself, and runs nvidia-smi."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remediator.errors import ControlError
from remediator.gpu_reset.base import Check, Client
from remediator.helper.client import Helper

if TYPE_CHECKING:
    from remediator.config import GpuConfig


def create(config: GpuConfig) -> HelperReset:
    """The reset of the configuration."""
    return HelperReset(Helper(config.helper_socket, config.timeout))


class HelperReset:
    """A reset over the helper's socket."""

    name = "helper"

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def checks(self, uuid: str) -> tuple[Check, ...]:
        """Whether the helper can be asked, and what it says of the card."""
        try:
            raw = self._helper.ask("reset_checks", uuid)["checks"]
            found = tuple(Check(one["check"], one["passed"], one["answer"]) for one in raw)
        except (ControlError, LookupError, TypeError) as error:
            return (Check("helper", passed=False, answer=str(error)),)
        return (Check("helper", passed=True, answer=str(self._helper.path)), *found)

    def clients(self, uuid: str) -> tuple[Client, ...]:
        """Who has the card open, in every process of the machine."""
        raw = self._helper.ask("reset_clients", uuid)
        try:
            return tuple(Client(int(one["pid"]), str(one["name"])) for one in raw["clients"])
        except (LookupError, TypeError, ValueError):
            raise ControlError(f"the helper does not say who holds {uuid} open") from None

    def reset(self, uuid: str, timeout: float) -> bool:
        """Have this one card reset; the helper has a deadline of its own (`reset_within`)."""
        return self._helper.ask("reset", uuid, within=timeout).get("confirmed") is True

    def describe(self, uuid: str) -> str:
        """What the helper would be asked for."""
        return f"the helper at {self._helper.path}: reset {uuid}"
