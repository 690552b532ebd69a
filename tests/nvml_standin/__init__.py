"""A stand-in for the NVIDIA driver's C library, and a handle on it for tests and benchmarks.

    driver = Driver(tmp_path, gpus=4)
    subprocess.run([...], env=os.environ | driver.env())   # before the process starts: ctypes loads by name
    driver.set(0, temperature=84)
    driver.fail("nvmlDeviceGetTemperatureV", gpu=0, error=15)
    driver.writes()

Values are in the library's own units: degrees Celsius, percent, milliwatts, megahertz, bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
import uuid as uuids
from collections.abc import Iterable
from pathlib import Path

from simulator.driver_directory import (
    DriverGpu,
    DriverProcess,
    DriverWrite,
    Value,
    clients,
    parse_writes,
    render_state,
    write_atomically,
)

__all__ = ["Driver", "DriverProcess", "DriverWrite", "StandinError", "build"]

LIBRARY = "libnvidia-ml.so.1"
_SOURCES = Path(__file__).parent / "src"
_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-pthread")
_MIB = 1024**2
_ROWS = frozenset({"sample", "process_sample", "nvlink", "mig"})
_DEFAULTS: dict[str, Value | None] = {
    "name": "NVIDIA A100-SXM4-40GB",
    "vbios": "92.00.45.00.03",
    "temperature": 45,
    "memory_temperature": 48,
    "slowdown_temperature": 89,
    "shutdown_temperature": 92,
    "memory_total": 40960 * _MIB,
    "memory_reserved": 512 * _MIB,
    "memory_used": 0,
    "utilization": 0,
    "memory_utilization": 0,
    "encoder_utilization": 0,
    "decoder_utilization": 0,
    "power_mw": 52_000,
    "power_limit_default_mw": 400_000,
    "power_limit_min_mw": 100_000,
    "power_limit_max_mw": 400_000,
    "energy_mj": 1_000_000,
    "clock_graphics": 1410,
    "clock_sm": 1410,
    "clock_memory": 1215,
    "clock_video": 1290,
    "clock_max_graphics": 1410,
    "clock_max_sm": 1410,
    "clock_max_memory": 1215,
    "clock_max_video": 1290,
    "clock_events": 0,
    "pstate": 0,
    "ecc_corrected": 0,
    "ecc_uncorrected": 0,
    "ecc_dram_corrected": 0,
    "ecc_dram_uncorrected": 0,
    "ecc_sram_corrected": 0,
    "ecc_sram_uncorrected": 0,
    "remapped_correctable": 0,
    "remapped_uncorrectable": 0,
    "remapped_pending": 0,
    "remapped_failure": 0,
    "power_cap_ns": 0,
    "sync_boost_ns": 0,
    "sw_thermal_ns": 0,
    "hw_thermal_ns": 0,
    "hw_brake_ns": 0,
    "recovery_action": 0,
    "pcie_generation": 4,
    "pcie_width": 16,
    "pcie_generation_max": 4,
    "pcie_width_max": 16,
    "pcie_rx_kb": 0,
    "pcie_tx_kb": 0,
}


class StandinError(Exception):
    """The stand-in cannot be built or used here; the text says why."""


def header_directory() -> Path:
    """The folder of ``nvml.h`` from the installed package nvidia-nvml-dev.

    Raises:
        StandinError: it is not installed.
    """
    try:
        files = importlib.metadata.files("nvidia-nvml-dev") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nvml.h":
            return Path(str(file.locate())).parent
    raise StandinError("nvml.h is missing; install the development extra (nvidia-nvml-dev)")


def build(directory: Path | None = None) -> Path:
    """Compile the library unless it is there already; returns the folder that holds it.

    ``directory`` is where builds are kept (default: a per-user folder among the temporary files); the
    content of sources, header and flags names the build, so a stale one is never used.

    Raises:
        StandinError: no C compiler, no header, or the compiler refuses.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise StandinError("no C compiler; install gcc")
    header = header_directory()
    sources = sorted(_SOURCES.glob("*.c"))
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for file in (*sources, *sorted(_SOURCES.glob("*.h")), header / "nvml.h"):
        digest.update(file.read_bytes())
    cache = directory or Path(tempfile.gettempdir()) / f"nvml-standin-{os.getuid()}"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = cache / digest.hexdigest()[:16]
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / LIBRARY).exists():
            _compile(compiler, header, sources, target)
    return target


def _compile(compiler: str, header: Path, sources: Iterable[Path], target: Path) -> None:
    target.mkdir(exist_ok=True)
    fresh = target / f".{LIBRARY}.{os.getpid()}"
    command = [compiler, *_FLAGS, f"-I{header}", "-o", str(fresh), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StandinError(f"the compiler refused the stand-in driver:\n{done.stderr}")
    fresh.replace(target / LIBRARY)


class Driver:
    """The state of one stand-in driver: what its cards report and what is wrong with them.

    Every change is written at once and seen by every process that uses the library.
    """

    def __init__(self, directory: Path, gpus: int = 1, *, library: Path | None = None) -> None:
        """Write a healthy state of ``gpus`` cards into ``directory``, building the library if needed."""
        self.directory = directory
        self.library = library or build()
        directory.mkdir(parents=True, exist_ok=True)
        self._values: list[dict[str, Value | None]] = []
        self._processes: list[tuple[DriverProcess, ...]] = []
        self._rows: list[dict[str, tuple[tuple[int, ...], ...]]] = []
        self._faults: list[str] = []
        self._lacking: list[str] = []
        self.uuids: list[str] = []
        for index in range(gpus):
            self.uuids.append(f"GPU-{uuids.uuid5(uuids.NAMESPACE_OID, f'standin-{index}')}")
            identity: dict[str, Value | None] = {"pci": f"00000000:{0x3B + index:02X}:00.0"}
            self._values.append(_DEFAULTS | identity)
            self._processes.append(())
            self._rows.append({})
        self._publish()

    def env(self) -> dict[str, str]:
        """Environment variables for the processes that are to find this driver."""
        paths = [str(self.library), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "LD_LIBRARY_PATH": os.pathsep.join(path for path in paths if path),
            "NVML_STANDIN_DIR": str(self.directory),
        }

    def set(self, gpu: int, **values: Value | None) -> None:
        """Change readings of a card by index; None makes one unsupported.

        Raises:
            StandinError: a key that the library does not know.
        """
        unknown = sorted(set(values) - _known_keys())
        if unknown:
            raise StandinError(f"unknown readings {unknown}; known: {sorted(_known_keys())}")
        self._values[gpu].update(values)
        self._publish()

    def set_processes(self, gpu: int, processes: Iterable[DriverProcess]) -> None:
        """Replace the processes of a card; ``memory_used`` becomes their sum."""
        self._processes[gpu] = tuple(processes)
        self._values[gpu]["memory_used"] = sum(one.memory_bytes for one in self._processes[gpu])
        self._publish()

    def set_rows(self, gpu: int, key: str, *rows: tuple[int, ...]) -> None:
        """Replace what a card has several of.

        ``sample``: (type, timestamp, value); ``process_sample``: (pid, timestamp, SM percent);
        ``nvlink``: (link, state, replay, recovery, crc); ``mig``: (index, GPU instance, compute instance,
        total bytes, used bytes, slices), which wants ``mig_current=1``. Timestamps are microseconds.

        Raises:
            StandinError: a key that the library does not know.
        """
        if key not in _ROWS:
            raise StandinError(f"unknown rows '{key}'; known: {sorted(_ROWS)}")
        self._rows[gpu][key] = rows
        self._publish()

    def fail(self, function: str = "*", *, gpu: int | None = None, error: int) -> None:
        """Let a function (``*``: all) answer ``error``, on one card or on all."""
        self._fault(function, gpu, f"error {error}")

    def fail_field(self, number: int, *, gpu: int | None = None, error: int) -> None:
        """Let one field of ``nvmlDeviceGetFieldValues`` answer ``error``; the others of the batch go on."""
        self._fault(f"field_{number}", gpu, f"error {error}")

    def lack_fields(self, *numbers: int) -> None:
        """Let the driver not know these fields; that is no fault, and no `clear` ends it."""
        self._lacking += [f"field_{number} * error 3" for number in numbers]
        self._publish()

    def xid(self, gpu: int, xid: int) -> None:
        """Let the driver tell everybody who listens of one Xid error."""
        with (self.directory / "events").open("a") as events:
            events.write(f"{self.uuids[gpu]} {xid}\n")

    def delay(self, function: str = "*", *, gpu: int | None = None, seconds: float) -> None:
        """Let each call take ``seconds`` longer."""
        self._fault(function, gpu, f"latency_ms {round(seconds * 1000)}")

    def hang(
        self, function: str = "*", *, gpu: int | None = None, uninterruptible: bool = False
    ) -> None:
        """Let each call block until ``clear``; ``uninterruptible``: in state D."""
        self._fault(function, gpu, "hang_uninterruptible 0" if uninterruptible else "hang 0")

    def ignore_writes(self, gpu: int | None = None) -> None:
        """Let a power limit be accepted without any effect."""
        self._fault("nvmlDeviceSetPowerManagementLimit", gpu, "ignore 0")

    def refuse_writes(self, gpu: int | None = None, *, error: int = 4) -> None:
        """Let a power limit be refused (default: NO_PERMISSION)."""
        self.fail("nvmlDeviceSetPowerManagementLimit", gpu=gpu, error=error)

    def lose(self, gpu: int) -> None:
        """Let a card fall off the bus: every call about it answers GPU_IS_LOST."""
        self.set(gpu, lost=1)

    def remove(self, gpu: int) -> None:
        """Take a card away: it is no longer counted, and the indices behind it move up."""
        self.set(gpu, absent=1)

    def clear(self) -> None:
        """End every fault, and bring lost and removed cards back."""
        self._faults.clear()
        for values in self._values:
            values.update(lost=None, absent=None)
        self._publish()

    def unload(self) -> None:
        """Let the driver be not loaded: initialisation answers DRIVER_NOT_LOADED."""
        (self.directory / "state").unlink(missing_ok=True)

    def load(self) -> None:
        """Load it again with the values of before."""
        self._publish()

    def writes(self) -> list[DriverWrite]:
        """Every control write that reached the library, oldest first, refused ones too."""
        log = self.directory / "writes"
        return parse_writes(log.read_text()) if log.exists() else []

    def clients(self) -> list[int]:
        """The processes that hold the driver: initialised, not shut down, and still alive."""
        return clients(self.directory)

    def power_limit(self, gpu: int) -> float:
        """The power limit in watts that holds on a card now."""
        limit = self.directory / f"power_limit.{self.uuids[gpu]}"
        if limit.exists():
            return int(limit.read_text()) / 1000
        return int(self._values[gpu]["power_limit_default_mw"] or 0) / 1000

    def _fault(self, function: str, gpu: int | None, action: str) -> None:
        card = "*" if gpu is None else self.uuids[gpu]
        self._faults.append(f"{function} {card} {action}")
        self._publish()

    def _publish(self) -> None:
        gpus = map(DriverGpu, self.uuids, self._values, self._processes, self._rows)
        write_atomically(self.directory / "state", render_state(gpus))
        wrong = "".join(f"{line}\n" for line in (*self._faults, *self._lacking))
        write_atomically(self.directory / "faults", wrong)


def _known_keys() -> frozenset[str]:
    """The keys of the state file, read from the library's own list."""
    source = (_SOURCES / "state.h").read_text()
    return frozenset(
        part.partition(")")[0] for part in source.split("X(")[1:] if part[0].islower()
    ) - {"key"}
