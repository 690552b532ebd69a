"""What NVML tells of links, MIG devices, processes and margins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from exporter.attribution import cap
from exporter.backends.nvml import NvmlBackend
from exporter.backends.replay import ReplayBackend
from exporter.capture import file as capture_file
from exporter.environment import Environment
from exporter.readings import MigInstance, NvLink, ProcessUse
from tests.exporter.fake_nvml import Parts
from tests.exporter.fakes import FakeClock
from tests.exporter.golden import page_of
from tests.nvml_standin import Driver, DriverProcess

GIB = 2**30
SECOND = 1_000_000
ALL_LINKS = 0xFFFFFFFF


@pytest.fixture
def nvml() -> Parts:
    return Parts()


def device_of(nvml: Parts, clock: FakeClock | None = None, **more):
    return NvmlBackend(nvml, Environment(), clock or FakeClock(), **more).open().devices[0]


def test_margin_encoder_and_decoder(nvml) -> None:
    read = device_of(nvml).sample().sample
    assert read.temperature_margin_celsius == 21
    assert (read.encoder_utilization_ratio, read.decoder_utilization_ratio) == (0.12, 0)


def test_a_margin_below_zero_is_one(nvml) -> None:
    nvml.values["nvmlDeviceGetMarginTemperature"] = -3
    assert device_of(nvml).sample().sample.temperature_margin_celsius == -3


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetMarginTemperature", "nvmlDeviceGetEncoderUtilization"]
)
def test_an_older_driver_has_none_and_is_asked_once(nvml, function) -> None:
    nvml.errors[function] = 13
    device = device_of(nvml)
    assert [device.sample().errors for _ in range(3)] == [(), (), ()]
    assert nvml.calls.count((function, 0)) == 1


def test_the_pcie_link_now_and_at_its_best(nvml) -> None:
    device = device_of(nvml)
    assert (device.info.pcie_link_generation_max, device.info.pcie_link_width_max) == (5, 16)
    health = device.health().health
    assert (health.pcie_link_generation, health.pcie_link_width, health.pcie_replays) == (1, 8, 3)
    assert health.pcie_bytes_per_second is None
    assert ("nvmlDeviceGetPcieThroughput", 0) not in nvml.calls
    nvml.fields[94] = 7
    device = device_of(nvml)
    nvml.calls.clear()
    assert device.health().health.pcie_replays == 7
    assert ("nvmlDeviceGetPcieReplayCounter", 0) not in nvml.calls


def test_pcie_errors_are_those_that_the_card_counts(nvml) -> None:
    assert device_of(nvml).health().health.pcie_errors is None
    nvml.fields.update({173: 4, 180: 1})
    assert device_of(nvml).health().health.pcie_errors == {"correctable": 4, "fatal": 1}


def test_pcie_throughput_is_read_only_if_it_is_wanted(nvml) -> None:
    health = device_of(nvml, pcie_throughput=True).health().health
    assert health.pcie_bytes_per_second == {"transmit": 1_024_000, "receive": 2_048_000}


def test_no_pcie_is_no_link_of_generation_zero(nvml) -> None:
    nvml.values.update(
        nvmlDeviceGetCurrPcieLinkGeneration=0,
        nvmlDeviceGetCurrPcieLinkWidth=0,
        nvmlDeviceGetMaxPcieLinkWidth=0,
    )
    nvml.errors["nvmlDeviceGetPcieReplayCounter"] = 3
    device = device_of(nvml)
    assert device.info.pcie_link_width_max is None
    health = device.health().health
    assert (health.pcie_link_generation, health.pcie_link_width, health.pcie_replays) == (None,) * 3


def hopper_link(nvml: Parts, link: int, state: int = 1, errors: int = 0) -> None:
    nvml.scoped[165, link] = state
    for number in (161, 162, 163) if state else ():
        nvml.scoped[number, link] = errors


def test_nvlinks_their_errors_and_their_traffic(nvml) -> None:
    nvml.fields[91] = 18
    for link in range(18):
        hopper_link(nvml, link, errors=link)
    nvml.scoped[138, ALL_LINKS], nvml.scoped[139, ALL_LINKS] = 10, 20
    device = device_of(nvml)
    health = device.health().health
    assert len(health.nvlinks) == 18
    assert health.nvlinks[5] == NvLink(5, up=True, errors={"replay": 5, "recovery": 5, "crc": 5})
    assert health.nvlink_bytes == {"transmit": 10 * 1024, "receive": 20 * 1024}
    # What no link of this generation has is not asked for again, and the rest in few calls.
    nvml.batches.clear()
    assert device.health().health.nvlinks == health.nvlinks
    assert nvml.batches[1:] == [64, 8, 2]


def test_nvlink_5_counts_traffic_by_link(nvml) -> None:
    nvml.fields[91] = 3
    for link, state in enumerate((1, 1, 0)):
        nvml.scoped.update({(165, link): state, (215, link): 2, (208, link): 0})
        if state:
            nvml.scoped.update({(202, link): 1000 + link, (204, link): 5000})
    device = device_of(nvml)
    health = device.health().health
    assert health.nvlinks[0].errors == {"link_recovery": 2, "receive": 0}
    assert health.nvlink_bytes == {"transmit": 2001, "receive": 10_000}
    # A link that goes down does not make the counter go back.
    nvml.scoped.update({(165, 1): 0, (202, 0): 3000})
    del nvml.scoped[202, 1]
    assert device.health().health.nvlink_bytes == {"transmit": 4001, "receive": 10_000}


def test_traffic_by_link_never_goes_back_nor_grows_by_what_has_passed_before(nvml) -> None:
    nvml.fields[91] = 3
    for link in range(3):
        nvml.scoped.update({(165, link): 1, (202, link): 5000, (204, link): 5000})
    nvml.scoped[165, 2] = 0
    clock = FakeClock()
    backend = NvmlBackend(nvml, Environment(), clock)

    def transmitted(device) -> int:
        return device.health().health.nvlink_bytes["transmit"]

    device = backend.open().devices[0]
    assert transmitted(device) == 10_000
    # Trained anew: it counts from zero, and so much has passed since.
    nvml.scoped[202, 0] = 300
    assert transmitted(device) == 10_300
    # Up at last, with a counter of before; the driver is opened again meanwhile.
    nvml.scoped[165, 2] = 1
    backend.close()
    device = backend.open().devices[0]
    assert transmitted(device) == 10_300
    nvml.scoped[202, 2] += 7
    assert transmitted(device) == 10_307
    for link in range(3):
        nvml.scoped[165, link] = 0
    assert transmitted(device) == 10_307, "nothing passes, which is known"


def test_traffic_that_cannot_be_read_is_absent_and_is_not_taken_from_elsewhere(nvml) -> None:
    nvml.fields[91] = 1
    all_links = {(138, ALL_LINKS): 10, (139, ALL_LINKS): 20}
    nvml.scoped.update(all_links | {(165, 0): 1, (202, 0): 1, (204, 0): 1})
    device = device_of(nvml)
    told = {"transmit": 10 * 1024, "receive": 20 * 1024}
    assert device.health().health.nvlink_bytes == told
    nvml.scoped.update(dict.fromkeys(all_links, -999))
    assert device.health().health.nvlink_bytes is None
    nvml.scoped.update(all_links)
    assert device.health().health.nvlink_bytes == told


def test_traffic_of_links_that_cannot_be_read_is_absent(nvml) -> None:
    nvml.fields[91] = 1
    counters = {(202, 0): 5, (204, 0): 6}
    nvml.scoped.update(counters | {(165, 0): 1})
    device = device_of(nvml)
    assert device.health().health.nvlink_bytes == {"transmit": 5, "receive": 6}
    nvml.scoped.update(dict.fromkeys(counters, -999))
    assert device.health().health.nvlink_bytes is None
    nvml.scoped.update(counters)
    assert device.health().health.nvlink_bytes == {"transmit": 5, "receive": 6}


def test_a_kind_of_error_that_fails_once_is_read_again(nvml) -> None:
    nvml.fields[91] = 1
    hopper_link(nvml, 0)
    nvml.scoped[163, 0] = -999
    device = device_of(nvml)
    assert "crc" not in device.health().health.nvlinks[0].errors
    nvml.scoped[163, 0] = 4
    assert device.health().health.nvlinks[0].errors["crc"] == 4


def test_a_link_that_is_down_has_no_counters_until_it_is_up(nvml) -> None:
    nvml.fields[91] = 3
    hopper_link(nvml, 0, state=2)
    hopper_link(nvml, 1, state=0)
    hopper_link(nvml, 2, state=3)
    device = device_of(nvml)
    first = device.health()
    assert [link.up for link in first.health.nvlinks] == [True, False, False]
    assert (first.health.nvlinks[1].errors, first.errors) == ({}, ())
    hopper_link(nvml, 1, errors=9)
    assert device.health().health.nvlinks[1].errors["crc"] == 9


def test_a_driver_that_has_no_field_for_the_state_is_asked_by_link(nvml) -> None:
    nvml.fields[91] = 2
    nvml.scoped.update({(161, 0): 0, (161, 1): 0})
    nvml.values["nvmlDeviceGetNvLinkState"] = 1
    links = device_of(nvml).health().health.nvlinks
    assert links == (
        NvLink(0, up=True, errors={"replay": 0}),
        NvLink(1, up=True, errors={"replay": 0}),
    )


def test_a_card_without_nvlink_has_none(nvml) -> None:
    health = device_of(nvml).health().health
    assert (health.nvlinks, health.nvlink_bytes) == (None, None)


def test_a_batch_that_is_refused_for_one_field_gives_the_others(nvml) -> None:
    nvml.fields.update({74: 5, 230: 1})
    nvml.refused = {271}
    device = device_of(nvml)
    result = device.health()
    assert (result.health.recovery_action, result.errors) == ("reset", ())
    assert result.health.clock_event_seconds["sw_power_cap"] == 5e-9
    nvml.batches.clear()
    device.health()
    assert len(nvml.batches) == 1


def test_a_driver_that_refuses_every_field_is_asked_again(nvml) -> None:
    nvml.fields.update({74: 5, 230: 1})
    device = device_of(nvml)
    nvml.errors["nvmlDeviceGetFieldValues"] = 2
    result = device.health()
    assert (result.health.recovery_action, result.errors) == (None, ("nvml_2",))
    nvml.errors.clear()
    assert device.health().health.recovery_action == "reset"


def test_a_field_of_a_type_that_nobody_knows_costs_only_itself(nvml) -> None:
    nvml.fields.update({230: 1, 144: 1})
    original = nvml.field

    def field(number):
        found = original(number)
        if number == 230:
            found.valueType = 11
        return found

    nvml.field = field
    device = device_of(nvml)
    for _ in range(2):
        result = device.health()
        assert (result.health.recovery_action, result.errors) == (None, ())
        assert result.health.row_remap_pending is True


def used(pid: int, memory: int = 5) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


def computed(pid: int, at: float, percent: int) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, timeStamp=round(at * SECOND), smUtil=percent)


def utilization(device) -> dict[int, float | None]:
    return {one.pid: one.utilization_ratio for one in device.processes().processes}


def test_utilisation_by_process_is_that_since_the_last_look(nvml) -> None:
    clock = FakeClock()
    nvml.processes = [used(7), used(8), used(9)]
    nvml.samples = [computed(7, 1.0, 90), computed(8, 0.5, 10)]
    device = device_of(nvml, clock)
    # The first look finds out where the driver's clock stands: how old those are is not known.
    assert utilization(device) == {7: None, 8: None, 9: None}
    nvml.samples = [computed(7, 2.0, 40), computed(8, 0.5, 10)]
    clock.now += 15
    assert utilization(device) == {7: 0.4, 8: None, 9: None}
    clock.now += 15
    assert utilization(device) == {7: None, 8: None, 9: None}
    assert nvml.since == [0, 1 * SECOND, 2 * SECOND]


def test_samples_that_are_no_readings_of_a_process_that_is_there(nvml) -> None:
    nvml.processes = [used(7), used(8)]
    nvml.samples = [computed(7, 1.0, 1)]
    device = device_of(nvml)
    utilization(device)
    nvml.samples = [computed(7, 2.0, 4_294_967_295), computed(999, 2.1, 50), computed(8, 0, 50)]
    assert utilization(device) == {7: None, 8: None}
    # The newest of several is how it is now.
    nvml.samples = [computed(7, 4.0, 60), computed(7, 3.0, 20)]
    assert utilization(device) == {7: 0.6, 8: None}


@pytest.mark.parametrize("code", [0, 6, 7, 21])
def test_no_news_of_processes_is_no_error(nvml, code) -> None:
    nvml.processes = [used(7)]
    device = device_of(nvml)

    def nothing(name, handle, arguments):
        if name == "nvmlDeviceGetProcessUtilization":
            raise nvml.NVMLError(code)
        return Parts.answer(nvml, name, handle, arguments)

    nvml.answer = nothing
    for _ in range(2):
        assert utilization(device) == {7: None}


def test_utilisation_by_process_that_cannot_be_read_is_an_error_and_none_is_made_up(nvml) -> None:
    nvml.processes = [used(7)]
    nvml.samples = [computed(7, 1.0, 90)]
    device = device_of(nvml)
    utilization(device)
    nvml.samples = [computed(7, 2.0, 60)]
    for code, word in ((999, "unknown"), (4, "no_permission"), (10, "timeout")):
        nvml.errors["nvmlDeviceGetProcessUtilization"] = code
        result = device.processes()
        assert [(one.pid, one.utilization_ratio) for one in result.processes] == [(7, None)]
        assert result.errors == (word,)
    del nvml.errors["nvmlDeviceGetProcessUtilization"]
    # What it computed while nobody could look is not what it computes now.
    assert utilization(device) == {7: None}
    nvml.samples = [computed(7, 3.0, 30)]
    assert utilization(device) == {7: 0.3}
    nvml.errors["nvmlDeviceGetProcessUtilization"] = 3
    assert device.processes().errors == ()


def test_after_the_drivers_clock_was_set_back_processes_are_told_of_again(nvml) -> None:
    clock = FakeClock()
    nvml.processes = [used(7)]
    nvml.samples = [computed(7, 5000, 90)]
    device = device_of(nvml, clock)
    utilization(device)
    seen = []
    for second in range(12):
        nvml.samples = [computed(7, 100 + second * 15, 30)]
        clock.now += 15
        seen.append(utilization(device)[7])
    assert seen[0] is None
    assert seen[-1] == 0.3


def test_a_gpu_that_cannot_tell_processes_apart_is_asked_once(nvml) -> None:
    nvml.processes = [used(7)]
    nvml.errors["nvmlDeviceGetProcessUtilization"] = 3
    device = device_of(nvml)
    assert [utilization(device) for _ in range(3)] == [{7: None}] * 3
    assert nvml.calls.count(("nvmlDeviceGetProcessUtilization", 0)) == 1


def test_the_remainder_sums_up_utilisation_too() -> None:
    uses = [ProcessUse(pid, memory_used_bytes=9 - pid, utilization_ratio=0.1) for pid in range(4)]
    rest = cap(uses, 2)[-1]
    assert (rest.process, rest.utilization_ratio) == ("other", 0.2)
    quiet = [ProcessUse(pid, memory_used_bytes=1) for pid in range(3)]
    assert cap(quiet, 1)[-1].utilization_ratio is None


@pytest.fixture
def divided(tmp_path) -> Driver:
    driver = Driver(tmp_path / "driver")
    driver.set(0, mig_current=1, mig_pending=1, utilization=None)
    driver.set_rows(0, "mig", (0, 1, 0, 5 * GIB, 2 * GIB, 1), (3, 2, 0, 20 * GIB, 0, 3))
    driver.set_rows(0, "nvlink", (0, 1, 4, 0, 0), (1, 0, 0, 0, 0))
    driver.set_processes(0, [DriverProcess(4194999, GIB, sm_utilization=30)])
    return driver


def test_mig_links_and_processes_through_the_real_binding_and_a_replay(divided, tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    subprocess.run(
        [sys.executable, "-m", "exporter", "capture", str(path), "--passes=1"],
        env=os.environ | divided.env(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    capture = capture_file.load(path)
    health = ReplayBackend(capture).open().devices[0].health()
    assert health.errors == ()
    small, big = health.health.mig_instances
    assert health.health.mig_mode == {"current": True, "pending": True}
    assert small == MigInstance(small.uuid, 1, 0, "1g.5gb", 5 * GIB, 2 * GIB, 3 * GIB)
    assert (big.gpu_instance, big.profile, big.memory_used_bytes) == (2, "3g.20gb", 0)
    # Made up, as every uuid of a capture is.
    assert small.uuid.startswith("MIG-00000000-0000-4000-8000-")
    assert small.uuid != big.uuid
    assert health.health.nvlinks == (
        NvLink(0, up=True, errors={"replay": 4, "recovery": 0, "crc": 0}),
        NvLink(1, up=False, errors={"replay": 0, "recovery": 0, "crc": 0}),
    )
    page = page_of(ReplayBackend(capture))
    assert f'mig_uuid="{small.uuid}",profile="1g.5gb"' in page
    assert "gpu_utilization_ratio{" not in page
    recorded = json.loads(
        next(line for line in path.read_text().splitlines() if "ProcessUtilization" in line)
    )
    assert [one["pid"] > 2**22 for one in recorded["result"]] == [True]


MIG = {
    "nvmlDeviceGetMigMode": [1, 0],
    "nvmlDeviceGetMaxMigDeviceCount": 3,
    "nvmlDeviceGetGpuInstanceId": 1,
    "nvmlDeviceGetComputeInstanceId": 0,
    "nvmlDeviceGetName": "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
}


@pytest.mark.parametrize(
    ("function", "uuids"),
    [("nvmlDeviceGetMemoryInfo", ["GPU-mig-0", "GPU-mig-1"]), ("nvmlDeviceGetName", ["GPU-mig-1"])],
)
def test_the_memory_of_a_mig_device_that_fails_costs_not_the_device(nvml, function, uuids) -> None:
    nvml.values.update(MIG | {"nvmlDeviceGetMaxMigDeviceCount": 2})
    original = nvml.answer

    def answer(name, handle, arguments):
        if name == "nvmlDeviceGetMigDeviceHandleByIndex":
            return f"mig-{arguments[0]}"
        return original(name, handle, arguments)

    nvml.answer = answer
    nvml.errors[function, "mig-0"] = 999
    device = device_of(nvml)
    nvml.calls.clear()
    result = device.health()
    found = {one.uuid: one for one in result.health.mig_instances}
    assert list(found) == uuids
    assert found["GPU-mig-1"].memory_used_bytes is not None
    if "GPU-mig-0" in found:
        assert found["GPU-mig-0"].memory_used_bytes is None
        assert nvml.calls.count((function, "mig-0")) == 1, "the older call counts otherwise"
    assert result.errors == ("unknown",)


def test_a_mig_device_that_fails_costs_only_itself(nvml) -> None:
    nvml.values.update(MIG)
    original = nvml.answer

    def answer(name, handle, arguments):
        if name == "nvmlDeviceGetMigDeviceHandleByIndex":
            (index,) = arguments
            if index == 0:
                raise nvml.NVMLError(6)
            return f"mig-{index}"
        if (name, handle) == ("nvmlDeviceGetUUID", "mig-1"):
            raise nvml.NVMLError(999)
        return original(name, handle, arguments)

    nvml.answer = answer
    result = device_of(nvml).health()
    assert [one.uuid for one in result.health.mig_instances] == ["GPU-mig-2"]
    assert result.health.mig_mode == {"current": True, "pending": False}
    assert result.errors == ("unknown",)


def test_a_card_that_is_not_divided_has_no_devices_and_is_not_asked_for_them(nvml) -> None:
    nvml.values["nvmlDeviceGetMigMode"] = [0, 1]
    health = device_of(nvml).health().health
    assert (health.mig_mode, health.mig_instances) == ({"current": False, "pending": True}, ())
    nvml.errors["nvmlDeviceGetMigMode"] = 3
    health = device_of(nvml).health().health
    assert (health.mig_mode, health.mig_instances) == (None, None)
