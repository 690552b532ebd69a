"""Resets of cards: what they ask for beforehand, and how they are done; one contract (base.py)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from remediator.gpu_reset.base import CardReset, Check, Client, NoReset

if TYPE_CHECKING:
    from remediator.config import GpuConfig

__all__ = ["CardReset", "Check", "Client", "NoReset", "create"]

_BY_CONTROL = {
    "simulated": "simulated",
    "nvml": "nvidia_smi",
    "nvidia-smi": "nvidia_smi",
    "helper": "helper",
}


def create(config: GpuConfig) -> CardReset:
    """The reset that goes with the control of the configuration.

    Raises:
        ConfigError: it cannot work as configured.
    """
    if config.control == "jetson":
        return NoReset("the GPU of a Jetson cannot be reset by itself: reboot it")
    if config.control not in _BY_CONTROL:
        return NoReset("gpus.control is none: nothing may be done to a card")
    module = importlib.import_module(f"{__name__}.{_BY_CONTROL[config.control]}")
    reset: CardReset = module.create(config)
    return reset
