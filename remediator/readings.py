"""A GPU's reading as the exporter's JSON gives it; what could not be read is None."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The exporter's clock and ours are one machine's: what lies further ahead is no reading of now.
_CLOCK_SLACK = 1.0


@dataclass(frozen=True)
class Process:
    """A process on a GPU; memory in bytes, None where the driver does not say.

    `pod_uid` is that of its Kubernetes pod, empty where it is in none or that cannot be seen.
    """

    pid: int
    name: str
    unit: str
    memory_used_bytes: int | None
    container: str = ""
    pod_uid: str = ""

    def is_of(self, name: str) -> bool:
        """Whether it runs in a pod that a process identity of this name tells of."""
        return bool(self.pod_uid) and f"(uid {self.pod_uid}," in name


@dataclass(frozen=True)
class XidSeen:
    """One kind of Xid error of a card: when it came last (Unix seconds), and its catalogue entry.

    `action` is what NVIDIA's catalogue says to do at once, like `reset_gpu` or `restart_app`;
    `contested` is who sees that otherwise, empty where nobody is known to.
    """

    xid: int
    last_seen: float | None
    action: str
    meaning: str = ""
    contested: str = ""


@dataclass(frozen=True)
class GpuReading:
    """One reading of one GPU.

    Temperatures in degrees Celsius, utilisation 0 to 1, memory in bytes, power in watts,
    `timestamp` in Unix seconds, `age_seconds` at the time of the request. `processes` is None where
    the card cannot tell, empty where none uses it. `recovery_action` is what the driver asks for,
    None where it does not say; `xid_errors` is None where nobody watches for them.
    """

    uuid: str
    index: int | None
    name: str
    up: bool
    fault: str | None
    temperature: float | None
    utilization_ratio: float | None
    memory_used_bytes: float | None
    memory_total_bytes: float | None
    power_watts: float | None
    power_limit_watts: float | None
    power_default_watts: float | None
    power_min_watts: float | None
    health: str
    error: str
    error_message: str
    timestamp: float | None
    age_seconds: float | None
    saturated_seconds: float | None
    temperature_thresholds: Mapping[str, float]
    memory_thresholds: Mapping[str, float]
    saturation_seconds: float | None
    processes: tuple[Process, ...] | None
    recovery_action: str | None = None
    xid_errors: tuple[XidSeen, ...] | None = None

    def fresh(self, max_age: float) -> bool:
        """Whether the card answered and its sample is at most `max_age` seconds old."""
        return (
            self.up
            and self.age_seconds is not None
            and -_CLOCK_SLACK <= self.age_seconds <= max_age
        )

    @property
    def label(self) -> str:
        """The card for a person: name and uuid."""
        return f"{self.name} ({self.uuid})" if self.name else self.uuid


def parse_gpu(raw: Mapping[str, Any]) -> GpuReading:
    """The reading in one `gpu` object of the exporter's JSON (docs/architecture.md)."""
    memory = _mapping(raw.get("memory"))
    power = _mapping(raw.get("power"))
    thresholds = _mapping(raw.get("thresholds"))
    saturation = _mapping(thresholds.get("saturation"))
    percent = number(raw.get("utilization"))
    index = raw.get("index")
    fault = raw.get("fault")
    return GpuReading(
        uuid=str(raw.get("uuid", "")),
        index=index if isinstance(index, int) else None,
        name=str(raw.get("name") or ""),
        up=raw.get("up") is True,
        fault=str(fault) if fault else None,
        temperature=number(raw.get("temperature")),
        utilization_ratio=None if percent is None else percent / 100,
        memory_used_bytes=number(memory.get("used_bytes")),
        memory_total_bytes=number(memory.get("total_bytes")),
        power_watts=number(power.get("draw_w")),
        power_limit_watts=number(power.get("limit_w")),
        power_default_watts=number(power.get("default_limit_w")),
        power_min_watts=number(power.get("min_limit_w")),
        health=str(raw.get("health") or "unknown"),
        error=str(raw.get("error") or "none"),
        error_message=str(raw.get("error_message") or ""),
        timestamp=number(raw.get("timestamp")),
        age_seconds=number(raw.get("age_seconds")),
        saturated_seconds=number(raw.get("saturated_seconds")),
        temperature_thresholds=_numbers(thresholds.get("temperature_celsius")),
        memory_thresholds=_numbers(thresholds.get("memory_bytes")),
        saturation_seconds=number(saturation.get("seconds")),
        processes=_processes(raw.get("processes")),
        recovery_action=str(raw["recovery_action"]) if raw.get("recovery_action") else None,
        xid_errors=_xids(raw.get("xid_errors")),
    )


def _processes(raw: object) -> tuple[Process, ...] | None:
    if not isinstance(raw, list):
        return None
    return tuple(_process(one) for one in raw if isinstance(one, Mapping))


def _process(raw: Mapping[str, Any]) -> Process:
    used = number(raw.get("memory_used_bytes"))
    pid = raw.get("pid")
    return Process(
        pid=pid if isinstance(pid, int) else 0,
        name=str(raw.get("process") or ""),
        unit=str(raw.get("unit") or ""),
        memory_used_bytes=None if used is None else int(used),
        container=str(raw.get("container_name") or ""),
        pod_uid=str(raw.get("pod_uid") or ""),
    )


def _xids(raw: object) -> tuple[XidSeen, ...] | None:
    if not isinstance(raw, list):
        return None
    return tuple(
        XidSeen(
            xid=one["xid"],
            last_seen=number(one.get("last_timestamp")),
            action=str(one.get("action") or "unknown"),
            meaning=str(one.get("meaning") or ""),
            contested=str(one.get("contested") or ""),
        )
        for one in raw
        if isinstance(one, Mapping) and isinstance(one.get("xid"), int)
    )


def _mapping(raw: object) -> Mapping[str, Any]:
    return raw if isinstance(raw, Mapping) else {}


def number(raw: object) -> float | None:
    """A finite number of the exporter's JSON; None for anything else."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    try:
        found = float(raw)
    except OverflowError:
        return None
    # Every comparison with a NaN is false: it would pass for cool here and for hot there.
    return found if math.isfinite(found) else None


def _numbers(raw: object) -> dict[str, float]:
    found = {str(key): number(value) for key, value in _mapping(raw).items()}
    return {key: value for key, value in found.items() if value is not None}
