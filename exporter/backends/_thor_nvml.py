"""The utilisation of a Jetson Thor: its kernel has no file for it, but NVML tells it there.

Owners compared it with the load that they made (JetPack 7, `nvidia-smi`). On the older boards NVML
has none, or makes it up: it is asked on Thor only.
"""

from __future__ import annotations

import contextlib
from typing import Any

from exporter.clock import Clock

_RETRY_SECONDS = 30.0


class ThorUtilization:
    """Asks NVML about the one GPU; what it cannot tell is simply no reading."""

    def __init__(self, nvml: Any, clock: Clock) -> None:
        self._nvml = nvml
        self._clock = clock
        self._handle: Any = None
        self._opened = False
        self._ask_at = float("-inf")

    def read(self) -> float | None:
        """Return utilisation as a ratio, or None."""
        if self._clock.monotonic() < self._ask_at:
            return None
        try:
            if self._handle is None:
                self._nvml.nvmlInit()
                self._opened = True
                self._handle = self._nvml.nvmlDeviceGetHandleByIndex(0)
            percent = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
        except self._nvml.NVMLError:
            # A library that is missing, or a driver that was reloaded: ask again, but not each second.
            self.close()
            self._ask_at = self._clock.monotonic() + _RETRY_SECONDS
            return None
        return percent / 100 if 0 <= percent <= 100 else None

    def close(self) -> None:
        """Let go of the driver; what it says to that does not matter."""
        self._handle = None
        if self._opened:
            self._opened = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
