"""What ``make up`` is asked to do, read from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from deploy.local.errors import StackError
from deploy.local.ports import Ports

DemoMode = Literal["auto", "approve", "observe"]
_MOST_GPUS = 16


@dataclass(frozen=True)
class Settings:
    """The choices of a person.

    Attributes:
        mode: The remediator's mode; None where the person did not say.
        ports: Where everything listens.
        gpus: How many GPUs to simulate where there is none.
        incidents: Whether to play incidents on simulated GPUs.
    """

    mode: DemoMode | None
    ports: Ports
    gpus: int
    incidents: bool

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Reads ``MODE``, ``PORTS``, ``GPUS`` and ``INCIDENTS``; empty is as good as absent.

        Raises:
            StackError: A value is not one of those allowed; the message names them.
        """
        ports = environment.get("PORTS", "")
        return cls(
            mode=_mode(environment.get("MODE", "")),
            ports=Ports.block(_whole("PORTS", ports)) if ports else Ports(),
            gpus=_gpus(environment.get("GPUS", "")),
            incidents=_yes(environment.get("INCIDENTS", "")),
        )


def _mode(text: str) -> DemoMode | None:
    if text and text not in get_args(DemoMode):
        raise StackError(f"MODE={text}: choose MODE=auto, MODE=approve or MODE=observe.")
    return cast("DemoMode", text) if text else None


def _gpus(text: str) -> int:
    count = _whole("GPUS", text) if text else 1
    if not 1 <= count <= _MOST_GPUS:
        raise StackError(f"GPUS={text}: choose a number of simulated GPUs from 1 to {_MOST_GPUS}.")
    return count


def _yes(text: str) -> bool:
    if text not in {"", "yes", "no"}:
        raise StackError(f"INCIDENTS={text}: choose INCIDENTS=yes or INCIDENTS=no.")
    return text != "no"


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise StackError(f"{name}={text}: this must be a whole number.") from None
