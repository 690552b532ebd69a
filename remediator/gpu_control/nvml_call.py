"""One NVML call in a process of its own: `list`, `power UUID` or `set-power-limit UUID MILLIWATTS`.

Prints one JSON object: `{"uuids": […]}`, the limits in milliwatts, or `{"error": "…"}`. Fixed verbs, checked
arguments, no other way in.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import pynvml

_UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{2,63}")


def main(argv: Sequence[str]) -> int:
    """Run one verb; 0 when the driver did it, 1 when it refused or the call is wrong."""
    match argv:
        case ["list"]:
            return _say(_listed())
        case ["power", uuid] if _UUID.fullmatch(uuid):
            milliwatts = None
        case ["set-power-limit", uuid, text] if _UUID.fullmatch(uuid) and text.isdigit():
            milliwatts = int(text)
        case _:
            return _say({"error": "usage: list | power UUID | set-power-limit UUID MILLIWATTS"})
    return _say(_with_nvml(uuid, milliwatts))


def _say(answer: dict[str, Any]) -> int:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 1 if "error" in answer else 0


def _listed() -> dict[str, Any]:
    """The cards' uuids; a card that does not say its own is left out."""
    try:
        pynvml.nvmlInit()
        try:
            found = []
            for index in range(pynvml.nvmlDeviceGetCount()):
                with contextlib.suppress(pynvml.NVMLError):
                    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                    found.append(pynvml.nvmlDeviceGetUUID(handle))
            return {"uuids": found}
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return {"error": _sentence(error, write=False)}


def _with_nvml(uuid: str, milliwatts: int | None) -> dict[str, Any]:
    try:
        pynvml.nvmlInit()
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            if milliwatts is not None:
                # Not the _v2 call: in nvidia-ml-py 13.615 that one throws its return code away.
                pynvml.nvmlDeviceSetPowerManagementLimit(handle, milliwatts)
            minimum, maximum = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
            return {
                "limit": pynvml.nvmlDeviceGetPowerManagementLimit(handle),
                "default": pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle),
                "minimum": minimum,
                "maximum": maximum,
            }
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return {"error": _sentence(error, write=milliwatts is not None)}


def _sentence(error: Any, *, write: bool) -> str:
    text = f"NVML: {error}"
    if write and getattr(error, "value", None) == 4:
        text += "; setting a power limit needs root"
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
