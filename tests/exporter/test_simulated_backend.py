from __future__ import annotations

import pytest

from exporter.backends.base import BackendOptions
from exporter.backends.simulated import create
from exporter.errors import BackendError, ConfigError, DeviceFault
from exporter.readings import BackendReason, FaultReason


def opened(simulator, timeout: float = 5.0):
    return create(BackendOptions(simulator_url=simulator.url, timeout_seconds=timeout))


def test_it_reads_what_the_simulator_says(simulator) -> None:
    backend = opened(simulator)
    found = backend.open()
    device = found.devices[0]
    read = device.sample().sample
    assert found.driver_version == "580.sim"
    assert device.info.uuid == "GPU-sim-0"
    assert device.info.power_limit_min_watts == 100
    assert (read.temperature_celsius, read.temperature_margin_celsius) == (64.0, 25.0)
    assert (read.utilization_ratio, read.encoder_utilization_ratio) == (0.97, None)
    assert read.fan_speed_ratios == (0.4,)
    assert read.clock_events is None
    (process,) = device.processes().processes
    assert (process.pid, process.process) == (1, "ollama")
    backend.close()


def test_an_xid_is_told_once_also_when_the_backend_is_opened_again(simulator) -> None:
    listed = simulator.gpus["GPU-sim-0"]["xid_errors"]
    listed.append({"time": 1.0, "xid": 13})
    backend = opened(simulator)
    found = backend.open()
    assert found.watched == ("GPU-sim-0", "GPU-sim-1")
    assert found.devices[0].sample().xids == ()
    listed.append({"time": 2.0, "xid": 79})
    assert found.devices[0].sample().xids == (79,)
    listed.append({"time": 3.0, "xid": 48})
    backend.close()
    device = backend.open().devices[0]
    assert device.sample().xids == (48,)
    assert device.sample().xids == ()
    backend.close()


def test_a_lost_gpu_is_its_own_fault(simulator) -> None:
    backend = opened(simulator)
    first, second = backend.open().devices
    simulator.gpus["GPU-sim-0"]["lost"] = True
    with pytest.raises(DeviceFault) as raised:
        first.sample()
    assert raised.value.reason is FaultReason.LOST
    assert second.sample().sample.temperature_celsius == 64.0
    backend.close()


def test_a_gpu_that_does_not_answer_is_a_timeout(simulator) -> None:
    backend = opened(simulator, timeout=0.2)
    device = backend.open().devices[0]
    simulator.block("GPU-sim-0")
    with pytest.raises(DeviceFault) as raised:
        device.sample()
    assert raised.value.reason is FaultReason.TIMEOUT
    backend.close()


def test_without_a_simulator_it_says_how_to_start_one(simulator) -> None:
    simulator.answer = lambda path: (404, {"error": "not this"})
    other = opened(simulator)
    with pytest.raises(BackendError, match="not the simulator"):
        other.open()
    other.close()
    gone = create(BackendOptions(simulator_url="http://127.0.0.1:1"))
    with pytest.raises(BackendError, match="python -m simulator gpus") as raised:
        gone.open()
    assert raised.value.reason is BackendReason.DRIVER_NOT_LOADED
    assert gone.fingerprint() is None


def test_a_gpu_that_appears_changes_the_fingerprint(simulator) -> None:
    backend = opened(simulator)
    before = backend.fingerprint()
    assert backend.fingerprint() == before
    del simulator.gpus["GPU-sim-1"]
    assert backend.fingerprint() != before
    backend.close()


@pytest.mark.parametrize("url", ["", "127.0.0.1:9950", "https://127.0.0.1", "ftp://x"])
def test_an_address_that_is_none_is_refused(url) -> None:
    with pytest.raises(ConfigError, match=r"--simulator\.url"):
        create(BackendOptions(simulator_url=url))
