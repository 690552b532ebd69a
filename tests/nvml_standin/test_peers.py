"""Unmodified peers run on the stand-in: they were not written with it in mind."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.nvml_standin import Driver, DriverProcess
from tests.waiting import poll

needs_peer = pytest.mark.skipif(
    find_spec("nvitop_exporter") is None,
    reason="nvitop-exporter is not installed: pip install gpu-remediator[dev]",
)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    driver = Driver(tmp_path / "driver", gpus=2)
    driver.set(0, temperature=84, power_mw=391_000)
    driver.set_processes(0, [DriverProcess(os.getpid(), 8 * 1024**3)])
    return driver


@needs_peer
def test_nvitop_reads_cards_and_processes(driver: Driver) -> None:
    script = """
import json
from nvitop import Device
device = Device.all()[0]
print(json.dumps([Device.driver_version(), len(Device.all()), device.temperature(),
                  device.power_usage(), device.memory_used(), list(device.processes())]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | driver.env(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    version, count, temperature, power, used, pids = json.loads(done.stdout)
    assert "standin" in version
    assert (count, temperature, power, used) == (2, 84, 391_000, 8 * 1024**3)
    assert pids == [os.getpid()]
    assert "FunctionNotFound" not in done.stderr


@needs_peer
def test_nvitop_exporter_serves_the_cards(driver: Driver) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "nvitop_exporter",
            "--bind-address",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        env=os.environ | driver.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        page = poll(page_with_readings(port), seconds=60)
        assert re.search(r'^gpu_temperature\S*\{.*index="0".*\} 84\.0$', page, re.MULTILINE), page
    finally:
        process.terminate()
        _, log = process.communicate(timeout=20)
    assert "FunctionNotFound" not in log


def page_with_readings(port: int) -> Callable[[], str]:
    def read() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                page: str = answer.read().decode()
        except OSError:
            return ""
        return page if "\ngpu_temperature" in page else ""

    return read
