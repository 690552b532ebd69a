"""The JSON of `/api/gpu` and its kin; what could not be read is null."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeAlias

from exporter import cgroups, xids
from exporter.gpu_state import HistoryPoint
from exporter.host import HostReading
from exporter.kernel_log import LoggedKill
from exporter.oom_kills import OomKillLog
from exporter.readings import Sample
from exporter.snapshot import GpuView, Snapshot
from exporter.xid_ledger import XidCount

Json: TypeAlias = dict[str, Any]
UNAVAILABLE: Json = {"available": False, "error": "GPU stats not available"}
_MIB = 2**20
_EMPTY = Sample()


def all_gpus(snapshot: Snapshot) -> Json:
    """Answer `/api/gpus`."""
    if not snapshot.gpus:
        return UNAVAILABLE
    return {
        "available": True,
        "backend": snapshot.backend.name,
        "timestamp": snapshot.taken_at,
        "gpus": [gpu(view, snapshot) for view in snapshot.gpus],
    }


def one_gpu(view: GpuView, snapshot: Snapshot) -> Json:
    """Answer `/api/gpu` and `/api/gpu/<uuid or index>`."""
    return {"available": True, "gpu": gpu(view, snapshot)}


def everything(snapshot: Snapshot, reading: HostReading | None) -> Json:
    """Answer what a command prints: all GPUs, and the host as `host`."""
    return {**all_gpus(snapshot), "host": host(reading)}


def host(reading: HostReading | None) -> Json:
    """Answer `/api/host`; without a reading, that host metrics are off."""
    if reading is None:
        return {"available": False, "error": "host metrics are switched off (host_metrics.enabled)"}
    total, available = reading.memory_total_bytes, reading.memory_available_bytes
    if total is None and available is None and reading.oom_kills is None:
        return {"available": False, "error": "nothing can be read below --path.procfs"}
    known = total is not None and available is not None
    return {
        "available": True,
        "memory": {
            "total_bytes": total,
            "available_bytes": available,
            "used_ratio": round(1 - (available or 0) / (total or 1), 6) if known else None,
        },
        "oom_kills": reading.oom_kills,
        "oom_kill_log": _oom_kill_log(reading.oom_kill_log),
        "timestamp": reading.read_at,
    }


def _oom_kill_log(log: OomKillLog | None) -> Json | None:
    if log is None:
        return None
    return {
        "boot_id": log.boot_id,
        "lost": log.lost,
        "kills": [_oom_kill(one) for one in log.kills],
    }


def _oom_kill(one: LoggedKill) -> Json:
    where = cgroups.place(f"0::{one.killed.cgroup}")
    return {
        "timestamp": one.time,
        "sequence": one.sequence,
        "pid": one.killed.pid,
        "process": one.killed.process,
        "constraint": one.killed.constraint,
        "cgroup": one.killed.cgroup,
        "unit": where.unit,
        "container_id": where.container_id,
        "pod_uid": where.pod_uid,
    }


def find(snapshot: Snapshot, key: str) -> GpuView | None:
    """Find a GPU by uuid or by index."""
    for view in snapshot.gpus:
        if key == view.info.uuid:
            return view
    # A card that is gone keeps its last index, which the driver may have given to another.
    same_index = [view for view in snapshot.gpus if key == str(view.info.index)]
    return next((view for view in same_index if view.up), same_index[0] if same_index else None)


def history(uuid: str, points: list[HistoryPoint]) -> Json:
    """Answer `/api/gpu/<uuid or index>/history`."""
    return {"uuid": uuid, "samples": [asdict(point) for point in points]}


def gpu(view: GpuView, snapshot: Snapshot) -> Json:
    """Describe one GPU."""
    sample = view.sample or _EMPTY
    verdict = view.verdict
    fans = sample.fan_speed_ratios
    return {
        "index": view.info.index,
        "uuid": view.info.uuid,
        "name": view.info.name,
        "pci_bus_id": view.info.pci_bus_id,
        "up": view.up,
        "fault": None if view.fault is None else str(view.fault),
        "temperature": sample.temperature_celsius,
        "utilization": _percent(sample.utilization_ratio),
        "memory": _memory(sample),
        "power": _power(view, sample),
        "clocks": _clocks(sample),
        "fan_speed": _percent(max(fans)) if fans else None,
        "health": str(verdict.health),
        "error": str(verdict.error),
        "error_message": verdict.message,
        "timestamp": view.sampled_at,
        "age_seconds": None if view.age_seconds is None else round(view.age_seconds, 3),
        "thresholds": _thresholds(view, snapshot),
        "saturated_seconds": view.saturated_seconds,
        "processes": _processes(view),
        "recovery_action": None if view.health is None else view.health.recovery_action,
        "health_timestamp": _health_read_at(view, snapshot),
        "xid_errors": _xids(view),
    }


def _health_read_at(view: GpuView, snapshot: Snapshot) -> float | None:
    """When the recovery action and its kin were read, which may be long before the sample."""
    age = view.health_age_seconds
    return None if age is None else round(snapshot.taken_at - age, 3)


def _memory(sample: Sample) -> Json:
    used, total = sample.memory_used_bytes, sample.memory_total_bytes
    known = used is not None and total
    return {
        "used_mb": None if used is None else used // _MIB,
        "total_mb": None if total is None else total // _MIB,
        "percent": round(100 * (used or 0) / (total or 1), 2) if known else None,
        "used_bytes": used,
        "free_bytes": sample.memory_free_bytes,
        "total_bytes": total,
    }


def _power(view: GpuView, sample: Sample) -> Json:
    info = view.info
    return {
        "draw_w": sample.power_watts,
        "limit_w": sample.power_limit_watts,
        "default_limit_w": info.power_limit_default_watts,
        "min_limit_w": info.power_limit_min_watts,
        "max_limit_w": info.power_limit_max_watts,
    }


def _clocks(sample: Sample) -> Json:
    clocks = sample.clocks_hertz or {}
    megahertz = {name: round(hertz / 1e6) for name, hertz in clocks.items()}
    return {
        "graphics_mhz": megahertz.get("graphics"),
        "memory_mhz": megahertz.get("memory"),
    }


def _thresholds(view: GpuView, snapshot: Snapshot) -> Json:
    memory = view.thresholds.memory.thresholds_bytes(view.info.memory_total_bytes)
    return {
        "temperature_celsius": asdict(view.thresholds.temperature),
        "memory_bytes": {level: int(value) for level, value in memory.items()},
        "saturation": asdict(snapshot.saturation),
    }


def _processes(view: GpuView) -> list[Json] | None:
    if view.processes is None:
        return None
    return [
        {
            "pid": one.pid,
            "process": one.process,
            "unit": one.unit,
            "container_name": one.container_name,
            "container_id": one.container_id,
            "pod_uid": one.pod_uid,
            "memory_used_bytes": one.memory_used_bytes,
        }
        for one in view.processes
    ]


def _xids(view: GpuView) -> list[Json] | None:
    if view.xids is None:
        return None
    return [_xid(one) for one in view.xids if one.count]


def _xid(one: XidCount) -> Json:
    row = xids.table().get(one.xid)
    return {
        "xid": one.xid,
        "count": one.count,
        "last_timestamp": one.last_at,
        "meaning": row.meaning if row else "",
        "severity": str(row.severity) if row else "unknown",
        "action": str(row.action) if row else "unknown",
        "contested": row.contested if row else "",
    }


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio * 100, 2)
