from __future__ import annotations

import dataclasses

import pytest

from exporter.frames import DevicesFrame, HeartbeatFrame
from exporter.supervision import Situation, Step, decide, next_pause
from tests.exporter.fakes import info
from tests.exporter.supervisor_stage import LIMITS, Stage

WELL = Situation(
    now=100,
    present=True,
    exited=False,
    heard_at=99,
    asked_at=None,
    all_stuck_since=None,
    start_at=0,
    abandoned=0,
)


@pytest.mark.parametrize(
    ("change", "step"),
    [
        ({}, Step.NOTHING),
        ({"exited": True}, Step.BURY),
        ({"heard_at": 90}, Step.ASK_TO_END),
        ({"all_stuck_since": 71}, Step.NOTHING),
        ({"all_stuck_since": 70}, Step.ASK_TO_END),
        ({"heard_at": 80, "asked_at": 96}, Step.NOTHING),
        ({"heard_at": 80, "asked_at": 95}, Step.ABANDON),
        ({"heard_at": 80, "asked_at": 95, "exited": True}, Step.BURY),
        ({"present": False}, Step.START),
        ({"present": False, "start_at": 101}, Step.NOTHING),
        ({"present": False, "abandoned": 1}, Step.NOTHING),
    ],
)
def test_the_next_step(change, step) -> None:
    assert decide(dataclasses.replace(WELL, **change), LIMITS) is step


def test_pauses_double_up_to_a_limit_and_start_anew_after_a_steady_life() -> None:
    assert next_pause(None, 0, LIMITS) == 1
    assert next_pause(1, 5, LIMITS) == 2
    assert next_pause(6, 5, LIMITS) == 8
    assert next_pause(8, 60, LIMITS) == 1


def test_an_xid_of_the_kernel_log_is_passed_on_once_and_to_a_worker_only() -> None:
    stage = Stage()
    stage.run(1)
    stage.sink.logged = {"GPU-0"}
    stage.run(1)
    assert stage.workers[0].orders == ["xid GPU-0"]
    stage.workers[0].code = 1
    stage.run(0.5)
    stage.sink.logged = {"GPU-1"}
    stage.run(2)
    assert [worker.orders for worker in stage.workers] == [["xid GPU-0"], []]


def test_a_dead_worker_is_replaced_after_a_pause() -> None:
    stage = Stage()
    stage.run(1)
    stage.workers[0].code = 1
    stage.run(0.5)
    assert len(stage.workers) == 1
    stage.run(1.5)
    assert len(stage.workers) == 2
    assert stage.sink.worker.restarts == 1
    assert ("worker", "exited") in stage.sink.errors


def test_a_silent_worker_is_asked_to_end_and_replaced() -> None:
    stage = Stage()
    stage.run(11)
    assert stage.workers[0].asked
    stage.run(3)
    assert len(stage.workers) == 2


def test_a_stuck_worker_is_left_alone_and_no_more_than_the_cap_are_started() -> None:
    stage = Stage()
    stage.run(1)
    stage.workers[0].obeys = False
    stage.run(16)
    assert stage.sink.worker.abandoned == 1
    stage.run(60)
    assert len(stage.workers) == 1
    stage.workers[0].code = 0
    stage.run(1)
    assert len(stage.workers) == 2


def test_one_stuck_gpu_does_not_cost_the_worker_and_all_do() -> None:
    stage = Stage()
    stage.run(1)
    stage.workers[0].frames.append(DevicesFrame((info(0), info(1))))
    since = stage.clock.now
    stage.run(60, HeartbeatFrame(0, {"GPU-0": since}))
    assert not stage.workers[0].asked
    assert stage.sink.worker.running_seconds >= 59
    stuck = stage.clock.now
    stage.run(31, HeartbeatFrame(0, {"GPU-0": since, "GPU-1": stuck}))
    assert stage.workers[0].asked


def test_a_worker_that_cannot_be_started_is_tried_again() -> None:
    stage = Stage()
    failures = iter([True, True, False])
    start = stage.start

    def refusing():
        if next(failures, False):
            raise OSError("no process")
        return start()

    stage.supervisor._start_worker = refusing
    stage.run(6)
    assert len(stage.workers) == 1
    assert stage.sink.errors.count(("worker", "start")) == 2


def test_a_round_that_fails_does_not_end_supervision(eventually) -> None:
    stage = Stage()
    real = stage.sink.set_worker
    failures = iter([True, True])

    def failing(worker) -> None:
        if next(failures, False):
            raise RuntimeError("bug")
        real(worker)

    stage.sink.set_worker = failing
    stage.supervisor.start()
    eventually(lambda: stage.sink.worker is not None)
    stage.supervisor.stop()
    assert stage.sink.errors.count(("supervisor", "bug")) == 2
