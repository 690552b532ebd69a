"""The Jetson backend on trees of several boards (see jetson/README.md for what they are)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from exporter.backends import registry
from exporter.backends._thor_nvml import ThorUtilization
from exporter.backends.jetson import JetsonBackend
from exporter.clock import SystemClock
from exporter.device_sampler import Schedule
from exporter.environment import Environment
from exporter.errors import BackendError, DeviceFault
from exporter.frames import HealthFrame, ProcessesFrame, SampleFrame
from exporter.readings import BackendReason, DeviceHealth, FaultReason, Sample
from exporter.sampling import Collector
from tests.exporter.fake_nvml import FakeNvml
from tests.exporter.fakes import FakeClock

TREES = Path(__file__).parent / "jetson"
KIB = 1024


class Board:
    """A tree below a folder, with files that a test changes."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self._offline: list[int] = []
        for line in (TREES / f"{name}.tree").read_text().splitlines():
            path, _, value = line.partition(" = ")
            if value == "!EAGAIN":
                self.offline(path)
            else:
                self.set(path, value.replace("\\n", "\n").replace("\\0", "\0"))

    def set(self, path: str, value: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(value)

    def offline(self, path: str) -> None:
        """Let reading a file fail with EAGAIN: a pipe that somebody holds open and never fills."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        os.mkfifo(file)
        self._offline.append(os.open(file, os.O_RDWR | os.O_NONBLOCK))

    def close(self) -> None:
        for descriptor in self._offline:
            os.close(descriptor)


@pytest.fixture
def board(tmp_path):
    made: list[Board] = []

    def build(name: str = "agx-orin-jp6", folder: str = "root") -> Board:
        made.append(Board(tmp_path / folder, name))
        return made[-1]

    yield build
    for one in made:
        one.close()


def device(board: Board):
    (found,) = JetsonBackend(board.root).open().devices
    return found


def test_an_agx_orin(board) -> None:
    orin = board()
    found = JetsonBackend(orin.root).open()
    assert found.driver_version == "36.4.3"
    assert found.watched == ()
    info = found.devices[0].info
    assert (info.index, info.name) == (0, "NVIDIA Jetson AGX Orin Developer Kit")
    assert info.memory_total_bytes == 64349652 * KIB
    # What the hardware can, not what somebody set as the maximum.
    assert info.clocks_max_hertz == {"graphics": 1300500000}
    assert info.temperature_limits_celsius == {"slowdown": 99, "shutdown": 104.5}
    assert found.devices[0].sample().sample == Sample(
        temperature_celsius=61.5,
        memory_total_bytes=64349652 * KIB,
        memory_used_bytes=14349652 * KIB,
        memory_free_bytes=50000000 * KIB,
        utilization_ratio=0.63,
        power_watts=10.321,
        clocks_hertz={"graphics": 1.02e9},
        fan_speed_ratios=(0.4,),
    )
    assert found.devices[0].health().health == DeviceHealth()


def test_an_orin_nano_with_the_older_spellings(board) -> None:
    found = device(board("orin-nano-jp5"))
    read = found.sample().sample
    assert found.info.clocks_max_hertz == {"graphics": 624750000}
    assert (read.temperature_celsius, read.utilization_ratio) == (51.25, 0.985)
    assert read.power_watts == 3.5
    assert found.info.temperature_limits_celsius == {}


def test_a_thor_leaves_out_what_its_files_do_not_say(board) -> None:
    found = device(board("agx-thor-jp7"))
    read = found.sample().sample
    assert read.clocks_hertz == {"graphics": 1.575e9}
    # The GPU's own sensor is offline: the hottest point of the chip stands in.
    assert read.temperature_celsius == 48.5
    assert read.utilization_ratio is None
    # The power of the whole board is not that of its GPU.
    assert read.power_watts is None
    assert found.processes().processes is None


def test_the_utilisation_of_a_thor_comes_through_nvml(board) -> None:
    nvml, clock = FakeNvml(gpus=1), FakeClock()
    backend = JetsonBackend(board("agx-thor-jp7").root, ThorUtilization(nvml, clock))
    (thor,) = backend.open().devices
    assert [thor.sample().sample.utilization_ratio for _ in range(2)] == [0.97, 0.97]
    assert nvml.calls.count(("nvmlInit", None)) == 1
    nvml.errors["nvmlDeviceGetUtilizationRates"] = 1
    read = thor.sample()
    # One reading is missing; the files tell the rest.
    assert (read.sample.utilization_ratio, read.sample.temperature_celsius) == (None, 48.5)
    nvml.errors.clear()
    assert thor.sample().sample.utilization_ratio is None
    clock.now += 31
    assert thor.sample().sample.utilization_ratio == 0.97
    backend.close()
    assert nvml.calls.count(("nvmlShutdown", None)) == 2


def test_another_board_is_never_asked_through_nvml(board) -> None:
    nvml = FakeNvml(gpus=1)
    backend = JetsonBackend(board("orin-nano-jp5").root, ThorUtilization(nvml, FakeClock()))
    backend.open().devices[0].sample()
    backend.close()
    assert nvml.calls == []


def test_a_sensor_that_goes_offline_and_comes_back(board) -> None:
    orin = board()
    found = device(orin)
    zone = "sys/class/thermal/thermal_zone1/temp"
    orin.offline(zone)
    assert found.sample().sample.temperature_celsius == 63
    orin.set(zone, "-256000\n")
    assert found.sample().sample.temperature_celsius == 63
    orin.offline("sys/class/thermal/thermal_zone8/temp")
    assert found.sample().sample.temperature_celsius is None
    orin.set(zone, "70000\n")
    assert found.sample().sample.temperature_celsius == 70


@pytest.mark.parametrize(
    ("path", "value", "reading"),
    [
        ("sys/class/devfreq/17000000.gpu/device/load", "", "utilization_ratio"),
        ("sys/class/devfreq/17000000.gpu/device/load", "1001\n", "utilization_ratio"),
        ("sys/class/devfreq/17000000.gpu/cur_freq", "\n", "clocks_hertz"),
        ("sys/class/hwmon/hwmon3/curr1_input", "", "power_watts"),
        ("proc/meminfo", "MemTotal: 5 kB\n", "memory_used_bytes"),
        ("proc/meminfo", "", "memory_total_bytes"),
        ("sys/class/hwmon/hwmon0/pwm1", "loud\n", "fan_speed_ratios"),
    ],
)
def test_a_file_that_says_nothing_costs_only_its_reading(board, path, value, reading) -> None:
    orin = board()
    found = device(orin)
    whole = found.sample().sample
    assert getattr(whole, reading) is not None
    orin.set(path, value)
    read = found.sample().sample
    assert getattr(read, reading) is None
    assert read.temperature_celsius == 61.5


def test_processes_where_debugfs_is_readable(board) -> None:
    found = [(one.pid, one.memory_used_bytes) for one in device(board()).processes().processes]
    assert found == [(4242, 2**31), (1301, 40960 * KIB)]


def test_the_identity_stays_over_an_upgrade_and_differs_between_boards(board) -> None:
    first = board()
    known = device(first).info.uuid
    again = board(folder="upgraded")
    shutil.move(
        again.root / "sys/class/devfreq/17000000.gpu", again.root / "sys/class/devfreq/170.gb10b"
    )
    again.set("sys/class/devfreq/170.gb10b/device/of_node/name", "gb10b\0")
    assert device(again).info.uuid == known
    assert "1420000000001" not in known
    other = board(folder="other")
    other.set("proc/device-tree/serial-number", "1420000000002\0")
    nano = board("orin-nano-jp5", "nano")
    assert len({known, device(other).info.uuid, device(nano).info.uuid}) == 3


def test_a_gpu_that_is_gone_and_one_that_says_nothing(board) -> None:
    orin = board()
    backend = JetsonBackend(orin.root)
    found = backend.open().devices[0]
    before = backend.fingerprint()
    for zone in (1, 8):
        orin.offline(f"sys/class/thermal/thermal_zone{zone}/temp")
    orin.offline("sys/class/devfreq/17000000.gpu/cur_freq")
    orin.offline("sys/class/devfreq/17000000.gpu/device/load")
    with pytest.raises(DeviceFault) as raised:
        found.sample()
    assert raised.value.reason is FaultReason.UNKNOWN
    shutil.rmtree(orin.root / "sys/class/devfreq/17000000.gpu")
    with pytest.raises(DeviceFault) as raised:
        found.sample()
    assert raised.value.reason is FaultReason.LOST
    assert backend.fingerprint() != before


def test_no_jetson_and_a_jetson_without_a_gpu(board, tmp_path) -> None:
    with pytest.raises(BackendError, match="no Jetson"):
        JetsonBackend(tmp_path / "nothing").open()
    orin = board()
    shutil.rmtree(orin.root / "sys")
    with pytest.raises(BackendError, match="nvgpu") as raised:
        JetsonBackend(orin.root).open()
    assert raised.value.reason is BackendReason.DRIVER_NOT_LOADED


@pytest.mark.parametrize("name", ["agx-orin-jp6", "orin-nano-jp5", "agx-thor-jp7"])
def test_auto_chooses_it_on_every_tegra(board, name) -> None:
    machine = registry.Machine(Environment(board(name).root))
    machine.library_loads = lambda: True
    assert registry.resolve("auto", machine) == "jetson"


def test_it_runs_in_the_collector_of_the_worker(board, eventually) -> None:
    frames: list = []
    schedule = Schedule(sample=0.05, processes=0.1, health=0.1)
    backend = JetsonBackend(board("agx-thor-jp7").root)
    collector = Collector(backend, schedule, frames.append, SystemClock())
    collector.start()
    try:
        for kind in (SampleFrame, ProcessesFrame, HealthFrame):
            eventually(lambda k=kind: any(isinstance(one, k) for one in list(frames)))
    finally:
        collector.request_stop()
        assert collector.join(10)
