"""The worker's threads, in this process, over scripted GPUs."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from exporter.backends.base import HealthResult, ProcessesResult, SampleResult, XidEvent
from exporter.clock import SystemClock
from exporter.device_sampler import Schedule
from exporter.errors import BackendError, DeviceFault, ReadingError
from exporter.frames import (
    BackendFrame,
    DevicesFrame,
    ErrorsFrame,
    FaultFrame,
    HealthFrame,
    ProcessesFrame,
    SampleFrame,
    XidFrame,
)
from exporter.readings import BackendReason, FaultReason, ProcessUse
from exporter.sampling import Collector
from tests.exporter.fakes import FakeBackend, FakeDevice, FakeEvents, health, info, sample

FAST = Schedule(sample=0.02, processes=0.05, health=0.05, check=0.05, retry=0.1, retry_limit=0.2)


class Running:
    def __init__(self, gpus: int = 4, schedule: Schedule = FAST) -> None:
        self.devices = [FakeDevice(info(index)) for index in range(gpus)]
        self.backend = FakeBackend(*self.devices)
        self.frames: list = []
        self.collector = Collector(self.backend, schedule, self.frames.append, SystemClock())

    def of(self, kind, uuid: str | None = None) -> list:
        frames = [one for one in list(self.frames) if isinstance(one, kind)]
        return frames if uuid is None else [one for one in frames if one.uuid == uuid]


@pytest.fixture
def running():
    made = Running()
    yield made
    made.collector.request_stop()
    assert made.collector.join(10)


def test_every_gpu_is_sampled_with_its_processes(running, eventually) -> None:
    running.devices[0].on_processes = lambda: [
        ProcessUse(pid, memory_used_bytes=pid) for pid in range(1, 301)
    ]
    running.collector.start()
    for index in range(4):
        eventually(lambda i=index: len(running.of(SampleFrame, f"GPU-{i}")) >= 2)
        eventually(lambda i=index: running.of(ProcessesFrame, f"GPU-{i}"))
    frame = running.of(ProcessesFrame, "GPU-0")[0]
    assert frame.count == 300
    assert len(frame.processes) == 129
    assert sum(one.memory_used_bytes for one in frame.processes) == sum(range(301))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeviceFault(FaultReason.LOST, "gone"), FaultReason.LOST),
        (DeviceFault(FaultReason.RESET_REQUIRED, "reset"), FaultReason.RESET_REQUIRED),
        (ZeroDivisionError("bug"), FaultReason.UNKNOWN),
        (ReadingError("timeout"), None),
    ],
)
def test_one_gpu_that_raises_never_stops_the_others(running, eventually, error, reason) -> None:
    def fail():
        raise error

    running.devices[1].on_sample = fail
    running.collector.start()
    eventually(lambda: running.of(FaultFrame, "GPU-1"))
    assert running.of(FaultFrame, "GPU-1")[0].reason == reason
    for uuid in ("GPU-0", "GPU-2", "GPU-3"):
        eventually(lambda u=uuid: len(running.of(SampleFrame, u)) >= 3)
    assert not running.of(SampleFrame, "GPU-1")


def test_one_gpu_that_hangs_never_stops_the_others_nor_makes_them_reopen(
    running, eventually
) -> None:
    release = threading.Event()

    def hang() -> SampleResult:
        release.wait(30)
        return SampleResult(sample())

    def lost() -> SampleResult:
        raise DeviceFault(FaultReason.LOST, "gone")

    running.devices[1].on_sample = hang
    running.devices[2].on_sample = lost
    try:
        running.collector.start()
        eventually(lambda: "GPU-1" in running.collector.running.since())
        # The lost one makes it want to open again, which must not wait for the one that hangs.
        eventually(lambda: len(running.of(FaultFrame, "GPU-2")) >= 60)
        before = len(running.of(SampleFrame, "GPU-0"))
        eventually(lambda: len(running.of(SampleFrame, "GPU-0")) >= before + 20)
        assert running.backend.closed == 0
    finally:
        release.set()
    eventually(lambda: running.of(SampleFrame, "GPU-1"))


def test_a_lost_gpu_makes_it_open_again_until_it_is_back(running, eventually) -> None:
    good = running.devices[1].on_sample

    def lost() -> SampleResult:
        raise DeviceFault(FaultReason.LOST, "gone")

    running.devices[1].on_sample = lost
    running.collector.start()
    eventually(lambda: running.backend.opened >= 3)
    running.devices[1].on_sample = good
    eventually(lambda: running.of(SampleFrame, "GPU-1"))
    assert running.backend.closed >= 2


def test_a_backend_that_cannot_open_says_why_and_is_tried_again(running, eventually) -> None:
    running.backend.error = BackendError(BackendReason.DRIVER_NOT_LOADED, "load it")
    running.collector.start()
    eventually(lambda: running.of(BackendFrame))
    assert running.of(BackendFrame)[0].reason is BackendReason.DRIVER_NOT_LOADED
    running.backend.error = None
    eventually(lambda: running.of(SampleFrame, "GPU-3"))
    assert running.of(BackendFrame)[-1].up


def test_a_driver_that_goes_away_is_opened_again(running, eventually) -> None:
    good = running.devices[0].on_sample

    def gone() -> SampleResult:
        raise BackendError(BackendReason.DRIVER_NOT_LOADED, "unloaded")

    running.devices[0].on_sample = gone
    running.collector.start()
    eventually(lambda: running.of(FaultFrame, "GPU-0"))
    assert running.of(FaultFrame, "GPU-0")[0].reason is None
    running.devices[0].on_sample = good
    eventually(lambda: running.backend.opened >= 2)
    eventually(lambda: running.of(SampleFrame, "GPU-0"))


def test_devices_that_come_or_go_are_enumerated_again(running, eventually) -> None:
    running.collector.start()
    eventually(lambda: running.of(SampleFrame, "GPU-3"))
    running.backend.devices = running.devices[:3]
    running.backend.mark = "changed"
    eventually(lambda: len(running.of(DevicesFrame)[-1].devices) == 3)


def test_a_process_list_that_fails_leaves_the_gpu_sampled(running, eventually) -> None:
    def fail() -> None:
        raise ReadingError("timeout")

    running.devices[0].on_processes = fail
    running.collector.start()
    eventually(lambda: running.of(FaultFrame, "GPU-0"))
    frame = running.of(FaultFrame, "GPU-0")[0]
    assert (frame.collector, frame.error, frame.reason) == ("processes", "timeout", None)
    eventually(lambda: len(running.of(SampleFrame, "GPU-0")) >= 3)


def test_what_cannot_be_read_of_processes_is_told_beside_them(running, eventually) -> None:
    found = ProcessesResult((ProcessUse(7, memory_used_bytes=5),), ("no_permission",))
    running.devices[0].on_processes = lambda: found
    running.collector.start()
    eventually(lambda: running.of(ProcessesFrame, "GPU-0"))
    assert running.of(ProcessesFrame, "GPU-0")[0].count == 1
    frame = running.of(ErrorsFrame, "GPU-0")[0]
    assert (frame.collector, frame.errors) == ("processes", ("no_permission",))


def test_processes_are_looked_at_again_at_once_and_then_seldom(eventually) -> None:
    """From its second look on a driver tells how busy each was."""
    running = Running(1, dataclasses.replace(FAST, processes=3600))
    running.collector.start()
    try:
        eventually(lambda: len(running.of(ProcessesFrame)) >= 2)
        samples = len(running.of(SampleFrame))
        eventually(lambda: len(running.of(SampleFrame)) >= samples + 3)
    finally:
        running.collector.request_stop()
        assert running.collector.join(10)
    assert len(running.of(ProcessesFrame)) == 2


def test_health_is_read_beside_and_may_fail_alone(running, eventually) -> None:
    def fail() -> None:
        raise ReadingError("timeout")

    running.devices[0].on_health = fail
    running.collector.start()
    eventually(lambda: len(running.of(HealthFrame, "GPU-1")) >= 2)
    eventually(lambda: running.of(FaultFrame, "GPU-0"))
    frame = running.of(FaultFrame, "GPU-0")[0]
    assert (frame.collector, frame.error, frame.reason) == ("health", "timeout", None)
    eventually(lambda: len(running.of(SampleFrame, "GPU-0")) >= 3)


def test_a_gpu_that_cannot_tell_its_processes_says_so(running, eventually) -> None:
    running.devices[0].on_processes = lambda: None
    running.collector.start()
    eventually(lambda: running.of(ProcessesFrame, "GPU-0"))
    assert running.of(ProcessesFrame, "GPU-0")[0].processes is None


def test_what_the_driver_tells_is_passed_on_beside_the_samples(running, eventually) -> None:
    running.backend.events = FakeEvents()
    running.collector.start()
    eventually(lambda: running.backend.events.waits)
    assert running.of(DevicesFrame)[0].watched == tuple(f"GPU-{i}" for i in range(4))
    running.backend.events.queue.put(XidEvent("GPU-2", 79))
    eventually(lambda: running.of(XidFrame))
    assert [(one.uuid, one.xid) for one in running.of(XidFrame)] == [("GPU-2", 79)]


@pytest.mark.parametrize("error", [ReadingError("unknown"), ZeroDivisionError("bug")])
def test_a_wait_that_fails_is_counted_and_made_again(running, eventually, error) -> None:
    running.backend.events = FakeEvents()
    running.backend.events.queue.put(error)
    running.backend.events.queue.put(XidEvent("GPU-0", 48))
    running.collector.start()
    eventually(lambda: running.of(XidFrame))
    (fault,) = running.of(FaultFrame)
    assert (fault.uuid, fault.collector, fault.reason) == ("", "events", None)
    assert running.backend.opened == 1


def test_events_that_find_the_driver_gone_have_it_opened_again(running, eventually) -> None:
    running.backend.events = FakeEvents()
    running.backend.events.queue.put(BackendError(BackendReason.DRIVER_NOT_LOADED, "gone"))
    running.collector.start()
    eventually(lambda: running.backend.opened >= 2)
    assert running.backend.events.closed >= 1
    running.backend.events.queue.put(XidEvent("GPU-0", 48))
    eventually(lambda: running.of(XidFrame))


def test_a_sample_may_bring_xids(running, eventually) -> None:
    first = iter([SampleResult(sample(), xids=(31, 79))])
    running.devices[0].on_sample = lambda: next(first, SampleResult(sample()))
    running.collector.start()
    eventually(lambda: len(running.of(SampleFrame, "GPU-0")) >= 3)
    assert [one.xid for one in running.of(XidFrame, "GPU-0")] == [31, 79]


@pytest.mark.parametrize("by_sample", [False, True])
def test_after_an_xid_the_health_of_that_gpu_is_not_waited_for(eventually, by_sample) -> None:
    running = Running(2, dataclasses.replace(FAST, health=3600))
    running.backend.events = FakeEvents()
    running.collector.start()
    try:
        for uuid in ("GPU-0", "GPU-1"):
            eventually(lambda uuid=uuid: running.of(HealthFrame, uuid))
        running.devices[1].on_health = lambda: HealthResult(health(recovery_action="reset"))
        if by_sample:
            first = iter([SampleResult(sample(), xids=(154,))])
            running.devices[1].on_sample = lambda: next(first, SampleResult(sample()))
        else:
            running.backend.events.queue.put(XidEvent("GPU-1", 154))
        eventually(lambda: len(running.of(HealthFrame, "GPU-1")) >= 2)
        # The driver may make up its mind a moment after the Xid: it is asked again.
        eventually(lambda: len(running.of(HealthFrame, "GPU-1")) >= 4)
    finally:
        running.collector.request_stop()
        assert running.collector.join(10)
    assert running.of(HealthFrame, "GPU-1")[-1].health.recovery_action == "reset"
    assert len(running.of(HealthFrame, "GPU-0")) == 1


def test_a_bug_in_opening_is_a_fault_and_is_tried_again(running, eventually) -> None:
    running.backend.error = KeyError("index")
    running.collector.start()
    eventually(lambda: running.of(BackendFrame))
    assert running.of(BackendFrame)[0].reason is BackendReason.UNKNOWN
    running.backend.error = None
    eventually(lambda: running.of(SampleFrame, "GPU-0"))


def test_a_gpu_that_vanished_is_looked_for_again(running, eventually) -> None:
    running.collector.start()
    eventually(lambda: running.of(SampleFrame, "GPU-3"))
    running.backend.devices = running.devices[:3]
    running.backend.mark = "changed"
    eventually(lambda: len(running.of(DevicesFrame)[-1].devices) == 3)
    running.backend.devices = tuple(running.devices)
    eventually(lambda: len(running.of(DevicesFrame)[-1].devices) == 4)
