"""A second worker opens the driver while the first one reads on, and takes over when it reads as much."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from exporter.frames import (
    BackendFrame,
    DevicesFrame,
    FaultFrame,
    HeartbeatFrame,
    LogFrame,
    SampleFrame,
    XidFrame,
)
from exporter.readings import BackendReason, FaultReason
from tests.exporter.fakes import info, sample
from tests.exporter.supervisor_stage import LIMITS, FakeWorker, Stage

UP = BackendFrame("nvml", up=True, driver_version="580.1")
WANTS = HeartbeatFrame(0, wants_successor=True)
CALM = HeartbeatFrame(0)


def read(uuid: str) -> SampleFrame:
    return SampleFrame(uuid, 0, 0, sample(), utilization=((1.0, 0.5),))


def found(*indices: int, **more) -> DevicesFrame:
    return DevicesFrame(tuple(info(index) for index in indices), **more)


def tell(worker: FakeWorker, *frames) -> None:
    worker.frames.extend(frames)


class Handing(Stage):
    """Two cards, of which one got lost, and a worker that wants another to open the driver."""

    def __init__(self) -> None:
        super().__init__()
        self.run(0.5)
        self.first = self.workers[0]
        tell(self.first, UP, found(0, 1), read("GPU-0"))
        tell(self.first, FaultFrame("GPU-1", 0, "sample", "lost", FaultReason.LOST), WANTS)
        self.run(0.5)

    @property
    def second(self) -> FakeWorker:
        return self.workers[1]


@pytest.fixture
def stage() -> Handing:
    return Handing()


def test_the_first_worker_is_read_until_the_second_reads_as_much(stage) -> None:
    assert len(stage.workers) == 2
    tell(stage.second, UP, found(1, opening=(0,)), read("GPU-1"))
    stage.run(1)
    tell(stage.second, found(0, 1))
    stage.run(1)
    assert not stage.first.asked
    tell(stage.first, read("GPU-0"))
    tell(stage.second, read("GPU-0"))
    stage.sink.frames.clear()
    stage.run(0.5)
    assert stage.first.asked
    assert not stage.first.readable
    assert stage.sink.frames == [
        read("GPU-0"),
        UP,
        found(0, 1),
        # What was counted by the first worker until now must not be counted twice.
        dataclasses.replace(read("GPU-1"), utilization=None),
        dataclasses.replace(read("GPU-0"), utilization=None),
    ]
    tell(stage.second, read("GPU-1"))
    stage.run(0.5)
    assert stage.sink.frames[-1] == read("GPU-1")
    assert (stage.sink.worker.restarts, stage.sink.worker.abandoned) == (0, 0)
    assert stage.sink.errors == []


def test_a_card_that_the_second_does_not_find_lost_any_more_is_up_only_then(stage) -> None:
    lost = FaultFrame("GPU-1", 0, "sample", "lost", FaultReason.LOST)
    tell(stage.second, UP, found(0, 1), lost, LogFrame(30, "told at once"), read("GPU-1"))
    stage.sink.frames.clear()
    stage.run(1)
    assert stage.sink.frames == [LogFrame(30, "told at once")]
    tell(stage.second, read("GPU-0"))
    stage.run(0.5)
    assert lost not in stage.sink.frames


def test_a_second_that_hangs_is_given_up_and_the_first_reads_on(stage) -> None:
    stage.second.obeys = False
    tell(stage.second, HeartbeatFrame(0, {"enumeration": stage.clock.now}))
    stage.run(10, read("GPU-0"), to=stage.first)
    assert stage.sink.worker.running_seconds >= 9
    stage.run(40, read("GPU-0"), to=stage.first)
    assert stage.second.asked
    assert not stage.first.asked
    assert stage.sink.frames[-1] == read("GPU-0")
    assert stage.sink.worker.abandoned == 1
    assert ("worker", "stuck") in stage.sink.errors
    # One more would hang, too, and there must be a place left for when the first one ends.
    stage.run(100, WANTS, to=stage.first)
    assert len(stage.workers) == 2
    stage.second.code = 0
    stage.run(1, WANTS, to=stage.first)
    assert len(stage.workers) == 3


def test_a_second_that_reads_less_and_would_open_again_itself_is_not_waited_for(stage) -> None:
    tell(stage.second, UP, found(1), read("GPU-1"), WANTS)
    stage.run(LIMITS.settle - 1, read("GPU-0"), to=stage.first)
    assert not stage.second.asked
    stage.run(2, read("GPU-0"), to=stage.first)
    assert stage.second.asked
    assert not stage.first.asked


def test_a_second_that_cannot_open_the_driver_is_told_of(stage) -> None:
    reason = BackendReason.DRIVER_NOT_LOADED
    tell(stage.second, BackendFrame("nvml", up=False, reason=reason), read("GPU-0"))
    stage.sink.frames.clear()
    stage.run(1)
    assert stage.sink.frames == []
    assert stage.sink.errors == [("enumeration", str(reason))]
    assert not stage.first.asked


def test_a_first_that_does_not_end_after_it_is_stuck(stage) -> None:
    stage.first.obeys = False
    tell(stage.second, UP, found(0, 1), read("GPU-0"), read("GPU-1"), CALM)
    stage.run(1)
    assert stage.sink.worker.abandoned == 0
    stage.run(LIMITS.grace, read("GPU-0"), CALM)
    assert stage.sink.worker.abandoned == 1
    assert stage.sink.frames[-2:] == [read("GPU-0"), CALM]


def test_a_first_that_tells_nothing_any_more_reads_nothing_that_the_second_would_have_to(
    stage,
) -> None:
    """It was stopped, or waits for something: what it read last is no reason to wait for it."""
    stage.first.obeys = False
    tell(stage.second, UP, found(1), read("GPU-1"), WANTS)
    stage.run(LIMITS.stuck_call + 0.5, CALM, to=stage.second)
    assert stage.first.asked
    assert not stage.second.asked
    assert stage.sink.frames[-1] == CALM


def test_a_card_that_hangs_the_first_is_not_waited_for(stage) -> None:
    hung = HeartbeatFrame(0, {"GPU-0": stage.clock.now})
    tell(stage.second, UP, found(1), read("GPU-1"))
    stage.run(LIMITS.stuck_call - 1, hung, to=stage.first)
    assert not stage.first.asked
    tell(stage.second, read("GPU-1"))
    stage.run(2, hung, to=stage.first)
    assert stage.first.asked
    assert not stage.second.asked


def test_when_the_first_ends_the_second_takes_over_as_it_is(stage) -> None:
    tell(stage.second, UP)
    stage.first.code = 1
    stage.run(0.5)
    tell(stage.second, found(0))
    stage.run(0.5)
    assert stage.sink.frames[-2:] == [UP, found(0)]
    assert len(stage.workers) == 2


def test_when_the_first_ends_and_the_second_has_not_opened_the_driver_all_are_down(stage) -> None:
    gone = BackendFrame("nvml", up=False, reason=BackendReason.DRIVER_NOT_LOADED)
    tell(stage.second, UP, found(0, 1), read("GPU-1"), gone)
    stage.run(0.5)
    stage.sink.frames.clear()
    stage.first.code = 1
    stage.run(0.5)
    # What it had read of cards before it lost the driver is not how they are.
    assert stage.sink.frames == [gone]


def test_a_second_that_lost_the_driver_reads_nothing_until_it_has_read_it_again(stage) -> None:
    gone = BackendFrame("nvml", up=False, reason=BackendReason.DRIVER_NOT_LOADED)
    tell(stage.second, UP, found(1), read("GPU-0"), gone, UP)
    stage.run(0.5)
    tell(stage.second, found(0, 1))
    stage.run(0.5)
    assert not stage.first.asked
    tell(stage.second, read("GPU-0"))
    stage.run(0.5)
    assert stage.first.asked


def test_a_card_that_the_second_found_and_does_not_any_more_is_not_told_of_as_read(stage) -> None:
    tell(stage.second, UP, found(0, 1), read("GPU-1"), UP, found(0), read("GPU-0"))
    stage.sink.frames.clear()
    stage.run(0.5)
    assert stage.sink.frames[-3:-1] == [UP, found(0)]
    assert stage.sink.frames[-1].uuid == "GPU-0"


def test_a_card_that_answered_after_a_fault_is_not_told_of_as_down(stage) -> None:
    lost = FaultFrame("GPU-0", 0, "health", "lost", FaultReason.LOST)
    tell(stage.second, UP, found(0), read("GPU-0"), lost, read("GPU-0"))
    stage.run(0.5)
    assert stage.first.asked
    about = [one for one in stage.sink.frames if getattr(one, "uuid", "") == "GPU-0"]
    assert isinstance(about[-1], SampleFrame)


def test_while_a_card_stays_lost_the_pauses_double_and_after_calm_begin_anew(stage) -> None:
    started: list[float] = []

    def serve(seconds: float, beat: HeartbeatFrame) -> None:
        end = stage.clock.now + seconds
        while stage.clock.now < end:
            before = len(stage.workers)
            tell(stage.workers[-1], UP, found(0), read("GPU-0"), beat)
            stage.run(0.25)
            started.extend([stage.clock.now] * (len(stage.workers) - before))

    serve(400, WANTS)
    gaps = [round(after - before) for before, after in itertools.pairwise(started)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= LIMITS.handover_limit
    assert len(started) < 12
    serve(LIMITS.calm + 1, CALM)
    del started[:]
    serve(70, WANTS)
    assert len(started) >= 2


def test_a_card_that_takes_long_to_fail_is_not_tried_more_often_than_one_that_fails_at_once(
    stage,
) -> None:
    started: list[float] = []
    for _ in range(16):
        before = len(stage.workers)
        # It takes over without the card, which fails after twenty seconds.
        tell(stage.workers[-1], UP, found(0))
        opening = HeartbeatFrame(0, {"opening GPU 1": stage.clock.now})
        for _ in range(80):
            stage.run(0.25, read("GPU-0"), opening, to=stage.workers[-1])
        while len(stage.workers) == before:
            stage.run(0.25, read("GPU-0"), WANTS, to=stage.workers[-1])
        started.append(stage.clock.now)
    gaps = [after - before for before, after in itertools.pairwise(started)]
    assert gaps[-1] >= LIMITS.handover_limit


def test_an_xid_that_both_hear_counts_once_and_one_that_only_the_second_heard_too(stage) -> None:
    both, late = XidFrame("GPU-0", 1.0, 31), XidFrame("GPU-0", 2.0, 79)
    tell(stage.first, both, both)
    tell(stage.second, UP, found(0), both, both, both, late)
    stage.run(0.5)
    tell(stage.second, read("GPU-0"))
    stage.run(0.5)
    heard = [one for one in stage.sink.frames if isinstance(one, XidFrame)]
    assert heard == [both, both, both, late]


def test_an_xid_that_both_tell_of_while_one_takes_over_counts_once(stage, monkeypatch) -> None:
    tell(stage.second, UP, found(0))
    stage.run(0.5)
    tell(stage.second, read("GPU-0"))
    taken, late = stage.first.read, [XidFrame("GPU-0", 1.0, 79)]

    def taken_late(timeout: float) -> list:
        frames = taken(timeout)
        if timeout == 0 and late:
            # The last that is read of it; the other one has just been listened to.
            tell(stage.second, *late)
            frames.append(late.pop())
        return frames

    monkeypatch.setattr(stage.first, "read", taken_late)
    stage.run(1)
    assert stage.first.asked
    assert len([one for one in stage.sink.frames if isinstance(one, XidFrame)]) == 1


def test_at_the_end_all_that_are_stuck_are_waited_for_together(stage) -> None:
    for one in stage.workers:
        one.obeys = False
    before = stage.clock.now
    stage.supervisor.stop(grace=3)
    assert all(one.asked for one in stage.workers)
    assert stage.clock.now - before == 3


def test_a_release_ends_the_second_at_once_and_waits_for_it(stage) -> None:
    stage.second.obeys = False
    stage.ask_for_release()
    stage.run(1)
    assert stage.second.asked
    assert stage.first.orders == ["let go"]
    assert stage.sink.released == []
    stage.second.code = 0
    stage.run(1)
    assert stage.sink.released == [True]
    assert len(stage.workers) == 2


def test_a_release_that_is_asked_for_in_the_middle_of_a_round_is_not_undone_by_the_second(
    stage, monkeypatch
) -> None:
    follow = stage.release.next_move

    def asked_first(**situation):
        monkeypatch.setattr(stage.release, "next_move", follow)
        stage.ask_for_release()
        return follow(**situation)

    monkeypatch.setattr(stage.release, "next_move", asked_first)
    stage.supervisor.step()
    # The first one has let go; the second could take over at once.
    assert stage.first.orders == ["let go"]
    tell(stage.second, UP, found(0, 1), read("GPU-0"), read("GPU-1"))
    stage.run(1)
    assert stage.second.asked
    assert stage.sink.released == [True]


def test_a_second_that_dies_again_and_again_is_told_of_and_costs_no_more_than_one_a_minute(
    stage, caplog
) -> None:
    for _ in range(4 * 400):
        stage.run(0.25, WANTS, to=stage.first)
        stage.workers[-1].code = 1 if stage.workers[-1] is not stage.first else None
    assert "it ended with code 1" in caplog.text
    assert stage.sink.errors.count(("worker", "exited")) == len(stage.workers) - 1
    assert 5 < len(stage.workers) < 14
    assert not stage.first.asked


def test_both_look_at_a_card_of_which_the_kernel_log_tells(stage) -> None:
    stage.sink.logged = {"GPU-0"}
    stage.run(0.5)
    assert stage.first.orders == stage.second.orders == ["xid GPU-0"]
