"""The GPUs that should be here: what was seen before, also before a restart."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from exporter import state_file
from exporter.config import ExpectedGpus
from exporter.errors import StorageError
from exporter.readings import DeviceInfo
from serving.question import Question, Unanswered

_PATIENCE_SECONDS = 0.5
FILE_NAME = "expected-gpus.json"
_REMEMBERED = ("index", "name", "pci_bus_id", "vbios_version", "memory_total_bytes")


class Inventory:
    """Remembers every GPU that was seen, with its last identity.

    With a directory it survives a restart, and removing the file (`gpu-exporter inventory reset`)
    makes a running exporter forget what is not there now.
    """

    def __init__(self, expected: ExpectedGpus, directory: Path | None) -> None:
        """Read what is remembered.

        Raises:
            StorageError: the directory cannot be written, or its content is not ours.
        """
        self._expected = expected
        self._path = None if directory is None else directory / FILE_NAME
        self._known: dict[str, DeviceInfo] = {}
        self._unsaved = False
        if self._path is not None:
            self._is_there = Question(self._path.exists, "inventory")
            self._known = _load(self._path)
            self._save(state_file.AT_EASE_SECONDS)

    def complete(self, device: DeviceInfo) -> DeviceInfo:
        """Fill in from memory what a GPU that is down cannot say of itself."""
        known = self._known.get(device.uuid)
        if known is None:
            return device
        blank = {
            name: getattr(known, name)
            for name in _REMEMBERED
            if getattr(device, name) in (None, "")
        }
        return replace(device, **blank)

    def was_reset(self) -> bool:
        """Tell whether the file was removed by `gpu-exporter inventory reset`.

        Raises:
            StorageError: the disk does not answer, for which nobody waits twice, or refuses.
        """
        if self._path is None:
            return False
        try:
            return not self._is_there.begin().answer(_PATIENCE_SECONDS)
        except Unanswered:
            why = "its disk does not answer; look at `dmesg`"
        except OSError as error:
            why = f"cannot be looked for: {error.strerror}; choose another --storage.path"
        raise StorageError(f"{self._path}: {why}")

    def saw(self, devices: Iterable[DeviceInfo]) -> None:
        """Remember these.

        Raises:
            StorageError: they could not be written; they are remembered in memory all the same.
        """
        forgotten = False
        with contextlib.suppress(StorageError):
            forgotten = self.was_reset()
        before = {} if forgotten else dict(self._known)
        self._known = dict(before)
        for device in devices:
            self._known[device.uuid] = _identity(device)
        if self._known != before or forgotten or self._unsaved:
            self._save()

    def expected_count(self) -> int | None:
        """How many GPUs should be here; None in `auto` before any was ever seen."""
        if isinstance(self._expected, int):
            return self._expected
        if self._expected == "auto":
            return len(self._known) if self._known else None
        return len(self._expected)

    def missing(self, visible: Iterable[str]) -> tuple[DeviceInfo, ...]:
        """Return the expected GPUs that are not among `visible`, as they were last seen."""
        there = set(visible)
        if isinstance(self._expected, tuple):
            absent = [uuid for uuid in self._expected if uuid not in there]
            return tuple(self._known.get(uuid, DeviceInfo(None, uuid)) for uuid in absent)
        gone = tuple(info for uuid, info in self._known.items() if uuid not in there)
        if isinstance(self._expected, int):
            return gone[: max(0, self._expected - len(there))]
        return gone

    def _save(self, patience: float = state_file.PATIENCE_SECONDS) -> None:
        if self._path is None:
            return
        self._unsaved = True
        body = [_to_json(info) for info in self._known.values()]
        state_file.write(self._path, {"version": 1, "gpus": body}, patience)
        self._unsaved = False


def reset(directory: Path) -> bool:
    """Forget all; false when nothing was remembered.

    Raises:
        StorageError: the file cannot be removed.
    """
    path = directory / FILE_NAME
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror}") from error
    return True


def _identity(info: DeviceInfo) -> DeviceInfo:
    return DeviceInfo(**_to_json(info))


def _to_json(info: DeviceInfo) -> dict[str, Any]:
    return {name: getattr(info, name) for name in ("uuid", *_REMEMBERED)}


def _load(path: Path) -> dict[str, DeviceInfo]:
    text = state_file.read(path)
    if text is None:
        return {}
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return {body["uuid"]: DeviceInfo(**body) for body in json.loads(text)["gpus"]}
    raise StorageError(f"{path} is damaged; run `gpu-exporter inventory reset` to start anew")
