"""Frames: what the worker tells its parent, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from exporter.errors import FrameError
from exporter.readings import (
    BackendReason,
    DeviceHealth,
    DeviceInfo,
    FaultReason,
    MigInstance,
    NvLink,
    ProcessUse,
    Sample,
    Spans,
)

ENUMERATION = "enumeration"
"""The collector that opens the driver and its cards."""


@dataclass(frozen=True, slots=True)
class BackendFrame:
    """The backend opened, or why it could not."""

    backend: str
    up: bool
    reason: BackendReason | None = None
    message: str = ""
    driver_version: str = ""
    cuda_version: str = ""


@dataclass(frozen=True, slots=True)
class FailedDevice:
    """A GPU that the driver counts but does not open; only its index is known."""

    index: int
    reason: FaultReason
    message: str = ""


@dataclass(frozen=True, slots=True)
class DevicesFrame:
    """An enumeration: what is not named here is not there, unless some are still being opened.

    Attributes:
        watched: uuids of the GPUs whose Xid errors are told of.
        opening: indices of those that are still being opened: what is missing may be one of them.
        errors: one word for each thing that failed since the last such frame.
    """

    devices: tuple[DeviceInfo, ...]
    failed: tuple[FailedDevice, ...] = ()
    duration_seconds: float = 0.0
    watched: tuple[str, ...] = ()
    opening: tuple[int, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SampleFrame:
    """A reading, the moment it was begun (both scales), and what could not be read.

    `utilization` is how it went since the last sample, where the driver keeps samples of its own.
    """

    uuid: str
    time: float
    monotonic: float
    sample: Sample
    duration_seconds: float = 0.0
    errors: tuple[str, ...] = ()
    utilization: Spans | None = None


@dataclass(frozen=True, slots=True)
class ProcessesFrame:
    """Who uses a GPU; `count` counts those in the remainder too. None where it cannot tell."""

    uuid: str
    monotonic: float
    processes: tuple[ProcessUse, ...] | None = None
    count: int | None = None
    duration_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ErrorsFrame:
    """One word for each reading of a collection that failed, where its own frame has none."""

    uuid: str
    collector: str
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HealthFrame:
    """How well a GPU is, and one word for each reading of it that failed."""

    uuid: str
    monotonic: float
    health: DeviceHealth
    duration_seconds: float = 0.0
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class XidFrame:
    """One Xid error and when it was heard of (epoch)."""

    uuid: str
    time: float
    xid: int


@dataclass(frozen=True, slots=True)
class FaultFrame:
    """A collection that failed; `uuid` is empty when it is not one of a GPU.

    `reason` is set when the GPU itself is at fault, else only this collection failed.
    """

    uuid: str
    monotonic: float
    collector: str
    error: str
    reason: FaultReason | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class HeartbeatFrame:
    """The worker is alive.

    Attributes:
        running: since when (monotonic) each call has been going on.
        wants_successor: the driver is to be opened again, and cards are read that must not wait for it.
    """

    monotonic: float
    running: Mapping[str, float] = field(default_factory=dict)
    wants_successor: bool = False


@dataclass(frozen=True, slots=True)
class LogFrame:
    """A line for the parent's log, so that there is one log in one format."""

    level: int
    message: str


Frame: TypeAlias = (
    BackendFrame
    | DevicesFrame
    | SampleFrame
    | ProcessesFrame
    | ErrorsFrame
    | HealthFrame
    | XidFrame
    | FaultFrame
    | HeartbeatFrame
    | LogFrame
)

_KINDS: dict[str, type[Any]] = {
    "backend": BackendFrame,
    "devices": DevicesFrame,
    "sample": SampleFrame,
    "processes": ProcessesFrame,
    "errors": ErrorsFrame,
    "health": HealthFrame,
    "xid": XidFrame,
    "fault": FaultFrame,
    "heartbeat": HeartbeatFrame,
    "log": LogFrame,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode(frame: Frame) -> bytes:
    """Write a frame as one line; what is None is left out."""
    plain = _plain(frame)
    return json.dumps([_NAMES[type(frame)], plain], separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Frame:
    """Read a line that `encode` wrote.

    Raises:
        FrameError: the line is not such a frame.
    """
    try:
        kind, body = json.loads(line)
        frame: Frame = _build(_KINDS[kind], body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FrameError(f"not a frame: {line[:80]!r} ({error})") from error
    return frame


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    slots = getattr(type(value), "__slots__", None)
    if slots is None or isinstance(value, str):
        return value
    named = ((name, getattr(value, name)) for name in slots)
    return {name: _plain(item) for name, item in named if item is not None}


def _many(kind: type[Any]) -> Callable[[Any], Any]:
    return lambda items: tuple(_build(kind, item) for item in items)


def _one(kind: type[Any]) -> Callable[[Any], Any]:
    return lambda item: _build(kind, item)


def _spans(items: Any) -> Spans:
    return tuple((seconds, value) for seconds, value in items)


# What JSON does not carry by itself: tuples, enums and nested values.
_NESTED: dict[type[Any], dict[str, Callable[[Any], Any]]] = {
    BackendFrame: {"reason": BackendReason},
    FailedDevice: {"reason": FaultReason},
    DevicesFrame: {
        "devices": _many(DeviceInfo),
        "failed": _many(FailedDevice),
        "watched": tuple,
        "opening": tuple,
        "errors": tuple,
    },
    SampleFrame: {"sample": _one(Sample), "errors": tuple, "utilization": _spans},
    Sample: {"clock_events": tuple, "fan_speed_ratios": tuple},
    ProcessesFrame: {"processes": _many(ProcessUse)},
    ErrorsFrame: {"errors": tuple},
    HealthFrame: {"health": _one(DeviceHealth), "errors": tuple},
    DeviceHealth: {
        "nvlinks": _many(NvLink),
        "mig_instances": _many(MigInstance),
    },
    FaultFrame: {"reason": FaultReason},
}


def _build(kind: type[Any], body: dict[str, Any]) -> Any:
    for name, convert in _NESTED.get(kind, {}).items():
        if name in body:
            body[name] = convert(body[name])
    if kind is DeviceInfo:
        body.setdefault("index", None)
    if kind is ProcessUse:
        body.setdefault("pid", None)
    return kind(**body)
