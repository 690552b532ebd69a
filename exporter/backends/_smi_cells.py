"""What the cells of nvidia-smi's answers mean, its many ways to say nothing too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from exporter.errors import DeviceFault
from exporter.readings import FaultReason

_NOTHING = {
    "",
    "n/a",
    "not supported",
    "not available",
    "function not found",
    "requested functionality has been deprecated",
}
_FAILED = {
    "insufficient permissions": "no_permission",
    "unknown error": "unknown",
    "err!": "unknown",
}
_FAULTS = {
    "gpu is lost": FaultReason.LOST,
    "gpu requires reset": FaultReason.RESET_REQUIRED,
    "gpu reset required": FaultReason.RESET_REQUIRED,
}
_FLAGS = {"yes": True, "no": False, "1": True, "0": False, "enabled": True, "disabled": False}


def split(line: str, count: int) -> list[str]:
    """Split a line into `count` cells; commas in the last one are its own."""
    return [cell.strip() for cell in line.split(",", count - 1)]


class Cells:
    """One row, by reading; counts what could not be read."""

    def __init__(self, names: Iterable[str], values: Iterable[str]) -> None:
        """Take a row.

        Raises:
            DeviceFault: a cell says that the GPU is lost or wants a reset; what others of such
                a row say is made up.
        """
        self._values: Mapping[str, str] = dict(zip(names, values, strict=True))
        self.errors: list[str] = []
        for value in self._values.values():
            reason = _FAULTS.get(_bare(value))
            if reason is not None:
                raise DeviceFault(reason, f"nvidia-smi: {value.strip('[]')}")

    def text(self, name: str) -> str | None:
        """Return what a cell says, None when it says nothing."""
        value = self._values.get(name, "")
        bare = _bare(value)
        if bare in _NOTHING:
            return None
        if bare in _FAILED or bare.startswith("unknown error") or value.startswith("["):
            self.errors.append(_FAILED.get(bare, "unknown"))
            return None
        return value

    def number(self, name: str, factor: float = 1.0) -> float | None:
        """Return a number times `factor`."""
        text = self.text(name)
        if text is None:
            return None
        try:
            # Some versions print the unit even when asked not to.
            number = float(text.split()[0])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.errors.append("not_a_number")
            return None
        return round(number * factor, 6)

    def whole(self, name: str, factor: int = 1) -> int | None:
        """Return a whole number times `factor`."""
        value = self.number(name, factor)
        return None if value is None else int(value)

    def share(self, name: str) -> float | None:
        """Return percent as a ratio; what is not between 0 and 100 is none."""
        value = self.number(name)
        return None if value is None or not 0 <= value <= 100 else value / 100

    def flag(self, name: str) -> bool | None:
        """Return yes or no, also where it says enabled or disabled."""
        text = self.text(name)
        return None if text is None else _FLAGS.get(text.lower())

    def bits(self, name: str) -> int | None:
        """Return a hexadecimal mask."""
        text = self.text(name)
        if text is None:
            return None
        try:
            return int(text, 16)
        except ValueError:
            self.errors.append("not_a_number")
            return None


def _bare(value: str) -> str:
    return value.strip().strip("[]").strip().lower()
