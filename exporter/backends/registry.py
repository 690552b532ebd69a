"""Which backends there are: the modules of this package."""

from __future__ import annotations

import ctypes
import importlib
import os
import pkgutil
from pathlib import Path
from typing import cast

from exporter.backends.base import Backend, BackendOptions
from exporter.environment import NVML_LIBRARY, Environment
from exporter.errors import CaptureError, ConfigError

_NOT_BACKENDS = {"base", "registry"}
_REPLAY = "replay"


class Machine:
    """What `auto` looks at; it asks no driver."""

    def __init__(self, environment: Environment | None = None) -> None:
        self._environment = environment or Environment()

    def is_tegra(self) -> bool:
        """Tell whether this is a Jetson."""
        return self._environment.is_tegra()

    def library_loads(self) -> bool:
        """Tell whether NVML can be loaded, whatever it then says."""
        try:
            ctypes.CDLL(NVML_LIBRARY)
        except OSError:
            return False
        return True

    def has_nvidia_smi(self) -> bool:
        """Tell whether there is an nvidia-smi."""
        # Not by shutil, which brings every packer that Python has.
        found = (Path(folder, "nvidia-smi") for folder in os.get_exec_path())
        # In this order: of a folder that this user may not enter, `is_file` raises.
        return any(os.access(one, os.X_OK) and one.is_file() for one in found)


def names() -> tuple[str, ...]:
    """Every backend that this version has; `--backend` wants a file with `replay`."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(
        sorted(
            name.replace("_", "-")
            for name in found
            if name not in _NOT_BACKENDS and not name.startswith("_")
        )
    )


def resolve(wanted: str, machine: Machine | None = None) -> str:
    """Turn the value of `--backend` into a backend's name.

    `auto` never chooses a simulated one or a replay, and a driver that is lost or mismatched is a fault to
    export, not a reason to look elsewhere.

    Raises:
        ConfigError: this version has no such backend, or the capture to replay cannot be.
    """
    available = names()
    if wanted.partition(":")[0] == _REPLAY:
        _check_capture(replay_file(wanted))
        return _REPLAY
    if wanted == "auto":
        return _automatic(machine or Machine())
    if wanted in available:
        return wanted
    choices = ", ".join(("auto", *available))
    raise ConfigError(f"unknown backend '{wanted}'; choose from {choices}")


def replay_file(wanted: str) -> str:
    """Return the capture that a value of `--backend` names; empty when it names none."""
    name, _, file = wanted.partition(":")
    return str(Path(file).resolve()) if name == _REPLAY and file else ""


def of_this_machine(name: str) -> bool:
    """Tell whether the GPUs of a backend are in this machine, and so are its pids and its kernel."""
    return name not in {_REPLAY, "simulated"}


def _check_capture(file: str) -> None:
    if not file:
        raise ConfigError("--backend=replay:FILE wants a file that `gpu-exporter capture` made")
    # Only here: it takes 0.4 MiB, and no other backend needs it.
    from exporter.capture.file import load  # noqa: PLC0415

    try:
        load(Path(file))
    except CaptureError as error:
        raise ConfigError(f"--backend=replay: {error}") from error


def _automatic(machine: Machine) -> str:
    if machine.is_tegra():
        return "jetson"
    if not machine.library_loads() and machine.has_nvidia_smi():
        return "nvidia-smi"
    return "nvml"


def create(name: str, options: BackendOptions) -> Backend:
    """Make the backend of that name; nothing is opened yet."""
    module = importlib.import_module("exporter.backends." + name.replace("-", "_"))
    return cast("Backend", module.create(options))
