"""The NVML backend over a scripted library object."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from exporter.backends.base import XidEvent
from exporter.backends.nvml import NvmlBackend
from exporter.environment import Environment
from exporter.errors import BackendError, DeviceFault, ReadingError
from exporter.readings import BackendReason, DeviceHealth, FaultReason
from tests.exporter.fake_nvml import FakeNvml
from tests.exporter.fakes import FakeClock

GIB = 2**30


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


def opened(nvml: FakeNvml, root=None, clock=None):
    environment = Environment(root) if root else Environment()
    backend = NvmlBackend(nvml, environment, clock or FakeClock())
    return backend.open()


def test_units_are_base_units(nvml) -> None:
    found = opened(nvml)
    assert (found.driver_version, found.cuda_version) == ("580.95", "13.1")
    described, read = found.devices[0].info, found.devices[0].sample().sample
    assert described.power_limit_min_watts == 100
    assert described.clocks_max_hertz["sm"] == 1.41e9
    assert described.temperature_limits_celsius["shutdown"] == 92
    assert described.temperature_limits_celsius["slowdown"] == 89
    assert read.temperature_celsius == 64
    assert read.memory_temperature_celsius == 71
    assert read.memory_used_bytes == 8 * GIB
    assert read.memory_reserved_bytes == 1 * GIB
    assert read.utilization_ratio == 0.97
    assert read.power_watts == 210.5
    assert read.power_limit_watts == 320
    assert read.energy_joules == 5000
    assert read.clocks_hertz == dict.fromkeys(("graphics", "sm", "memory", "video"), 1.2e9)
    assert read.clock_events == ("sw_power_cap", "hw_thermal_slowdown")
    assert read.fan_speed_ratios == (0.4, 0.4)
    assert read.performance_state == 0


def test_what_is_not_supported_is_none_and_not_asked_again(nvml) -> None:
    nvml.errors["nvmlDeviceGetNumFans"] = 3
    nvml.fields = {}
    device = opened(nvml).devices[0]
    for _ in range(3):
        result = device.sample()
        assert result.sample.fan_speed_ratios is None
        assert result.sample.memory_temperature_celsius is None
        assert result.errors == ()
    assert nvml.calls.count(("nvmlDeviceGetNumFans", 0)) == 1
    assert nvml.calls.count(("nvmlDeviceGetFieldValues", 0)) == 1


def test_an_older_driver_is_asked_in_its_own_words(nvml) -> None:
    nvml.errors["nvmlDeviceGetTemperatureV"] = 13
    nvml.errors["nvmlDeviceGetCurrentClocksEventReasons"] = 13
    device = opened(nvml).devices[0]
    for _ in range(2):
        read = device.sample().sample
        assert read.temperature_celsius == 63
        assert read.clock_events == ("gpu_idle",)
    assert nvml.calls.count(("nvmlDeviceGetTemperatureV", 0)) == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [(15, FaultReason.LOST), (28, FaultReason.LOST), (16, FaultReason.RESET_REQUIRED)],
)
def test_a_device_fault_discards_the_whole_reading(nvml, code, reason) -> None:
    first, second = opened(nvml).devices
    nvml.errors["nvmlDeviceGetPowerUsage", 0] = code
    with pytest.raises(DeviceFault) as raised:
        first.sample()
    assert raised.value.reason is reason
    assert second.sample().sample.power_watts == 210.5


def test_one_reading_that_fails_is_absent_and_counted(nvml) -> None:
    device = opened(nvml).devices[0]
    nvml.errors["nvmlDeviceGetPowerUsage"] = 999
    nvml.errors["nvmlDeviceGetUtilizationRates"] = 10
    result = device.sample()
    assert result.sample.power_watts is None
    assert result.sample.utilization_ratio is None
    assert result.sample.temperature_celsius == 64
    assert sorted(result.errors) == ["timeout", "unknown"]
    nvml.errors.clear()
    assert device.sample().sample.power_watts == 210.5


@pytest.mark.parametrize(
    ("code", "reason"), [(999, FaultReason.UNKNOWN), (10, FaultReason.TIMEOUT)]
)
def test_a_gpu_on_which_every_reading_fails_is_at_fault(nvml, code, reason) -> None:
    device = opened(nvml).devices[0]
    for name in {name for name, _ in nvml.calls if name.startswith("nvmlDeviceGet")}:
        nvml.errors[name] = code
    for name in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetUtilizationRates"):
        nvml.errors[name] = code
    for name in (
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetPowerManagementLimit",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetPerformanceState",
        "nvmlDeviceGetNumFans",
        "nvmlDeviceGetFieldValues",
    ):
        nvml.errors[name] = code
    with pytest.raises(DeviceFault) as raised:
        device.sample()
    assert raised.value.reason is reason


@pytest.mark.parametrize("code", [1, 9, 18])
def test_a_driver_that_is_gone_is_no_fault_of_the_gpu(nvml, code) -> None:
    device = opened(nvml).devices[0]
    nvml.errors["nvmlDeviceGetTemperatureV"] = code
    with pytest.raises(BackendError):
        device.sample()


def test_a_gpu_that_does_not_open_leaves_the_others(nvml) -> None:
    nvml.errors["nvmlDeviceGetHandleByIndex", 0] = 15
    nvml.gpus = 3
    found = opened(nvml)
    assert [device.info.uuid for device in found.devices] == ["GPU-1", "GPU-2"]
    assert [(one.index, one.reason) for one in found.failed] == [(0, FaultReason.LOST)]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (12, BackendReason.LIBRARY_MISSING),
        (9, BackendReason.DRIVER_NOT_LOADED),
        (18, BackendReason.VERSION_MISMATCH),
        (4, BackendReason.NO_PERMISSION),
        (17, BackendReason.NOT_IN_CONTAINER),
        (999, BackendReason.UNKNOWN),
    ],
)
def test_each_reason_to_have_no_gpu_has_its_own_remedy(
    nvml, tmp_path, monkeypatch, code, reason
) -> None:
    monkeypatch.delenv("KUBERNETES_PORT", raising=False)
    nvml.errors["nvmlInit"] = code
    with pytest.raises(BackendError) as raised:
        opened(nvml, tmp_path)
    assert raised.value.reason is reason
    assert ("nvmlShutdown", None) not in nvml.calls


@pytest.mark.parametrize("code", [9, 12, 999])
def test_in_a_container_on_a_host_with_a_driver_the_container_is_to_blame(
    nvml, tmp_path, code
) -> None:
    (tmp_path / ".dockerenv").touch()
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: 580.95\n")
    nvml.errors["nvmlInit"] = code
    with pytest.raises(BackendError) as raised:
        opened(nvml, tmp_path)
    assert raised.value.reason is BackendReason.NOT_IN_CONTAINER


def test_processes_are_one_each_and_memory_may_be_unknown(nvml) -> None:
    nvml.processes = [
        SimpleNamespace(pid=7, usedGpuMemory=100),
        SimpleNamespace(pid=8, usedGpuMemory=None),
    ]
    backend_device = opened(nvml).devices[0]
    original = nvml.answer

    def answer(name, handle, arguments):
        if name == "nvmlDeviceGetGraphicsRunningProcesses_v3":
            return [SimpleNamespace(pid=7, usedGpuMemory=100)]
        return original(name, handle, arguments)

    nvml.answer = answer
    found = backend_device.processes().processes
    assert [(one.pid, one.memory_used_bytes) for one in found] == [(7, 100), (8, None)]


def test_a_process_on_several_mig_devices_uses_the_memory_of_all(nvml) -> None:
    nvml.processes = [
        SimpleNamespace(pid=7, usedGpuMemory=GIB, gpuInstanceId=1),
        SimpleNamespace(pid=7, usedGpuMemory=2 * GIB, gpuInstanceId=2),
        SimpleNamespace(pid=8, usedGpuMemory=None, gpuInstanceId=1),
    ]
    found = opened(nvml).devices[0].processes().processes
    assert [(one.pid, one.memory_used_bytes) for one in found] == [(7, 3 * GIB), (8, None)]


def test_process_lists_that_fail_or_do_not_exist(nvml) -> None:
    device = opened(nvml).devices[0]
    nvml.errors["nvmlDeviceGetComputeRunningProcesses_v3"] = 999
    nvml.errors["nvmlDeviceGetGraphicsRunningProcesses_v3"] = 3
    with pytest.raises(ReadingError, match="unknown"):
        device.processes()
    nvml.errors["nvmlDeviceGetComputeRunningProcesses_v3"] = 3
    assert device.processes().processes is None


def test_half_of_a_process_list_is_none(nvml) -> None:
    device = opened(nvml).devices[0]
    nvml.errors["nvmlDeviceGetComputeRunningProcesses_v3"] = 999
    with pytest.raises(ReadingError, match="unknown"):
        device.processes()
    nvml.errors["nvmlDeviceGetComputeRunningProcesses_v3"] = 3
    assert device.processes().processes == ()


def test_values_that_are_no_readings_are_absent(nvml) -> None:
    original = nvml.answer
    nvml.answer = lambda name, handle, arguments: {
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=4294967295, memory=30),
        "nvmlDeviceGetPerformanceState": 32,
        "nvmlDeviceGetTemperatureThreshold": 0,
    }.get(name, original(name, handle, arguments))
    device = opened(nvml).devices[0]
    read = device.sample().sample
    assert read.utilization_ratio is None
    assert read.performance_state is None
    assert device.info.temperature_limits_celsius == {}


ALL_FIELDS = {
    74: 1_500_000_000,
    75: 9_000_000_000,
    76: 0,
    269: 2_000_000_000,
    270: 0,
    271: 0,
    3: 7,
    4: 1,
    142: 4,
    143: 3,
    144: 1,
    145: 0,
    230: 1,
}


def test_health_is_one_call_for_the_fields_and_never_counts_twice(nvml) -> None:
    nvml.fields = ALL_FIELDS
    device = opened(nvml).devices[0]
    nvml.calls.clear()
    result = device.health()
    assert nvml.calls.count(("nvmlDeviceGetFieldValues", 0)) == 1
    assert ("nvmlDeviceGetRemappedRows", 0) not in nvml.calls
    assert result.errors == ()
    health = result.health
    assert health.clock_event_seconds == {
        "sw_power_cap": 1.5,
        "sync_boost": 0,
        "sw_thermal_slowdown": 2,
        "hw_thermal_slowdown": 0,
        "hw_power_brake_slowdown": 0,
    }
    assert health.ecc_errors == {
        "corrected": {"dram": 2, "sram": 7},
        "uncorrected": {"dram": 12, "sram": 17},
    }
    assert health.remapped_rows == {"correctable": 4, "uncorrectable": 3}
    assert (health.row_remap_pending, health.row_remap_failure) == (True, False)
    assert health.retired_pages is None
    assert health.recovery_action == "reset"


def test_an_older_card_falls_back_and_what_it_lacks_is_absent(nvml) -> None:
    nvml.fields = {74: 0, 75: 9_000_000_000, 3: 7, 4: 1, 29: 5, 30: 6}
    nvml.errors["nvmlDeviceGetMemoryErrorCounter"] = 3
    device = opened(nvml).devices[0]
    for _ in range(2):
        health = device.health().health
        assert health.clock_event_seconds == {"sw_power_cap": 0, "thermal_slowdown": 9}
        assert health.ecc_errors == {"corrected": {"all": 7}, "uncorrected": {"all": 1}}
        assert health.remapped_rows == {"correctable": 4, "uncorrectable": 3}
        assert health.retired_pages == {"single_bit": 5, "double_bit": 6}
        assert health.recovery_action is None
    assert nvml.calls.count(("nvmlDeviceGetMemoryErrorCounter", 0)) == 4


def test_errors_of_a_memory_that_are_not_read_once_are_not_told_as_a_sum_beside_it(nvml) -> None:
    nvml.fields.update({3: 5, 4: 1})
    device = opened(nvml).devices[0]
    apart = device.health().health.ecc_errors
    assert all(set(memories) == {"dram", "sram"} for memories in apart.values())
    nvml.errors["nvmlDeviceGetMemoryErrorCounter"] = 999
    assert device.health().health.ecc_errors is None
    nvml.errors.clear()
    assert device.health().health.ecc_errors == apart


def test_a_text_that_is_none_costs_only_itself(nvml) -> None:
    # What the binding raises when a broken card makes up its name.
    answer = nvml.answer

    def garbled(name, handle, arguments):
        if (name, handle) == ("nvmlDeviceGetName", 0):
            return b"NVIDIA \xff".decode()
        return answer(name, handle, arguments)

    nvml.answer = garbled
    found = opened(nvml)
    assert [device.info.name for device in found.devices] == ["", "NVIDIA A100"]
    assert found.failed == ()


def test_a_card_that_tells_nothing_of_its_health_is_asked_once(nvml) -> None:
    nvml.fields = {}
    nvml.errors["nvmlDeviceGetMemoryErrorCounter"] = 3
    nvml.errors["nvmlDeviceGetRemappedRows"] = 3
    device = opened(nvml).devices[0]
    nvml.calls.clear()
    for _ in range(3):
        result = device.health()
        assert (result.health, result.errors) == (DeviceHealth(), ())
    assert nvml.calls.count(("nvmlDeviceGetFieldValues", 0)) == 1


def test_a_driver_without_fields_is_asked_otherwise(nvml) -> None:
    nvml.errors["nvmlDeviceGetFieldValues"] = 13
    device = opened(nvml).devices[0]
    for _ in range(2):
        health = device.health().health
        assert health.remapped_rows == {"correctable": 4, "uncorrectable": 3}
        assert health.clock_event_seconds is None
    assert nvml.calls.count(("nvmlDeviceGetFieldValues", 0)) == 1


@pytest.mark.parametrize(("number", "action"), [(0, "none"), (7, "system_reboot"), (99, "unknown")])
def test_a_recovery_action_has_a_name_even_when_it_is_new(nvml, number, action) -> None:
    nvml.fields = {230: number}
    assert opened(nvml).devices[0].health().health.recovery_action == action


def test_one_field_that_fails_costs_only_itself(nvml) -> None:
    nvml.fields = {**ALL_FIELDS, 230: -999, 269: -2}
    device = opened(nvml).devices[0]
    for _ in range(2):
        result = device.health()
        assert result.errors == ("unknown",)
        assert result.health.recovery_action is None
        assert "sw_thermal_slowdown" not in result.health.clock_event_seconds
        assert result.health.row_remap_pending is True


def test_a_field_that_says_lost_is_a_fault_of_the_gpu(nvml) -> None:
    nvml.fields = {**ALL_FIELDS, 230: -15}
    device = opened(nvml).devices[0]
    with pytest.raises(DeviceFault) as raised:
        device.health()
    assert raised.value.reason is FaultReason.LOST


def test_health_that_cannot_be_read_at_all_is_no_fault_of_the_gpu(nvml) -> None:
    device = opened(nvml).devices[0]
    for name in (
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetMemoryErrorCounter",
        "nvmlDeviceGetRemappedRows",
    ):
        nvml.errors[name] = 10
    with pytest.raises(ReadingError, match="timeout"):
        device.health()


def test_an_xid_comes_with_the_uuid_even_of_a_gpu_that_is_lost(nvml) -> None:
    found = opened(nvml)
    assert found.watched == ("GPU-0", "GPU-1")
    nvml.errors["nvmlDeviceGetUUID"] = 15
    assert found.events.wait(1.0) == (XidEvent("GPU-1", 79),)
    found.events.close()
    assert nvml.calls[-1] == ("nvmlEventSetFree", "set")


def test_a_gpu_without_events_is_not_watched_and_costs_the_others_nothing(nvml) -> None:
    nvml.errors["nvmlDeviceRegisterEvents", 0] = 3
    found = opened(nvml)
    assert found.watched == ("GPU-1",)


@pytest.mark.parametrize(
    ("function", "code"), [("nvmlEventSetCreate", 13), ("nvmlDeviceGetSupportedEventTypes", 3)]
)
def test_a_driver_without_events_still_reads_gpus(nvml, function, code) -> None:
    nvml.errors[function] = code
    found = opened(nvml)
    assert (found.events, found.watched) == (None, ())
    assert len(found.devices) == 2


def test_a_wait_in_vain_is_no_failure_and_one_that_fails_is_its_own(nvml) -> None:
    events = opened(nvml).events
    nvml.errors["nvmlEventSetWait_v2"] = 10
    assert events.wait(1.0) == ()
    nvml.errors["nvmlEventSetWait_v2"] = 15
    with pytest.raises(ReadingError):
        events.wait(1.0)
    nvml.errors["nvmlEventSetWait_v2"] = 1
    with pytest.raises(BackendError):
        events.wait(1.0)
    del nvml.errors["nvmlEventSetWait_v2"]
    nvml.event.eventType = 0x10
    assert events.wait(1.0) == ()
