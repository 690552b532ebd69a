"""Resets a card by `nvidia-smi --gpu-reset`: NVML has no call for it.

It needs root, and nobody may hold the card open: no application, no monitor, no second nvidia-smi.
The persistence daemon is the exception, nvidia-smi asks that one itself. NVIDIA does not promise that a
reset works: the caller looks whether it did.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from remediator.errors import ControlError, OutcomeUnknown
from remediator.gpu_reset import device_files
from remediator.gpu_reset.base import Check, Client
from remediator.nvidia_smi import NvidiaSmi, sentence, words

if TYPE_CHECKING:
    from remediator.config import GpuConfig

_FIELDS = ("name", "mig.mode.current", "display_active")
# With these nothing was reset.
_REFUSALS = (2, 3, 4, 6, 9, 12, 13, 15)
# What it says with 255 when it has not begun.
_NOT_BEGUN = ("in use by", "primary gpu", "not supported", "insufficient permission")
_CONFIRMED = "successfully reset"


def create(config: GpuConfig) -> NvidiaSmiReset:
    """The reset of the configuration.

    Raises:
        ConfigError: `gpus.nvidia_smi` is no absolute path.
    """
    return NvidiaSmiReset(
        config.nvidia_smi, config.timeout, allow_consumer=config.reset_allow_consumer
    )


class NvidiaSmiReset:
    """A reset by nvidia-smi, with every precondition that can be told."""

    name = "nvidia-smi"

    def __init__(
        self,
        program: Path,
        timeout: float,
        *,
        allow_consumer: bool = False,
        proc: Path = Path("/proc"),
        is_root: Callable[[], bool] = lambda: os.geteuid() == 0,
    ) -> None:
        """`timeout` in seconds for a query; `allow_consumer` lets GeForce cards be reset.

        Raises:
            ConfigError: `program` is no absolute path.
        """
        self._smi = NvidiaSmi(program)
        self._timeout = timeout
        self._allow_consumer = allow_consumer
        self._proc = proc
        self._is_root = is_root

    def checks(self, uuid: str) -> tuple[Check, ...]:
        """The program, root, and what kind of card it is."""
        root = self._is_root()
        first = (
            Check("root", root, "this runs as root" if root else "a reset needs root"),
            self._program(),
        )
        if not all(check.passed for check in first):
            return first
        try:
            name, mig, display = self._smi.query(uuid, _FIELDS, timeout=self._timeout)
        except ControlError as error:
            return (*first, Check("answers", passed=False, answer=str(error)))
        consumer = "geforce" in name.lower() and not self._allow_consumer
        return (
            *first,
            Check(
                "model",
                passed=not consumer,
                answer=f"{name}: such boards often cannot be reset; gpus.reset_allow_consumer allows it"
                if consumer
                else name,
            ),
            _off("mig", mig, "its MIG instances would be lost"),
            _off("display", display, "a display hangs on it"),
        )

    def _program(self) -> Check:
        program = self._smi.program
        usable = os.access(program, os.X_OK)
        answer = str(program) if usable else f"{program} cannot be run; set gpus.nvidia_smi"
        return Check("nvidia_smi", usable, answer)

    def clients(self, uuid: str) -> tuple[Client, ...]:
        """Who has the card's device file open, in every process that can be read."""
        return device_files.holders(self._proc, uuid)

    def reset(self, uuid: str, timeout: float) -> bool:
        """Reset this one card."""
        result = self._smi.run(uuid, "--gpu-reset", timeout=timeout)
        said = words(result)
        if result.returncode == 0:
            return _CONFIRMED in said.lower()
        begun = not any(phrase in said.lower() for phrase in _NOT_BEGUN)
        if result.returncode in _REFUSALS or not begun:
            raise ControlError(sentence(result))
        raise OutcomeUnknown(sentence(result))

    def describe(self, uuid: str) -> str:
        """The argv that would be run."""
        return " ".join(self._smi.argv(uuid, "--gpu-reset"))


def _off(name: str, cell: str, why: str) -> Check:
    """A mode that must not be on; a card that has no such mode does not say."""
    if cell.lower() == "disabled":
        return Check(name, passed=True, answer="off")
    if cell.lower() == "enabled":
        return Check(name, passed=False, answer=f"on: {why}")
    return Check(name, passed=None, answer=cell or "not told")
