from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from exporter import early_worker
from exporter.backends.base import BackendOptions
from exporter.device_sampler import Schedule
from exporter.early_worker import EarlyWorker
from exporter.errors import FrameError
from exporter.frames import BackendFrame, HeartbeatFrame, ProcessesFrame, SampleFrame
from exporter.worker import WorkerOptions
from exporter.worker_process import WorkerProcess

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(params=["executed", "forked"])
def worker(simulator, request):
    """Everything here holds of the first worker, which is forked, and of its replacements."""
    schedule = Schedule(sample=0.1, processes=0.2)
    options = WorkerOptions("simulated", BackendOptions(simulator_url=simulator.url), schedule)
    if request.param == "forked":
        early = EarlyWorker()
        # A test runner has threads, which is why none was forked.
        early._waiting = early._waiting or early_worker._fork()
        made = early.start(options)
    else:
        made = WorkerProcess(options)
    yield made
    made.ask_to_end()
    for event in simulator.blocked.values():
        event.set()
    assert made.wait(10) is not None
    made.close()


def collect(worker: WorkerProcess, until, seconds: float = 20) -> list:
    frames: list = []
    deadline = time.monotonic() + seconds
    while not until(frames):
        assert time.monotonic() < deadline, frames
        frames.extend(worker.read(0.1))
    assert not [one for one in frames if isinstance(one, FrameError)]
    return frames


def kinds(frames: list) -> set[type]:
    return {type(frame) for frame in frames}


def test_frames_come_from_a_process_of_its_own(worker) -> None:
    wanted = {BackendFrame, SampleFrame, ProcessesFrame, HeartbeatFrame}
    frames = collect(worker, lambda seen: wanted <= kinds(seen))
    samples = [one for one in frames if isinstance(one, SampleFrame)]
    assert {one.uuid for one in samples} == {"GPU-sim-0", "GPU-sim-1"}
    assert worker.pid != os.getpid()
    assert abs(samples[0].monotonic - time.monotonic()) < 60


def test_the_worker_imports_nothing_heavy() -> None:
    program = (
        "import sys, exporter.worker, exporter.backends.nvml;"
        "print(sorted({'flask', 'prometheus_client', 'yaml', 'waitress', 'requests', 'http'}"
        " & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"


def test_a_hang_is_told_in_the_heartbeat(worker, simulator) -> None:
    collect(worker, lambda seen: SampleFrame in kinds(seen))
    simulator.block("GPU-sim-1")

    def told(seen: list) -> bool:
        beats = [one for one in seen if isinstance(one, HeartbeatFrame)]
        return any("GPU-sim-1" in beat.running for beat in beats)

    frames = collect(worker, told)
    after = collect(worker, lambda seen: SampleFrame in kinds(seen))
    assert "GPU-sim-0" in {one.uuid for one in frames + after if isinstance(one, SampleFrame)}


def test_it_ends_when_asked(worker) -> None:
    collect(worker, lambda seen: SampleFrame in kinds(seen))
    worker.ask_to_end()
    assert worker.wait(10) == 0


def test_it_ends_when_its_parent_is_gone(worker) -> None:
    collect(worker, lambda seen: SampleFrame in kinds(seen))
    worker._orders.close()
    assert worker.wait(10) == 0


def test_it_ends_only_after_the_call_that_it_is_in(worker, simulator) -> None:
    collect(worker, lambda seen: SampleFrame in kinds(seen))
    release = simulator.block("GPU-sim-0")

    def stuck(seen: list) -> bool:
        beats = [one for one in seen if isinstance(one, HeartbeatFrame)]
        return bool(beats) and "GPU-sim-0" in beats[-1].running

    collect(worker, stuck)
    worker.ask_to_end()
    assert worker.wait(1.0) is None
    release.set()
    assert worker.wait(10) == 0


def test_it_lets_go_and_ends(worker, simulator) -> None:
    collect(worker, lambda seen: SampleFrame in kinds(seen))
    worker.let_go()
    assert worker.wait(10) == 0


def test_it_goes_on_when_told_so_before_it_could_let_go(worker, simulator) -> None:
    collect(worker, lambda seen: SampleFrame in kinds(seen))
    release = simulator.block("GPU-sim-0")

    def stuck(seen: list) -> bool:
        beats = [one for one in seen if isinstance(one, HeartbeatFrame)]
        return bool(beats) and "GPU-sim-0" in beats[-1].running

    collect(worker, stuck)
    worker.let_go()
    assert worker.wait(1.0) is None
    worker.keep()
    release.set()
    told_at = time.monotonic()

    def again(seen: list) -> bool:
        samples = [one for one in seen if isinstance(one, SampleFrame)]
        late = {one.uuid for one in samples if one.monotonic > told_at}
        return late == {"GPU-sim-0", "GPU-sim-1"}

    collect(worker, again)
    assert worker.exit_code() is None


def test_a_program_that_it_started_and_that_is_stuck_holds_the_driver_too() -> None:
    program = """
import subprocess, sys, time
from exporter import worker

class Ended:
    def join(self, timeout):
        return True

child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
said = [worker._finished(Ended(), order) for order in (worker.LET_GO, worker.KEEP, worker._END)]
child.communicate(b"\\n")
print(said, worker._finished(Ended(), worker.LET_GO))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[False, True, True] True\n"
