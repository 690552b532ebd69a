from __future__ import annotations

import pytest

from exporter.errors import FrameError
from exporter.frames import (
    BackendFrame,
    DevicesFrame,
    FailedDevice,
    FaultFrame,
    HealthFrame,
    HeartbeatFrame,
    LogFrame,
    ProcessesFrame,
    SampleFrame,
    XidFrame,
    decode,
    encode,
)
from exporter.readings import (
    BackendReason,
    DeviceHealth,
    DeviceInfo,
    FaultReason,
    ProcessUse,
    Sample,
)
from tests.exporter.fakes import health, info, sample

FRAMES = [
    BackendFrame("nvml", up=True, driver_version="580", cuda_version="13.0"),
    BackendFrame("nvml", up=False, reason=BackendReason.NO_PERMISSION, message="no"),
    DevicesFrame((info(0), DeviceInfo(None, "GPU-x")), (FailedDevice(1, FaultReason.LOST),), 0.1),
    SampleFrame("GPU-0", 1.5, 2.5, sample(), 0.1, ("timeout",)),
    SampleFrame("GPU-0", 1.5, 2.5, Sample(), 0.1),
    ProcessesFrame("GPU-0", 2.5, (ProcessUse(7, "a", "b.service", "", 1), ProcessUse(None)), 9),
    ProcessesFrame("GPU-0", 2.5),
    HealthFrame("GPU-0", 2.5, health(), 0.1, ("timeout",)),
    HealthFrame("GPU-0", 2.5, DeviceHealth(), 0.1),
    FaultFrame("GPU-0", 1.0, "sample", "lost", FaultReason.LOST, "gone"),
    FaultFrame("GPU-0", 1.0, "processes", "timeout"),
    DevicesFrame((info(0),), watched=("GPU-0",), opening=(1, 2), errors=("timeout",)),
    XidFrame("GPU-0", 1700000000.5, 79),
    HeartbeatFrame(1.0, {"GPU-0": 0.5}),
    LogFrame(20, "grüße\nzeile"),
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_survives_the_pipe(frame) -> None:
    line = encode(frame)
    assert line.count(b"\n") == 1
    assert decode(line) == frame


@pytest.mark.parametrize(
    "line",
    [b"", b"hello", b"[]", b'["nothing",{}]', b'["sample",{"uuid":1}]', b'["log",[]]', b"\xff"],
)
def test_anything_else_is_an_error(line) -> None:
    with pytest.raises(FrameError):
        decode(line)
