"""The simulated world behind the C library: a real ctypes write cools the simulated card."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulator.driver_directory import DriverDirectory, parse_writes
from tests.nvml_standin import build
from tests.simulator.support import CARD, SmallWorld
from tests.waiting import poll

SET_LIMIT = """
import pynvml, sys
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(0)
if len(sys.argv) > 1:
    pynvml.nvmlDeviceSetPowerManagementLimit(card, int(sys.argv[1]))
print(pynvml.nvmlDeviceGetUUID(card), pynvml.nvmlDeviceGetTemperatureV(card, 0),
      pynvml.nvmlDeviceGetPowerUsage(card), pynvml.nvmlDeviceGetPowerManagementLimit(card))
"""

RECOVERY_ACTION = """
import pynvml
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(0)
(field,) = pynvml.nvmlDeviceGetFieldValues(card, [230])
print(field.value.uiVal)
"""


class Loop:
    def __init__(self, directory: Path) -> None:
        self.small = SmallWorld(gpus=2)
        self.directory = directory
        self.driver = DriverDirectory(directory, self.small.world)
        self.driver.sync()

    def through_the_library(self, *arguments: str) -> list[str]:
        return self.python(SET_LIMIT, *arguments)

    def python(self, program: str, *arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=os.environ
            | {"LD_LIBRARY_PATH": str(build()), "NVML_STANDIN_DIR": str(self.directory)},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return done.stdout.split()

    def pass_time(self, seconds: float) -> None:
        self.small.pass_time(seconds)
        self.driver.sync()


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path / "driver")


def test_a_write_through_the_library_cools_the_card(loop: Loop) -> None:
    loop.small.inject("heat", celsius=84)
    loop.pass_time(60)
    assert loop.through_the_library() == [CARD, "84", "400000", "400000"]
    assert loop.through_the_library("320000")[3] == "320000"
    loop.driver.sync()
    loop.pass_time(10)
    _uuid, temperature, power, limit = loop.through_the_library()
    assert int(temperature) < 80
    assert (power, limit) == ("320000", "320000")
    (write,) = loop.small.world.writes()
    assert (write["watts"], write["accepted"], write["source"]) == (320, True, "nvml")
    assert write["pid"]


def test_a_limit_set_over_http_shows_in_the_library(loop: Loop) -> None:
    loop.small.world.set_power_limit(CARD, 250)
    loop.driver.sync()
    assert loop.through_the_library()[3] == "250000"


def test_the_last_writer_wins_on_both_sides(loop: Loop) -> None:
    loop.small.world.set_power_limit(CARD, 250)
    loop.driver.sync()
    loop.through_the_library("320000")
    loop.driver.sync()
    assert loop.small.card()["power_limit_watts"] == 320
    loop.small.world.set_power_limit(CARD, 400)
    loop.driver.sync()
    assert loop.through_the_library()[3] == "400000"


def test_a_write_the_library_refuses_is_seen_but_has_no_effect(loop: Loop) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        loop.through_the_library("90000")
    loop.driver.sync()
    (write,) = loop.small.world.writes()
    assert (write["watts"], write["accepted"]) == (90, False)
    assert loop.small.card()["power_limit_watts"] == 400


def test_a_lost_card_is_lost_in_the_library_too(loop: Loop) -> None:
    loop.small.inject("lose")
    loop.driver.sync()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        loop.through_the_library()
    assert "NVMLError_GpuIsLost" in failed.value.stderr


def test_what_the_driver_asks_for_is_field_230(loop: Loop) -> None:
    assert loop.python(RECOVERY_ACTION) == ["0"]
    loop.small.inject("recovery_action", action="drain_and_reset")
    loop.driver.sync()
    assert loop.python(RECOVERY_ACTION) == ["4"]
    loop.small.world.reset(CARD)
    loop.driver.sync()
    assert loop.python(RECOVERY_ACTION) == ["0"]


def test_a_reset_takes_the_limit_back_in_the_library(loop: Loop) -> None:
    loop.through_the_library("320000")
    loop.driver.sync()
    loop.small.world.reset(CARD)
    loop.driver.sync()
    assert loop.through_the_library()[3] == "400000"


def test_an_xid_is_an_event_once(loop: Loop) -> None:
    events = loop.directory / "events"
    loop.small.inject("xid", xid=119)
    loop.driver.sync()
    loop.small.clock.now += 1
    loop.small.inject("xid", xid=79)
    loop.driver.sync()
    loop.driver.sync()
    assert events.read_text() == f"{CARD} 119\n{CARD} 79\n"


def test_a_new_driver_forgets_the_limits_of_the_one_before(loop: Loop) -> None:
    loop.through_the_library("320000")
    again = DriverDirectory(loop.directory, SmallWorld().world)
    again.sync()
    assert loop.through_the_library()[3] == "400000"
    assert not (loop.directory / "writes").exists()


def test_half_a_line_of_the_log_waits_for_its_other_half(loop: Loop) -> None:
    line = f"1763760000.000001 7 nvmlDeviceSetPowerManagementLimit {CARD} 320000 0 1\n"
    assert parse_writes(line)[0].value == 320_000
    log = loop.directory / "writes"
    log.write_text(line[:40])
    loop.driver.sync()
    assert loop.small.world.writes() == []
    log.write_text(line)
    loop.driver.sync()
    assert len(loop.small.world.writes()) == 1


def test_the_command_keeps_the_directory_fresh(tmp_path: Path) -> None:
    directory = tmp_path / "driver"
    command = [sys.executable, "-m", "simulator", "gpus", "--listen", "127.0.0.1:0"]
    process: Any = subprocess.Popen(
        [*command, "--driver-dir", str(directory)], stdout=subprocess.DEVNULL
    )
    try:
        poll((directory / "state").exists)
        first = (directory / "state").stat().st_mtime_ns
        poll(lambda: (directory / "state").stat().st_mtime_ns > first)
    finally:
        process.terminate()
        assert process.wait(20) == 0
