"""The stand-in's sample buffers, links, PCIe and MIG, as the real binding sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nvml_standin import Driver, DriverProcess, StandinError
from tests.nvml_standin.test_standin import run

GIB = 2**30


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path / "driver")


def test_a_buffer_is_dry_or_full_of_what_the_card_says_now(driver: Driver) -> None:
    driver.set(0, utilization=70, sample_period_ms=100)
    kind, spacing, values, later, power, none = run(
        driver,
        """
        kind, found = nvmlDeviceGetSamples(card(), NVML_GPU_UTILIZATION_SAMPLES, 0)
        stamps = [one.timeStamp for one in found]
        later = code(nvmlDeviceGetSamples, card(), NVML_GPU_UTILIZATION_SAMPLES, stamps[-1] + 10**9)
        power = nvmlDeviceGetSamples(card(), NVML_TOTAL_POWER_SAMPLES, 0)[1][0].sampleValue.uiVal
        none = code(nvmlDeviceGetSamples, card(), NVML_ENC_UTILIZATION_SAMPLES, 0)
        spacing = sorted({b - a for a, b in zip(stamps, stamps[1:])})
        values = sorted({one.sampleValue.uiVal for one in found})
        print(json.dumps([kind, spacing, values, later, power, none]))
        """,
    )
    assert (kind, spacing, values) == (1, [100_000], [70])
    assert (later, power, none) == (6, 52_000, 3)
    driver.set(0, sample_period_ms=0)
    asked = "print(json.dumps(code(nvmlDeviceGetSamples, card(), 1, 0)))"
    assert run(driver, asked) == 6
    driver.set(0, sample_period_ms=None)
    assert run(driver, asked) == 3


def test_links_and_pcie_say_what_a_test_says(driver: Driver) -> None:
    driver.set(0, pcie_generation=1, pcie_width=8, pcie_rx_kb=7, pcie_replays=5, nvlink_tx_kib=9)
    driver.set_rows(0, "nvlink", (0, 1, 2, 3, 4))
    driver.fail_field(161, error=999)
    pcie, fields, states = run(
        driver,
        """
        h = card()
        pcie = [nvmlDeviceGetCurrPcieLinkGeneration(h), nvmlDeviceGetCurrPcieLinkWidth(h),
                nvmlDeviceGetMaxPcieLinkWidth(h), nvmlDeviceGetPcieThroughput(h, 1),
                nvmlDeviceGetPcieReplayCounter(h)]
        wanted = [91, (165, 0), (161, 0), (163, 0), (163, 1), (138, 0xFFFFFFFF)]
        fields = [[one.nvmlReturn, one.value.uiVal] for one in nvmlDeviceGetFieldValues(h, wanted)]
        states = [nvmlDeviceGetNvLinkState(h, 0), code(nvmlDeviceGetNvLinkState, h, 1)]
        print(json.dumps([pcie, fields, states]))
        """,
    )
    assert pcie == [1, 8, 16, 7, 5]
    assert [code for code, _ in fields] == [0, 0, 999, 0, 2, 0]
    assert [value for code, value in fields if code == 0] == [1, 1, 4, 9]
    assert states == [1, 2]


def test_a_mig_device_has_the_faults_of_its_card(driver: Driver) -> None:
    driver.set(0, mig_current=1)
    driver.set_rows(0, "mig", (2, 1, 0, 5 * GIB, GIB, 1))
    script = """
        h = card()
        modes = nvmlDeviceGetMigMode(h)
        empty = code(nvmlDeviceGetMigDeviceHandleByIndex, h, 0)
        mig = nvmlDeviceGetMigDeviceHandleByIndex(h, 2)
        memory = nvmlDeviceGetMemoryInfo(mig)
        told = [nvmlDeviceGetUUID(mig)[:4], nvmlDeviceGetName(mig)[-10:], memory.total, memory.used]
        ids = [nvmlDeviceGetGpuInstanceId(mig), nvmlDeviceGetComputeInstanceId(mig),
               nvmlDeviceIsMigDeviceHandle(mig).value, nvmlDeviceIsMigDeviceHandle(h).value]
        print(json.dumps([modes, empty, told, ids]))
        """
    modes, empty, told, ids = run(driver, script)
    assert (modes, empty) == ([1, 1], 6)
    assert told == ["MIG-", "MIG 1g.5gb", 5 * GIB, GIB]
    assert ids == [1, 0, 1, 0]
    driver.fail("nvmlDeviceGetGpuInstanceId", gpu=0, error=15)
    asked = """
        mig = nvmlDeviceGetMigDeviceHandleByIndex(card(), 2)
        print(json.dumps(code(nvmlDeviceGetGpuInstanceId, mig)))
        """
    assert run(driver, asked) == 15


def test_utilisation_by_process_is_what_it_is_now_or_what_a_test_says(driver: Driver) -> None:
    driver.set_processes(0, [DriverProcess(7, GIB, sm_utilization=30)])
    asked = """
        found = nvmlDeviceGetProcessUtilization(card(), 5)
        print(json.dumps([[one.pid, one.smUtil] for one in found]))
        """
    assert run(driver, asked) == [[7, 30]]
    driver.set_rows(0, "process_sample", (8, 5, 90), (9, 6, 91))
    assert run(driver, asked) == [[9, 91]]


def test_a_key_that_no_card_has_several_of_is_refused(driver: Driver) -> None:
    with pytest.raises(StandinError, match="known"):
        driver.set_rows(0, "samples", (1, 2, 3))
