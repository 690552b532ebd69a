"""The first worker is forked: what it may not inherit, and what comes after it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.exporter.test_cli import Serving
from tests.nvml_standin import Driver


@pytest.fixture
def serving(tmp_path, monkeypatch):
    driver = Driver(tmp_path / "driver", gpus=2)
    for name, value in driver.env().items():
        monkeypatch.setenv(name, value)
    made = Serving(
        "--backend=nvml", "--sample-interval=0.2", f"--storage.path={tmp_path / 'state'}"
    )
    yield made
    if made.process.poll() is None:
        made.end()


def worker_of(serving: Serving) -> psutil.Process:
    (worker,) = psutil.Process(serving.process.pid).children()
    return worker


def shown(serving: Serving, line: str) -> bool:
    return line in serving.get("/metrics")[1]


def running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_it_has_nothing_of_its_parent_but_memory(serving, eventually) -> None:
    eventually(lambda: serving.get("/-/ready")[0] == 200)
    parent, worker = serving.process.pid, worker_of(serving)
    assert worker.cmdline() == psutil.Process(parent).cmdline(), "it was not forked"
    assert worker.name() == "gpu-exp-worker"
    assert os.getsid(worker.pid) == worker.pid != os.getsid(parent)
    descriptors = {int(one.name): one for one in Path(f"/proc/{worker.pid}/fd").iterdir()}
    kinds = {number: stat.S_IFMT(one.stat().st_mode) for number, one in descriptors.items()}
    assert stat.S_IFSOCK not in kinds.values()
    assert [kinds[number] for number in (0, 1, 2)] == [stat.S_IFIFO] * 3
    assert descriptors[1].readlink() == descriptors[2].readlink() != descriptors[0].readlink()
    mapped = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in (parent, worker.pid)}
    assert "libnvidia-ml" in mapped[worker.pid]
    assert "libnvidia-ml" not in mapped[parent]


def test_what_comes_after_it_is_started_anew(serving, eventually) -> None:
    eventually(lambda: serving.get("/-/ready")[0] == 200)
    first = worker_of(serving)
    first.kill()
    eventually(lambda: shown(serving, "gpu_exporter_worker_restarts_total 1.0"))
    second = worker_of(serving)
    assert "exporter.worker" in second.cmdline()
    eventually(lambda: shown(serving, 'gpu_up{gpu="1",uuid='))
    assert serving.end() == 0
    assert not running(second)


def test_it_ends_with_a_parent_that_is_killed(serving, eventually) -> None:
    eventually(lambda: serving.get("/-/ready")[0] == 200)
    worker = worker_of(serving)
    serving.process.kill()
    serving.process.communicate()
    eventually(lambda: not running(worker))


def test_a_signal_ends_it_without_a_word(serving, eventually) -> None:
    eventually(lambda: serving.get("/-/ready")[0] == 200)
    worker = worker_of(serving)
    assert serving.end(signal.SIGTERM) == 0
    assert not running(worker)
    assert "Traceback" not in serving.log
    assert "stuck" not in serving.log


def command(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


def test_nothing_is_left_where_none_was_needed() -> None:
    script = """
import os
from exporter.early_worker import EarlyWorker

print("said once", end="")
with EarlyWorker() as early:
    pid = early._waiting.process.pid
    assert early._waiting.process.poll() is None
descriptors = os.listdir("/proc/self/fd")
assert len(descriptors) == 4, descriptors
try:
    os.kill(pid, 0)
except ProcessLookupError:
    print(", gone")
"""
    assert command(script) == "said once, gone\n"


def test_none_is_forked_beside_another_thread() -> None:
    script = """
import threading
from exporter.early_worker import EarlyWorker

end = threading.Event()
threading.Thread(target=end.wait).start()
print(EarlyWorker()._waiting)
end.set()
"""
    assert command(script) == "None\n"


def test_one_that_is_gone_before_it_is_needed_is_a_start_that_failed() -> None:
    script = """
import os, signal
from exporter.backends.base import BackendOptions
from exporter.device_sampler import Schedule
from exporter.early_worker import EarlyWorker
from exporter.worker import WorkerOptions

early = EarlyWorker()
os.kill(early._waiting.process.pid, signal.SIGKILL)
while early._waiting.process.poll() is None:
    pass
options = WorkerOptions("replay", BackendOptions(replay_file="/nonexistent"), Schedule())
try:
    early.start(options)
except OSError as error:
    print(type(error).__name__)
anew = early.start(options)
anew.ask_to_end()
print(anew.wait(20) is not None)
anew.close()
"""
    assert command(script) == "BrokenPipeError\nTrue\n"
