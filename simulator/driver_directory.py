"""Drives the stand-in for the driver's C library: files that it reads, and the writes that it logs.

Files of the directory, all plain text:

    state               one ``gpu UUID`` section a card, ``key value`` lines; a missing key is a reading
                        that the card does not support
    faults              errors, latency and hangs by function and card; only tests write it
    power_limit.UUID    the limit in milliwatts that holds, once one has been set
    writes              one line a control write: time pid function uuid value return-code applied
    events              one line an Xid error: UUID XID
    clients/PID         a process that has the library initialised; left behind by one that was killed
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from simulator.attachments import SystemProcesses
from simulator.world import World

Value = int | str

_MIB: Final = 1024**2
_MHZ: Final = 1_000_000
# Values of NVML's field 230, by the names that faults give them.
_RECOVERY_ACTIONS: Final = {
    "none": 0,
    "reset": 1,
    "reboot": 2,
    "drain_p2p": 3,
    "drain_and_reset": 4,
}
_CLOCK_EVENT_BITS: Final = {
    "gpu_idle": 0x1,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "hw_thermal_slowdown": 0x40,
}


@dataclass(frozen=True, slots=True)
class DriverProcess:
    """A process line of the state file; ``kind`` is ``C`` (compute) or ``G`` (graphics)."""

    pid: int
    memory_bytes: int
    kind: str = "C"
    sm_utilization: int = 0


@dataclass(frozen=True, slots=True)
class DriverGpu:
    """One section of the state file: the library's units (milliwatts, megahertz, percent).

    Attributes:
        rows: what a card has several of, by key: lines of numbers.
    """

    uuid: str
    values: Mapping[str, Value | None]
    processes: tuple[DriverProcess, ...] = ()
    rows: Mapping[str, Iterable[tuple[int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DriverWrite:
    """One line of the write log; ``code`` is what the library answered (0: success)."""

    time: float
    pid: int
    function: str
    uuid: str
    value: int
    code: int
    applied: bool


def render_state(gpus: Iterable[DriverGpu]) -> str:
    """The text of the state file."""
    lines = []
    for gpu in gpus:
        lines.append(f"gpu {gpu.uuid}")
        lines.extend(f"{key} {value}" for key, value in gpu.values.items() if value is not None)
        lines.extend(
            f"process {one.pid} {one.memory_bytes} {one.kind} {one.sm_utilization}"
            for one in gpu.processes
        )
        for key, rows in gpu.rows.items():
            lines.extend(f"{key} {' '.join(map(str, row))}" for row in rows)
    return "\n".join(lines) + "\n"


def write_atomically(path: Path, content: str) -> None:
    """Replace a file in one step, so that no reader ever sees half of it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(content)
    fresh.replace(path)


def parse_writes(content: str) -> list[DriverWrite]:
    """Read whole lines of the write log."""
    writes = []
    for line in content.splitlines():
        time, pid, function, uuid, value, code, applied = line.split()
        writes.append(
            DriverWrite(
                float(time), int(pid), function, uuid, int(value), int(code), applied == "1"
            )
        )
    return writes


def clients(directory: Path) -> list[int]:
    """The pids of living processes that hold the driver: initialised and not shut down."""
    held = directory / "clients"
    if not held.is_dir():
        return []
    alive = SystemProcesses().started_at
    return sorted(int(one.name) for one in held.iterdir() if alive(int(one.name)) is not None)


def driver_gpu(gpu: Mapping[str, Any], delay_seconds: float) -> DriverGpu:
    """Translate a ``SimGPU`` into what the library reports of such a card."""
    identity: dict[str, Value | None] = {
        "name": gpu["name"],
        "pci": gpu["pci_bus_id"],
        "vbios": gpu["vbios_version"],
        "latency_ms": int(delay_seconds * 1000) or None,
    }
    if gpu["lost"]:
        return DriverGpu(gpu["uuid"], identity | {"lost": 1})
    processes = tuple(
        DriverProcess(one["pid"], one["memory_bytes"], "C", round(gpu["utilization_ratio"] * 100))
        for one in gpu["processes"]
    )
    return DriverGpu(gpu["uuid"], identity | _readings(gpu), processes)


def _readings(gpu: Mapping[str, Any]) -> dict[str, Value | None]:
    def scaled(key: str, factor: float) -> int | None:
        value = gpu[key]
        return None if value is None else round(value * factor)

    readings: dict[str, Value | None] = {
        "temperature": scaled("temperature_celsius", 1),
        "memory_temperature": scaled("memory_temperature_celsius", 1),
        "memory_total": gpu["memory_total_bytes"],
        "memory_reserved": gpu["memory_reserved_bytes"],
        "memory_used": gpu["memory_used_bytes"],
        "utilization": scaled("utilization_ratio", 100),
        "memory_utilization": scaled("memory_utilization_ratio", 100),
        "power_mw": scaled("power_watts", 1000),
        "power_limit_default_mw": scaled("power_limit_default_watts", 1000),
        "power_limit_min_mw": scaled("power_limit_min_watts", 1000),
        "power_limit_max_mw": scaled("power_limit_max_watts", 1000),
        "energy_mj": scaled("energy_joules", 1000),
        "clock_events": sum(_CLOCK_EVENT_BITS[name] for name in gpu["clock_events"]),
        "fan": scaled("fan_speed_ratio", 100),
        "pstate": gpu["performance_state"],
        "recovery_action": _RECOVERY_ACTIONS[gpu["recovery_action"]],
        "slowdown_temperature": round(gpu["temperature_limits_celsius"]["slowdown"]),
        "shutdown_temperature": round(gpu["temperature_limits_celsius"]["shutdown"]),
    }
    for domain, hertz in gpu["clocks_hertz"].items():
        readings[f"clock_{domain}"] = hertz // _MHZ
    for domain, hertz in gpu["clocks_max_hertz"].items():
        readings[f"clock_max_{domain}"] = hertz // _MHZ
    return readings


class DriverDirectory:
    """Keeps a directory and a world in step; call ``sync`` several times a second."""

    def __init__(self, directory: Path, world: World) -> None:
        self._directory = directory
        self._world = world
        directory.mkdir(parents=True, exist_ok=True)
        # A fresh driver knows no limits and no writes of the one before.
        for stale in (*directory.glob("power_limit.*"), directory / "writes"):
            stale.unlink(missing_ok=True)
        self._read_to = 0
        self._told_xids: dict[str, float] = {}
        self._published = world.power_limits()

    def sync(self) -> None:
        """Take up what the library logged, then publish readings, limits and Xid errors."""
        self._take_up_writes()
        for uuid, watts in self._world.power_limits().items():
            if self._published[uuid] != watts:
                self._published[uuid] = watts
                limit = self._directory / f"power_limit.{uuid}"
                write_atomically(limit, f"{round(watts * 1000)}\n")
        listed = self._world.listing()["gpus"]
        gpus = [driver_gpu(gpu, self._world.delay_seconds(gpu["uuid"])) for gpu in listed]
        write_atomically(self._directory / "state", render_state(gpus))
        self._tell_xids(listed)

    def _tell_xids(self, gpus: Iterable[Mapping[str, Any]]) -> None:
        new = []
        for gpu in gpus:
            told = self._told_xids.get(gpu["uuid"], -math.inf)
            for one in gpu["xid_errors"] or ():
                if one["time"] > told:
                    new.append(f"{gpu['uuid']} {one['xid']}\n")
                    self._told_xids[gpu["uuid"]] = one["time"]
        if new:
            # Appended, never replaced: who listens remembers how far it has read.
            with (self._directory / "events").open("a") as events:
                events.write("".join(new))

    def _take_up_writes(self) -> None:
        with contextlib.suppress(FileNotFoundError), (self._directory / "writes").open("rb") as log:
            log.seek(self._read_to)
            whole = log.read().rpartition(b"\n")[0]
            if not whole:
                return
            self._read_to += len(whole) + 1
            for write in parse_writes(whole.decode()):
                self._apply(write)

    def _apply(self, write: DriverWrite) -> None:
        watts = write.value / 1000
        error = None if write.applied else f"the driver answered {write.code} and changed nothing"
        self._world.driver_wrote(write.uuid, watts, pid=write.pid, error=error)
        if write.applied:
            self._published[write.uuid] = watts
