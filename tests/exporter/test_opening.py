"""Opening the driver: each card on its own, as when it is read; and closing it."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time

import pytest

from exporter.backends.base import Enumeration, Opened, Versions
from exporter.clock import SystemClock
from exporter.device_sampler import Schedule
from exporter.errors import BackendError, DeviceFault
from exporter.frames import ENUMERATION, BackendFrame, DevicesFrame, FaultFrame, SampleFrame
from exporter.readings import BackendReason, FaultReason
from exporter.roster import Roster
from exporter.sampling import Collector
from tests.exporter.fakes import FakeDevice, FakeEvents, info
from tests.exporter.fault_bench import FIRST_CODE, FaultBench
from tests.waiting import poll

FAST = Schedule(
    sample=0.02, processes=60, health=60, check=0.05, retry=0.05, retry_limit=0.1, opening=0.3
)


class FakeCard:
    """A card whose opening is a function that a test replaces."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.opened = 0
        self.device = FakeDevice(info(index))
        self.on_open = lambda: Opened(self.device, watched=True)

    def open(self) -> Opened:
        self.opened += 1
        return self.on_open()


class ApartBackend:
    """A backend that only counts its cards."""

    name = "nvml"

    def __init__(self, gpus: int) -> None:
        self.cards = tuple(FakeCard(index) for index in range(gpus))
        self.begun = self.closed = 0
        self.stuck = False
        self.events: FakeEvents | None = None
        self.on_versions = lambda: Versions("580.1", "13.0")

    def open(self) -> Enumeration:
        raise NotImplementedError

    def begin(self) -> Enumeration:
        self.begun += 1
        return Enumeration((), cards=self.cards, events=self.events, versions=self.on_versions)

    def has_stuck(self) -> bool:
        return self.stuck

    def fingerprint(self) -> object:
        return None

    def close(self) -> None:
        self.closed += 1


class Running:
    def __init__(self, gpus: int, schedule: Schedule = FAST) -> None:
        self.backend = ApartBackend(gpus)
        self.cards = self.backend.cards
        self.frames: list = []
        self.collector = Collector(self.backend, schedule, self.frames.append, SystemClock())

    def of(self, kind, uuid: str | None = None) -> list:
        frames = [one for one in list(self.frames) if isinstance(one, kind)]
        return frames if uuid is None else [one for one in frames if one.uuid == uuid]

    def last(self) -> DevicesFrame:
        return self.of(DevicesFrame)[-1]

    def uuids(self) -> list[str]:
        return [one.uuid for one in self.last().devices] if self.of(DevicesFrame) else []


@pytest.fixture
def running():
    made = Running(3)
    yield made
    made.collector.request_stop()
    assert made.collector.join(10)


def test_a_card_that_is_slow_to_open_is_a_timeout_and_adopted_without_opening_again(
    running, eventually
) -> None:
    come_back = threading.Event()
    slow = running.cards[0]
    slow.on_open = lambda: come_back.wait(30) and Opened(slow.device)
    running.collector.start()
    try:
        eventually(lambda: running.of(SampleFrame, "GPU-1") and running.of(SampleFrame, "GPU-2"))
        eventually(lambda: running.of(DevicesFrame) and running.last().failed)
        assert [(one.index, one.reason) for one in running.last().failed] == [
            (0, FaultReason.TIMEOUT)
        ]
        assert running.last().errors == ("timeout",)
        assert "opening GPU 0" in running.collector.running_since()
        assert ENUMERATION not in running.collector.running_since()
        before = len(running.of(SampleFrame, "GPU-1"))
        eventually(lambda: len(running.of(SampleFrame, "GPU-1")) > before + 20)
        openings = [one for one in threading.enumerate() if one.name.startswith("opening-")]
        assert len(openings) == 1
    finally:
        come_back.set()
    eventually(lambda: running.of(SampleFrame, "GPU-0"))
    assert running.uuids() == ["GPU-0", "GPU-1", "GPU-2"]
    assert running.last().failed == running.last().errors == ()
    assert (running.backend.begun, running.backend.closed, slow.opened) == (1, 0, 1)


def test_until_every_card_has_told_none_counts_as_missing(running, eventually) -> None:
    come_back = threading.Event()
    slow = running.cards[2]
    slow.on_open = lambda: come_back.wait(30) and Opened(slow.device)
    running.collector.start()
    try:
        eventually(lambda: len(running.uuids()) == 2)
        assert 2 in running.last().opening
    finally:
        come_back.set()
    eventually(lambda: len(running.uuids()) == 3)
    assert running.last().opening == ()


def test_while_one_card_is_being_opened_a_lost_one_opens_nothing_again(running, eventually) -> None:
    come_back = threading.Event()

    def lost() -> None:
        raise DeviceFault(FaultReason.LOST, "gone")

    slow = running.cards[0]
    slow.on_open = lambda: come_back.wait(30) and Opened(slow.device)
    running.cards[1].device.on_sample = lost
    running.collector.start()
    try:
        eventually(lambda: len(running.of(FaultFrame, "GPU-1")) >= 20)
        before = len(running.of(SampleFrame, "GPU-2"))
        eventually(lambda: len(running.of(SampleFrame, "GPU-2")) >= before + 20)
        assert not running.collector.wants_successor
    finally:
        come_back.set()
    # Another process is to open the driver again: this one reads on.
    eventually(lambda: running.collector.wants_successor)
    assert (running.backend.begun, running.backend.closed) == (1, 0)


def test_a_lost_card_closes_nothing_while_another_is_read_and_else_all(running, eventually) -> None:
    def lost() -> None:
        raise DeviceFault(FaultReason.LOST, "gone")

    good = running.cards[0].device.on_sample
    running.cards[0].device.on_sample = lost
    running.collector.start()
    eventually(lambda: running.collector.wants_successor)
    before = len(running.of(SampleFrame, "GPU-1"))
    eventually(lambda: len(running.of(SampleFrame, "GPU-1")) > before + 20)
    assert (running.backend.begun, running.backend.closed) == (1, 0)
    for card in running.cards[1:]:
        card.device.on_sample = lost
    eventually(lambda: running.backend.begun >= 2)
    for card in running.cards:
        card.device.on_sample = good
    eventually(lambda: running.collector.wants_successor is False and running.uuids())


def test_while_a_process_is_stuck_in_the_driver_no_successor_is_wanted(running, eventually) -> None:
    """It would leave one more behind, and the next one, too."""

    def lost() -> None:
        raise DeviceFault(FaultReason.LOST, "gone")

    running.backend.stuck = True
    running.cards[0].device.on_sample = lost
    running.collector.start()
    eventually(lambda: len(running.of(FaultFrame, "GPU-0")) >= 30)
    assert not running.collector.wants_successor
    assert (running.backend.begun, running.backend.closed) == (1, 0)
    running.backend.stuck = False
    eventually(lambda: running.collector.wants_successor)


def test_a_card_that_was_there_before_this_process_is_looked_for(eventually) -> None:
    running = Running(2)
    running.collector = Collector(
        running.backend, FAST, running.frames.append, SystemClock(), expected=("GPU-1", "GPU-7")
    )
    running.collector.start()
    try:
        eventually(lambda: running.collector.wants_successor)
        assert running.uuids() == ["GPU-0", "GPU-1"]
    finally:
        running.collector.request_stop()
        assert running.collector.join(10)


def test_a_lost_card_beside_a_slow_one_is_looked_for_less_and_less(eventually) -> None:
    running = Running(2, dataclasses.replace(FAST, retry_limit=60))
    slow, lost = running.cards

    def open_slowly() -> Opened:
        threading.Event().wait(0.25)
        raise DeviceFault(FaultReason.RESET_REQUIRED, "reset")

    def fail() -> Opened:
        threading.Event().wait(0.3)
        raise DeviceFault(FaultReason.LOST, "gone")

    slow.on_open, lost.on_open = open_slowly, fail
    running.collector.start()
    try:
        eventually(lambda: running.collector._pause >= 0.8)
    finally:
        running.collector.request_stop()
        assert running.collector.join(10)


def test_when_no_card_opens_the_worker_counts_as_stuck(running, eventually) -> None:
    come_back = threading.Event()
    for card in running.cards:
        card.on_open = lambda one=card: come_back.wait(30) and Opened(one.device)
    running.collector.start()
    try:
        eventually(lambda: ENUMERATION in running.collector.running_since())
        eventually(lambda: len(running.of(DevicesFrame)) and len(running.last().failed) == 3)
    finally:
        come_back.set()
    eventually(lambda: len(running.uuids()) == 3)
    assert ENUMERATION not in running.collector.running_since()


def test_what_failed_at_the_opening_is_read_again_and_only_that_card_is_asked(
    running, eventually
) -> None:
    card = running.cards[1]
    answers = [
        Opened(FakeDevice(info(1, name="")), errors=("unknown",), complete=False),
        Opened(card.device, errors=("timeout",), complete=False),
    ]
    card.on_open = lambda: answers.pop(0) if answers else Opened(card.device, watched=True)
    running.collector.start()
    eventually(lambda: card.opened == 3)
    eventually(lambda: running.of(DevicesFrame) and "GPU-1" in running.last().watched)
    errors = [word for one in running.of(DevicesFrame) for word in one.errors]
    assert errors == ["unknown", "timeout"]
    assert [one.name for one in running.last().devices][1] == info(1).name
    before = len(running.of(SampleFrame, "GPU-0"))
    eventually(lambda: len(running.of(SampleFrame, "GPU-0")) > before + 10)
    assert card.opened == 3
    assert (running.cards[0].opened, running.backend.begun) == (1, 1)


def test_a_reading_that_never_comes_is_not_asked_for_without_end(eventually) -> None:
    running = Running(1)
    card = running.cards[0]
    card.on_open = lambda: Opened(card.device, errors=("unknown",), complete=False)
    running.collector.start()
    try:
        eventually(lambda: card.opened >= 20)
        before = len(running.of(SampleFrame))
        eventually(lambda: len(running.of(SampleFrame)) > before + 30)
        assert card.opened == 20
    finally:
        running.collector.request_stop()
        assert running.collector.join(10)


def test_versions_that_hang_hold_up_no_card_and_that_fail_are_asked_again(
    running, eventually
) -> None:
    come_back = threading.Event()
    answers = [Versions(errors=("unknown",)), Versions("580.1", "13.0")]

    def ask() -> Versions:
        come_back.wait(30)
        return answers.pop(0)

    running.backend.on_versions = ask
    running.collector.start()
    try:
        eventually(lambda: len(running.uuids()) == 3)
        eventually(lambda: running.of(SampleFrame, "GPU-0"))
        assert "versions" in running.collector.running_since()
    finally:
        come_back.set()
    eventually(lambda: running.of(BackendFrame)[-1].driver_version == "580.1")
    assert [(one.collector, one.error) for one in running.of(FaultFrame)] == [
        (ENUMERATION, "unknown")
    ]
    assert running.backend.begun == 1


def test_a_card_that_finds_the_driver_gone_has_it_opened_again(running, eventually) -> None:
    card = running.cards[2]

    def gone() -> Opened:
        raise BackendError(BackendReason.DRIVER_NOT_LOADED, "unloaded")

    card.on_open = gone
    running.collector.start()
    eventually(lambda: any(not one.up for one in running.of(BackendFrame)))
    card.on_open = lambda: Opened(card.device)
    eventually(lambda: len(running.uuids()) == 3)
    assert running.of(BackendFrame)[-1].up
    assert running.backend.begun >= 2


def test_a_bug_in_opening_a_card_shows_and_hides_no_other(running, eventually) -> None:
    def bug() -> Opened:
        raise KeyError("index")

    running.cards[0].on_open = bug
    running.collector.start()
    eventually(lambda: running.of(SampleFrame, "GPU-1") and running.of(FaultFrame))
    fault = running.of(FaultFrame)[0]
    assert (fault.collector, fault.error) == (ENUMERATION, "bug")
    assert [one.reason for one in running.last().failed] == [FaultReason.UNKNOWN]


def test_an_event_source_that_fails_to_open_is_tried_again_and_does_not_hold_up_cards(
    running, eventually
) -> None:
    running.backend.events = FakeEvents()
    blocked = threading.Event()
    running.backend.events.open = lambda: blocked.wait(30)
    running.collector.start()
    try:
        eventually(lambda: running.of(SampleFrame, "GPU-2"))
        eventually(lambda: "events" in running.collector.running_since())
    finally:
        blocked.set()
    eventually(lambda: running.backend.events.waits)


@pytest.fixture
def bench(tmp_path):
    made = FaultBench(tmp_path, 3)
    yield made
    made.stop()


def test_what_could_not_be_read_of_a_card_comes_later_and_is_counted(bench) -> None:
    for function in ("nvmlDeviceGetName", "nvmlDeviceRegisterEvents"):
        bench.driver.fail(function, gpu=0, error=FIRST_CODE)
    bench.service.start()
    poll(lambda: bench.well(1, 2) and bench.views()[0].up, "all are read")
    poll(lambda: bench.errors().get(f"nvml_{FIRST_CODE}", 0) >= 4, "both are counted, again too")
    assert bench.views()[0].info.name == ""
    assert bench.views()[0].xids is None
    bench.driver.clear()
    poll(lambda: bench.well(0, 1, 2), "what was missing is there")
    bench.driver.xid(0, 48)
    poll(lambda: any(one.xid == 48 and one.count for one in bench.views()[0].xids or ()), "an Xid")


@pytest.mark.parametrize("function", ["nvmlShutdown", "nvmlEventSetFree"])
def test_a_hang_in_letting_go_of_the_driver_ends_the_parent_all_the_same(
    bench, caplog, function
) -> None:
    bench.service.start()
    poll(lambda: bench.well(0, 1, 2), "all are read")
    worker = bench.service._supervisor._worker
    bench.driver.hang(function)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        bench.service.stop()
    assert time.monotonic() - started < 15
    assert f"worker {worker.pid} is stuck in a driver call" in caplog.text
    os.kill(worker.pid, 0)
    bench.driver.clear()
    # It was forgotten: nobody else waits for it.
    poll(
        lambda: os.waitpid(worker.pid, os.WNOHANG)[0] == worker.pid,
        "it ends when its call comes back",
    )


def test_versions_that_come_when_the_driver_is_gone_do_not_say_that_it_is_there() -> None:
    frames: list = []
    backend = ApartBackend(2)
    roster = Roster("nvml", backend.begin(), frames.append, SystemClock(), 0.0, 5.0)
    roster.gone(0, BackendError(BackendReason.DRIVER_NOT_LOADED, "unloaded"))
    roster.told(Versions("580.1", "13.0"))
    roster.opened(1, Opened(backend.cards[1].device))
    assert [one.up for one in frames] == [False]
