"""The immutable picture of all GPUs that a scrape renders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.policy import SaturationPolicy, Thresholds, Verdict
from exporter.readings import (
    BackendReason,
    DeviceHealth,
    DeviceInfo,
    FaultReason,
    ProcessUse,
    Sample,
)
from exporter.xid_ledger import XidCount


@dataclass(frozen=True, slots=True)
class GpuView:
    """One GPU. What is too old is None, as if it had never been read.

    Attributes:
        up: it answers.
        fault: why it does not; None also when the backend as a whole is down.
        sampled_at: time (epoch) of the last sample, also of one that is too old to be shown.
        age_seconds: of that sample, when the snapshot was taken.
        process_count: all processes, also those summed up as `other`.
        health_age_seconds: of `health`, which is read more seldom than the sample.
        xids: Xid errors so far, also of a GPU that is down; None when nobody tells of them.
    """

    info: DeviceInfo
    up: bool
    fault: FaultReason | None
    fault_message: str
    sample: Sample | None
    sampled_at: float | None
    age_seconds: float | None
    processes: tuple[ProcessUse, ...] | None
    process_count: int | None
    health: DeviceHealth | None
    health_age_seconds: float | None
    xids: tuple[XidCount, ...] | None
    busy_seconds: float | None
    saturated_seconds: float | None
    thresholds: Thresholds
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class BackendView:
    """The way to the GPUs; `up` is None before it was first tried."""

    name: str
    up: bool | None = None
    reason: BackendReason | None = None
    message: str = ""
    driver_version: str = ""
    cuda_version: str = ""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The worker processes.

    Attributes:
        running_seconds: for how long the longest call that has not come back has been going on.
        restarts: replacements since the start.
        abandoned: workers stuck in the driver and left alone.
    """

    running_seconds: float = 0.0
    restarts: int = 0
    abandoned: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment.

    Attributes:
        taken_at: time (epoch).
        not_ready: why there is no complete picture yet; empty when there is.
        durations: seconds of the last collection, by collector, the slowest GPU's.
        errors: failures since the start, by (collector, reason).
    """

    taken_at: float
    backend: BackendView
    saturation: SaturationPolicy
    worker: WorkerView = field(default_factory=WorkerView)
    gpus: tuple[GpuView, ...] = ()
    visible: int | None = None
    expected: int | None = None
    not_ready: str = ""
    durations: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
