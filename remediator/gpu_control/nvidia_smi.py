"""Power control through `nvidia-smi`, for hosts without a driver library that we can load.

Facts: nvidia-smi 550 to 580. A limit that a card does not support is a warning to it, and it may exit with 0:
every write is read back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from remediator.errors import ControlError, OutcomeUnknown
from remediator.gpu_control.base import PowerState
from remediator.nvidia_smi import NvidiaSmi, sentence, words

if TYPE_CHECKING:
    from remediator.config import GpuConfig

_FIELDS = ("power.limit", "power.default_limit", "power.min_limit", "power.max_limit")
# With these nothing was written; with any other it may have been.
_REFUSALS = (2, 3, 4, 6, 8, 9, 12, 13)
# The driver may round a limit; the same half watt as for the undo.
_ROUNDING_MILLIWATTS = 500


def create(config: GpuConfig) -> NvidiaSmiControl:
    """The control of the configuration."""
    return NvidiaSmiControl(config.nvidia_smi, config.timeout)


class NvidiaSmiControl:
    """GPU control through `nvidia-smi -pl`."""

    name = "nvidia-smi"

    def __init__(self, program: Path, timeout: float) -> None:
        """`program` is an absolute path.

        Raises:
            ConfigError: it is not.
        """
        self._smi = NvidiaSmi(program)
        self._timeout = timeout

    def power(self, uuid: str) -> PowerState:
        """The power limits that nvidia-smi reports, in milliwatts."""
        cells = self._smi.query(uuid, _FIELDS, timeout=self._timeout)
        limits = [_milliwatts(name, cell, uuid) for name, cell in zip(_FIELDS, cells, strict=True)]
        return PowerState(*limits)

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        """Set the power limit and read it back."""
        result = self._smi.run(uuid, "-pl", _watts(milliwatts), timeout=self._timeout)
        if result.returncode in _REFUSALS:
            raise ControlError(sentence(result))
        if result.returncode != 0:
            raise OutcomeUnknown(sentence(result))
        try:
            found = self.power(uuid).limit
        except ControlError as error:
            raise OutcomeUnknown(
                f"the power limit of {uuid} was set but cannot be read back: {error}"
            ) from None
        if abs(found - milliwatts) > _ROUNDING_MILLIWATTS:
            raise ControlError(
                f"nvidia-smi exited with 0 but the power limit of {uuid} reads {_watts(found)} W, "
                f"not {_watts(milliwatts)} W; it said: {words(result)}"
            )

    def describe_set_power_limit(self, uuid: str, milliwatts: int) -> str:
        """The argv that would be run."""
        return " ".join(self._smi.argv(uuid, "-pl", _watts(milliwatts)))


def _milliwatts(name: str, cell: str, uuid: str) -> int:
    try:
        return round(float(cell) * 1000)
    except (ValueError, OverflowError):
        # [N/A], [Not Supported], [GPU is lost], [GPU requires reset] and their like
        raise ControlError(
            f"nvidia-smi does not say {name} of {uuid}: {cell or 'nothing'}"
        ) from None


def _watts(milliwatts: int) -> str:
    # nvidia-smi counts in hundredths; rounded down, so that a cap is never above what was asked.
    whole, hundredths = divmod(milliwatts // 10, 100)
    return f"{whole}.{hundredths:02d}" if hundredths else str(whole)
