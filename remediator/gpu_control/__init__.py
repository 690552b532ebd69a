"""GPU controls: what writes to a card. One file each, one contract (base.py)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from remediator.gpu_control.base import GpuControl, NoControl, PowerState

if TYPE_CHECKING:
    from remediator.config import GpuConfig

__all__ = ["GpuControl", "NoControl", "PowerState", "create"]


def create(config: GpuConfig) -> GpuControl:
    """The control that the configuration names.

    Raises:
        ConfigError: it cannot work as configured.
    """
    if config.control == "none":
        return NoControl()
    # Only the one that is used: a call to the driver is a process, which loads this package, too.
    module = importlib.import_module(f"{__name__}.{config.control.replace('-', '_')}")
    control: GpuControl = module.create(config)
    return control
