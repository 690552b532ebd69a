from __future__ import annotations

import logging

from exporter import api
from exporter.frames import (
    BackendFrame,
    DevicesFrame,
    ErrorsFrame,
    FailedDevice,
    FaultFrame,
    HeartbeatFrame,
    ProcessesFrame,
    SampleFrame,
)
from exporter.inventory import Inventory, reset
from exporter.policy import Health
from exporter.readings import BackendReason, FaultReason, ProcessUse
from tests.exporter.fakes import Bench, info, sample


def fault(bench: Bench, uuid: str, reason: FaultReason | None, collector: str = "sample") -> None:
    now = bench.clock.monotonic()
    bench.store.apply(FaultFrame(uuid, now, collector, str(reason or "bug"), reason, "why"))


def test_a_reading_that_is_too_old_is_absent_and_then_a_fault() -> None:
    bench = Bench()
    bench.sample()
    bench.advance(3.4)
    assert bench.gpu().sample is not None
    bench.advance(0.2)
    assert bench.gpu().sample is None
    assert bench.gpu().up
    bench.advance(2)
    down = bench.gpu()
    assert (down.up, down.fault) == (False, FaultReason.TIMEOUT)
    assert down.verdict.health is Health.CRITICAL
    bench.sample()
    assert (bench.gpu().up, bench.gpu().fault) == (True, None)


def test_a_gpu_that_never_answers_is_a_timeout() -> None:
    bench = Bench()
    assert "GPU-0" in bench.store.snapshot().not_ready
    bench.advance(5.1)
    assert bench.gpu().fault is FaultReason.TIMEOUT
    assert bench.store.snapshot().not_ready == ""


def test_one_bad_gpu_of_four_leaves_the_others_alone() -> None:
    bench = Bench(gpus=4)
    for index in range(4):
        bench.sample(f"GPU-{index}")
    fault(bench, "GPU-1", FaultReason.LOST)
    bench.advance(1)
    for index in (0, 2, 3):
        bench.sample(f"GPU-{index}", temperature_celsius=50.0 + index)
    views = {view.info.uuid: view for view in bench.store.snapshot().gpus}
    assert views["GPU-1"].fault is FaultReason.LOST
    assert views["GPU-1"].sample is None
    assert views["GPU-1"].info.name == "NVIDIA A100-SXM4-40GB"
    assert [views[f"GPU-{i}"].sample.temperature_celsius for i in (0, 2, 3)] == [50, 52, 53]


def test_a_failed_collection_that_is_no_fault_of_the_gpu_keeps_it_up() -> None:
    bench = Bench()
    bench.sample()
    fault(bench, "GPU-0", None, collector="processes")
    assert bench.gpu().up
    assert bench.store.snapshot().errors == {("processes", "bug"): 1}


def test_a_gpu_that_vanishes_is_lost_under_its_last_identity() -> None:
    bench = Bench(gpus=2)
    bench.sample("GPU-0")
    bench.sample("GPU-1")
    bench.enumerate(info(0, uuid="GPU-1"))
    gone, moved = bench.gpu("GPU-0"), bench.gpu("GPU-1")
    assert (gone.up, gone.fault, gone.info.index) == (False, FaultReason.LOST, 0)
    assert (moved.up, moved.info.index) == (True, 0)
    snapshot = bench.store.snapshot()
    assert (snapshot.visible, snapshot.expected) == (1, 2)


def test_a_fault_ends_with_a_reading_and_not_with_an_enumeration() -> None:
    bench = Bench()
    fault(bench, "GPU-0", FaultReason.LOST)
    bench.enumerate(info(0))
    assert bench.gpu().fault is FaultReason.LOST
    bench.sample()
    assert bench.gpu().fault is None


def test_a_handle_that_fails_gives_its_reason_to_the_card_of_that_index() -> None:
    bench = Bench(gpus=2)
    failed = FailedDevice(1, FaultReason.RESET_REQUIRED, "reset me")
    bench.enumerate(info(0), failed=(failed,))
    assert bench.gpu("GPU-1").fault is FaultReason.RESET_REQUIRED


def test_a_handle_that_fails_from_the_start_is_still_shown() -> None:
    bench = Bench(gpus=0)
    bench.enumerate(info(0), failed=(FailedDevice(1, FaultReason.LOST),))
    assert bench.gpu("unknown-1").fault is FaultReason.LOST


def test_a_card_that_is_not_expected_any_more_is_forgotten() -> None:
    bench = Bench(expected=1, gpus=2)
    bench.enumerate(info(0))
    assert [view.info.uuid for view in bench.store.snapshot().gpus] == ["GPU-0"]


def test_a_closed_backend_is_no_fault_of_the_cards() -> None:
    bench = Bench()
    bench.sample()
    why = BackendFrame("nvml", up=False, reason=BackendReason.VERSION_MISMATCH, message="reboot")
    bench.store.apply(why)
    snapshot = bench.store.snapshot()
    assert snapshot.backend.reason is BackendReason.VERSION_MISMATCH
    assert (snapshot.gpus[0].up, snapshot.gpus[0].fault) == (False, None)
    assert snapshot.gpus[0].sample is None
    assert snapshot.gpus[0].verdict.health is Health.UNKNOWN
    assert snapshot.visible is None
    bench.advance(60)
    bench.enumerate(info(0))
    assert (bench.gpu().up, bench.gpu().fault) == (True, None)


def test_remembered_cards_are_down_when_the_backend_never_opened(tmp_path) -> None:
    Inventory("auto", tmp_path).saw([info(0)])
    bench = Bench(inventory=Inventory("auto", tmp_path), gpus=0)
    bench.store.apply(BackendFrame("nvml", up=False, reason=BackendReason.DRIVER_NOT_LOADED))
    assert not bench.gpu().up
    assert bench.store.snapshot().expected == 1


def test_processes_grow_old_too_and_go_with_a_fault() -> None:
    bench = Bench()
    bench.sample()
    bench.processes("GPU-0", ProcessUse(1, "ollama", memory_used_bytes=5))
    assert bench.gpu().process_count == 1
    fault(bench, "GPU-0", FaultReason.RESET_REQUIRED)
    bench.sample()
    assert bench.gpu().processes is None
    bench.processes("GPU-0", ProcessUse(1, "ollama", memory_used_bytes=5))
    bench.advance(53)
    bench.sample()
    assert bench.gpu().process_count is None


def test_health_grows_old_and_goes_with_a_fault() -> None:
    bench = Bench()
    bench.sample()
    bench.health(errors=("timeout",))
    assert bench.gpu().health.recovery_action == "none"
    assert bench.store.snapshot().errors == {("health", "timeout"): 1}
    bench.advance(104)
    bench.sample()
    assert bench.gpu().health is not None
    bench.advance(2)
    bench.sample()
    assert bench.gpu().health is None
    bench.health()
    fault(bench, "GPU-0", FaultReason.RESET_REQUIRED)
    bench.sample()
    assert bench.gpu().health is None


def test_what_is_read_seldom_has_a_time_of_its_own() -> None:
    bench = Bench()
    bench.sample()
    assert api.gpu(bench.gpu(), bench.store.snapshot())["health_timestamp"] is None
    bench.health(recovery_action="reset")
    read_at = bench.clock.time()
    for _ in range(12):
        bench.advance(1.0)
        bench.sample()
    shown = api.gpu(bench.gpu(), bench.store.snapshot())
    assert (shown["recovery_action"], shown["health_timestamp"]) == ("reset", read_at)
    assert shown["timestamp"] == read_at + 12


def test_a_picture_is_complete_when_each_collection_was_made_or_failed() -> None:
    bench = Bench(gpus=2)
    for uuid in ("GPU-0", "GPU-1"):
        bench.sample(uuid)
        bench.health(uuid)
        assert not bench.store.complete()
    bench.store.apply(ProcessesFrame("GPU-0", bench.clock.monotonic()))
    assert bench.gpu("GPU-0").process_count is None
    fault(bench, "GPU-1", None, collector="processes")
    assert bench.store.complete()


def test_readiness_says_what_it_waits_for() -> None:
    bench = Bench(gpus=0)
    assert "has not been opened" in bench.store.snapshot().not_ready
    bench.enumerate(info(0))
    assert "no reading yet from GPU-0" in bench.store.snapshot().not_ready
    bench.sample()
    assert bench.store.snapshot().not_ready == ""


def test_history_is_bounded_and_oldest_first() -> None:
    bench = Bench()
    for _ in range(400):
        bench.sample()
        bench.advance(1)
    points = bench.store.history("GPU-0", 300)
    assert points is not None
    assert len(points) == 300
    assert points[0].timestamp < points[-1].timestamp
    assert len(bench.store.history("GPU-0", 10) or []) == 10
    assert bench.store.history("GPU-9", 10) is None


def test_readings_that_fail_are_counted_by_reason() -> None:
    bench = Bench()
    bench.sample(errors=("no_permission", "unknown"))
    bench.sample(errors=("unknown",))
    assert bench.store.snapshot().errors == {
        ("sample", "no_permission"): 1,
        ("sample", "unknown"): 2,
    }


def test_a_collection_that_goes_on_failing_is_logged_once_and_when_it_is_well_again(
    monkeypatch,
) -> None:
    lines: list[str] = []
    log = logging.getLogger("exporter.complaints")
    for level in ("info", "warning"):
        monkeypatch.setattr(log, level, lambda text, *args: lines.append(text % args))
    bench = Bench()
    for _ in range(3):
        fault(bench, "GPU-0", None, collector="processes")
        bench.sample()
    assert lines == ["GPU GPU-0: processes: bug: why"]
    bench.processes("GPU-0")
    assert lines[1:] == ["GPU-0 processes: well again"]


def test_readings_of_processes_that_fail_are_counted_beside_those_that_do_not() -> None:
    bench = Bench()
    bench.sample()
    bench.store.apply(ErrorsFrame("GPU-0", "processes", ("no_permission",)))
    bench.processes("GPU-0", ProcessUse(1, "ollama", memory_used_bytes=5))
    assert bench.store.snapshot().errors == {("processes", "no_permission"): 1}
    assert bench.gpu().process_count == 1


def test_a_card_that_comes_back_can_be_told_from_one_that_stays_away() -> None:
    bench = Bench(gpus=2)
    bench.enumerate(info(0))
    bench.enumerate(info(0), info(1))
    assert bench.gpu("GPU-1").fault is FaultReason.LOST
    bench.sample("GPU-1")
    assert bench.gpu("GPU-1").up


def test_a_reset_of_the_inventory_takes_effect_while_running(tmp_path) -> None:
    bench = Bench(inventory=Inventory("auto", tmp_path), gpus=2)
    bench.enumerate(info(0))
    assert bench.gpu("GPU-1").fault is FaultReason.LOST
    reset(tmp_path)
    bench.store.apply(HeartbeatFrame(0))
    snapshot = bench.store.snapshot()
    assert [view.info.uuid for view in snapshot.gpus] == ["GPU-0"]
    assert snapshot.expected == 1


def test_while_cards_are_being_opened_none_counts_as_missing() -> None:
    bench = Bench(gpus=3)
    for index in range(3):
        bench.sample(f"GPU-{index}")
    bench.store.apply(DevicesFrame((info(1),), opening=(0, 2)))
    assert [bench.gpu(f"GPU-{index}").fault for index in range(3)] == [None] * 3
    assert bench.store.snapshot().visible == 3
    failed = FailedDevice(2, FaultReason.TIMEOUT, "slow")
    bench.store.apply(DevicesFrame((info(1),), (failed,)))
    faults = [bench.gpu(f"GPU-{index}").fault for index in range(3)]
    assert faults == [FaultReason.LOST, None, FaultReason.TIMEOUT]
    assert bench.store.snapshot().visible == 1


def test_a_card_that_fails_while_others_are_being_opened_is_down_at_once() -> None:
    bench = Bench(gpus=2)
    failed = FailedDevice(1, FaultReason.RESET_REQUIRED, "reset me")
    bench.store.apply(DevicesFrame((), (failed,), opening=(0,)))
    assert bench.gpu("GPU-1").fault is FaultReason.RESET_REQUIRED
    assert bench.gpu("GPU-0").fault is None


def test_what_fails_in_opening_is_counted_once_for_each_time_it_is_told() -> None:
    bench = Bench(gpus=1)
    failed = FailedDevice(1, FaultReason.LOST)
    bench.store.apply(DevicesFrame((info(0),), (failed,), errors=("lost", "unknown")))
    bench.store.apply(DevicesFrame((info(0),), (failed,)))
    errors = bench.store.snapshot().errors
    assert (errors["enumeration", "lost"], errors["enumeration", "unknown"]) == (1, 1)


def test_what_was_read_before_what_is_known_is_not_taken_for_news() -> None:
    """A worker that takes over tells what it read while the one before it read on."""
    bench = Bench()
    bench.sample(energy_joules=100.0)
    bench.health(pcie_replays=7)
    bench.processes("GPU-0", ProcessUse(1, "new"))
    bench.advance(0.9)
    bench.sample(energy_joules=200.0)
    bench.advance(-0.8)
    bench.sample(energy_joules=110.0)
    bench.advance(-0.2)
    bench.health(pcie_replays=5)
    bench.processes("GPU-0", ProcessUse(2, "old"))
    bench.advance(1.1)
    view = bench.gpu()
    assert view.sample.energy_joules == 200
    assert view.health.pcie_replays == 7
    assert [one.process for one in view.processes] == ["new"]
    assert [point.timestamp for point in bench.store.history("GPU-0", 60)] == sorted(
        point.timestamp for point in bench.store.history("GPU-0", 60)
    )
    bench.sample(energy_joules=210.0)
    assert bench.gpu().sample.energy_joules == 210


def test_busy_time_is_never_more_than_the_time_that_passed() -> None:
    bench = Bench()
    bench.sample(utilization_ratio=1.0)
    began = bench.clock.now
    for _ in range(20):
        # One reads for a second, and the next one had read just before it did for the last time.
        bench.advance(1.0)
        bench.sample(utilization_ratio=1.0)
        bench.advance(-0.9)
        bench.sample(utilization_ratio=1.0)
        bench.advance(1.0)
        bench.sample(utilization_ratio=1.0)
    assert bench.gpu().busy_seconds <= bench.clock.now - began


def test_a_gpu_that_does_not_answer_is_logged_once_and_when_it_does_again(caplog) -> None:
    bench = Bench(gpus=2)
    caplog.set_level(logging.INFO)
    for _ in range(10):
        bench.advance(1)
        bench.sample("GPU-1")
        bench.store.apply(HeartbeatFrame(bench.clock.now))
    said = [line for line in caplog.messages if "GPU-0" in line]
    assert said == ["GPU GPU-0: timeout: the GPU does not answer"]
    bench.sample("GPU-0")
    assert caplog.messages[-1] == "GPU-0: well again"


def test_a_gpu_whose_readings_take_too_long_is_not_said_to_be_well_with_each_of_them(
    caplog,
) -> None:
    bench = Bench()
    caplog.set_level(logging.INFO)
    for _ in range(5):
        begun = bench.clock.now
        for _ in range(6):
            bench.advance(1)
            bench.store.apply(HeartbeatFrame(bench.clock.now))
        bench.store.apply(SampleFrame("GPU-0", bench.clock.time(), begun, sample(), 6.0))
    assert [line for line in caplog.messages if "GPU-0" in line] == [
        "GPU GPU-0: timeout: the GPU does not answer"
    ]


def test_while_the_driver_is_gone_no_gpu_is_said_to_be_late(caplog) -> None:
    bench = Bench()
    down = BackendFrame("nvml", up=False, reason=BackendReason.DRIVER_NOT_LOADED, message="gone")
    bench.store.apply(down)
    bench.advance(60)
    bench.store.apply(HeartbeatFrame(bench.clock.now))
    assert "does not answer" not in caplog.text
