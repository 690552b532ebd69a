"""The stand-in driver through the real ctypes binding, each time in a process of its own."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nvml_standin import Driver, DriverProcess, StandinError, build
from tests.waiting import poll

PREAMBLE = """
import json, sys, time
import pynvml as nvml
from pynvml import *
def code(call, *arguments):
    try:
        call(*arguments)
    except NVMLError as error:
        return error.value
    return 0
def card(index=0):
    return nvmlDeviceGetHandleByIndex(index)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path / "driver", gpus=4)


def start(driver: Driver, script: str, *, init: bool = True) -> subprocess.Popen[str]:
    source = PREAMBLE + ("nvmlInit()\n" if init else "") + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", source],
        env=os.environ | driver.env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(driver: Driver, script: str, *, init: bool = True) -> Any:
    """Run a script against the driver; returns the JSON that it prints."""
    with start(driver, script, init=init) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return json.loads(output)


class Watcher:
    """A process that stays, and answers an expression a line."""

    def __init__(self, driver: Driver) -> None:
        self.process = start(
            driver,
            """
            handles = [card(i) for i in range(4)]
            for line in sys.stdin:
                print(json.dumps(eval(line)), flush=True)
            """,
        )
        assert self.ask("len(handles)") == 4

    def ask(self, expression: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)


@pytest.fixture
def watch() -> Iterator[Callable[[Driver], Watcher]]:
    watchers: list[Watcher] = []

    def open_one(driver: Driver) -> Watcher:
        watchers.append(Watcher(driver))
        return watchers[-1]

    yield open_one
    for watcher in watchers:
        watcher.close()


def test_it_never_passes_for_a_real_driver(driver: Driver) -> None:
    assert "standin" in run(driver, "print(json.dumps(nvmlSystemGetDriverVersion()))")


def test_it_is_built_once_for_the_same_source(tmp_path: Path) -> None:
    first = build(tmp_path)
    built_at = (first / "libnvidia-ml.so.1").stat().st_mtime_ns
    assert build(tmp_path) == first
    assert (first / "libnvidia-ml.so.1").stat().st_mtime_ns == built_at


def test_readings_arrive_in_the_librarys_units(driver: Driver) -> None:
    gibibyte = 1024**3
    driver.set(
        1,
        temperature=84,
        power_mw=391_000,
        utilization=99,
        memory_used=8 * gibibyte,
        clock_sm=1200,
        clock_events=0x4,
        fan=40,
        recovery_action=1,
        memory_temperature=90,
    )
    read = run(
        driver,
        """
        h = card(1)
        memory = nvmlDeviceGetMemoryInfo(h, version=nvml.nvmlMemory_v2)
        values = nvmlDeviceGetFieldValues(h, [82, 83, 230, 9999])
        print(json.dumps(dict(
            count=nvmlDeviceGetCount(), index=nvmlDeviceGetIndex(h), name=nvmlDeviceGetName(h),
            temperature=nvmlDeviceGetTemperatureV(h, 0), old=nvmlDeviceGetTemperature(h, 0),
            power=nvmlDeviceGetPowerUsage(h), utilization=nvmlDeviceGetUtilizationRates(h).gpu,
            used=memory.used, sum=memory.used + memory.free + memory.reserved == memory.total,
            with_reserved=nvmlDeviceGetMemoryInfo(h).used,
            limits=nvmlDeviceGetPowerManagementLimitConstraints(h),
            default=nvmlDeviceGetPowerManagementDefaultLimit(h),
            sm=nvmlDeviceGetClockInfo(h, NVML_CLOCK_SM), top=nvmlDeviceGetMaxClockInfo(h, NVML_CLOCK_SM),
            events=nvmlDeviceGetCurrentClocksEventReasons(h), fan=nvmlDeviceGetFanSpeed(h),
            state=nvmlDeviceGetPerformanceState(h), pci=nvmlDeviceGetPciInfo(h).busId,
            slowdown=nvmlDeviceGetTemperatureThreshold(h, 1), margin=nvmlDeviceGetMarginTemperature(h),
            energy=nvmlDeviceGetTotalEnergyConsumption(h),
            fields=[v.value.uiVal if v.nvmlReturn == 0 else -v.nvmlReturn for v in values],
            again=nvmlDeviceGetHandleByUUID(nvmlDeviceGetUUID(h)).value == h.value
                if hasattr(h, "value") else True,
        )))
        """,
    )
    assert read == {
        "count": 4,
        "index": 1,
        "name": "NVIDIA A100-SXM4-40GB",
        "temperature": 84,
        "old": 84,
        "power": 391_000,
        "utilization": 99,
        "used": 8 * gibibyte,
        "sum": True,
        "with_reserved": 8 * gibibyte + 512 * 1024**2,
        "limits": [100_000, 400_000],
        "default": 400_000,
        "sm": 1200,
        "top": 1410,
        "events": 4,
        "fan": 40,
        "state": 0,
        "pci": "00000000:3C:00.0",
        "slowdown": 89,
        "margin": 5,
        "energy": 1_000_000,
        "fields": [90, 1_000_000, 1, -3],
        "again": True,
    }


def test_an_absent_reading_is_not_supported_rather_than_zero(driver: Driver) -> None:
    driver.set(0, fan=None, utilization=None)
    script = """
    print(json.dumps([code(nvmlDeviceGetFanSpeed, card()), code(nvmlDeviceGetUtilizationRates, card()),
                      code(nvmlDeviceGetSerial, card())]))
    """
    assert run(driver, script) == [3, 3, 3]


def test_a_batch_of_fields_answers_for_each_of_them(driver: Driver) -> None:
    driver.set(0, thermal_ns=7, retired_double_bit=2, remapped_pending=1, ecc_uncorrected=3)
    driver.fail_field(144, gpu=0, error=16)
    script = """
    def fields(index):
        values = nvmlDeviceGetFieldValues(card(index), [75, 30, 144, 4, 31])
        return [v.value.ullVal if v.nvmlReturn == 0 else -v.nvmlReturn for v in values]
    print(json.dumps([fields(0), fields(1)]))
    """
    assert run(driver, script) == [[7, 2, -16, 3, -3], [-3, -3, 0, 0, -3]]


def test_ecc_is_told_by_memory(driver: Driver) -> None:
    driver.set(0, ecc_dram_corrected=1, ecc_dram_uncorrected=2, ecc_sram_corrected=3,
               ecc_sram_uncorrected=None)  # fmt: skip
    script = """
    def count(error, location):
        try:
            return nvmlDeviceGetMemoryErrorCounter(card(), error, NVML_VOLATILE_ECC, location)
        except NVMLError as failed:
            return -failed.value
    print(json.dumps([count(e, l) for l in (2, 7, 1) for e in (0, 1)]))
    """
    assert run(driver, script) == [1, 2, 3, -3, -3, -3]


def test_xids_reach_who_registered_before_and_only_for_those_cards(driver: Driver) -> None:
    driver.xid(0, 13)
    script = """
    events = nvmlEventSetCreate()
    for index in (0, 2):
        nvmlDeviceRegisterEvents(card(index), nvmlDeviceGetSupportedEventTypes(card(index)), events)
    print("ready", flush=True)
    told = []
    while len(told) < 3:
        data = nvmlEventSetWait_v2(events, 20000)
        told.append((nvmlDeviceGetIndex(data.device), data.eventType, data.eventData))
    print(json.dumps([told, code(nvmlEventSetWait_v2, events, 10), code(nvmlEventSetFree, events)]))
    """
    process = start(driver, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for gpu, xid in ((2, 79), (1, 31), (0, 48), (0, 48)):
        driver.xid(gpu, xid)
    output, _ = process.communicate(timeout=30)
    assert json.loads(output) == [[[2, 8, 79], [0, 8, 48], [0, 8, 48]], 10, 0]


def test_a_reading_the_library_does_not_know_is_refused(driver: Driver) -> None:
    with pytest.raises(StandinError, match="temprature"):
        driver.set(0, temprature=84)


def test_processes_are_listed_by_kind(driver: Driver) -> None:
    held = [DriverProcess(1000 + i, (i + 1) * 1024**2, "G" if i == 2 else "C") for i in range(3)]
    driver.set_processes(0, held)
    script = """
    print(json.dumps([[(p.pid, p.usedGpuMemory) for p in nvmlDeviceGetComputeRunningProcesses(card())],
                      [p.pid for p in nvmlDeviceGetGraphicsRunningProcesses(card())],
                      nvmlDeviceGetComputeRunningProcesses(card(1)),
                      code(nvmlDeviceGetProcessUtilization, card(1), 0)]))
    """
    assert run(driver, script) == [[[1000, 1024**2], [1001, 2 * 1024**2]], [1002], [], 6]


def test_a_change_is_seen_by_a_process_that_runs_already(driver: Driver, watch: Any) -> None:
    watcher = watch(driver)
    assert watcher.ask("nvmlDeviceGetTemperatureV(handles[0], 0)") == 45
    driver.set(0, temperature=84)
    assert watcher.ask("nvmlDeviceGetTemperatureV(handles[0], 0)") == 84


def test_a_fault_hits_one_function_of_one_card(driver: Driver, watch: Any) -> None:
    watcher = watch(driver)
    driver.fail("nvmlDeviceGetTemperatureV", gpu=0, error=16)
    assert watcher.ask("code(nvmlDeviceGetTemperatureV, handles[0], 0)") == 16
    assert watcher.ask("code(nvmlDeviceGetTemperatureV, handles[1], 0)") == 0
    assert watcher.ask("code(nvmlDeviceGetPowerUsage, handles[0])") == 0
    driver.clear()
    assert watcher.ask("code(nvmlDeviceGetTemperatureV, handles[0], 0)") == 0


def test_a_fault_on_a_name_holds_for_its_versions(driver: Driver) -> None:
    driver.fail("nvmlDeviceGetMemoryInfo", error=999)
    script = "print(code(lambda: nvmlDeviceGetMemoryInfo(card(), version=nvml.nvmlMemory_v2)))"
    assert run(driver, script) == 999


def test_a_fault_on_everything_leaves_initialising_alone(driver: Driver) -> None:
    driver.fail(gpu=2, error=10)
    script = "print(json.dumps([code(lambda: nvmlDeviceGetName(card(i))) for i in range(4)]))"
    assert run(driver, script) == [0, 0, 10, 0]


@pytest.mark.parametrize("error", [9, 18, 999])
def test_initialising_can_fail(driver: Driver, error: int) -> None:
    driver.fail("nvmlInit", error=error)
    assert run(driver, "print(code(nvmlInit))", init=False) == error


def test_a_driver_that_is_not_loaded_comes_back(driver: Driver) -> None:
    driver.unload()
    assert run(driver, "print(code(nvmlInit))", init=False) == 9
    driver.load()
    assert run(driver, "print(code(nvmlInit))", init=False) == 0


def test_without_initialising_nothing_answers(driver: Driver) -> None:
    script = "nvmlInit(); nvmlShutdown(); print(code(nvmlDeviceGetCount))"
    assert run(driver, script, init=False) == 1


def test_who_holds_the_driver_is_seen_until_it_lets_go(driver: Driver) -> None:
    assert driver.clients() == []
    with start(
        driver,
        """
        for line in sys.stdin:
            eval(line)
            print("done", flush=True)
        """,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def do(call: str) -> list[int]:
            process.stdin.write(call + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            return driver.clients()

        assert do("nvmlInit()") == [process.pid]
        assert do("nvmlShutdown()") == [process.pid], "it is initialised twice"
        assert do("nvmlShutdown()") == []
        assert do("nvmlInit()") == [process.pid]
        process.kill()
    assert driver.clients() == []
    assert run(driver, "print(json.dumps(1))") == 1
    assert [int(one.name) for one in (driver.directory / "clients").iterdir()] == [process.pid], (
        "only who was killed leaves something behind"
    )


def test_a_lost_card_leaves_the_others_alone(driver: Driver, watch: Any) -> None:
    watcher = watch(driver)
    driver.lose(1)
    codes = "[code(nvmlDeviceGetTemperatureV, handle, 0) for handle in handles]"
    assert watcher.ask(codes) == [0, 15, 0, 0]
    assert watcher.ask("[code(card, i) for i in range(4)]") == [0, 15, 0, 0]
    assert watcher.ask("nvmlDeviceGetCount()") == 4
    assert watcher.ask("code(nvmlDeviceSetPowerManagementLimit, handles[1], 320000)") == 15
    driver.clear()
    assert watcher.ask(codes) == [0, 0, 0, 0]


def test_a_removed_card_moves_the_indices_up_but_not_the_handles(
    driver: Driver, watch: Any
) -> None:
    watcher = watch(driver)
    driver.remove(1)
    assert watcher.ask("nvmlDeviceGetCount()") == 3
    assert watcher.ask("[nvmlDeviceGetUUID(card(i)) for i in range(3)]") == [
        driver.uuids[i] for i in (0, 2, 3)
    ]
    assert watcher.ask("nvmlDeviceGetIndex(handles[2])") == 1
    assert watcher.ask("code(nvmlDeviceGetPowerUsage, handles[1])") == 15
    assert watcher.ask("code(card, 3)") == 2


def test_latency_is_added_to_each_call(driver: Driver) -> None:
    driver.delay("nvmlDeviceGetPowerUsage", gpu=0, seconds=0.3)
    script = """
    began = time.monotonic(); nvmlDeviceGetPowerUsage(card()); print(time.monotonic() - began)
    """
    assert run(driver, script) >= 0.3


@pytest.mark.parametrize("uninterruptible", [False, True])
def test_a_hung_call_blocks_one_thread_until_it_is_cleared(
    driver: Driver, uninterruptible: bool
) -> None:
    driver.hang("nvmlDeviceGetPowerUsage", gpu=0, uninterruptible=uninterruptible)
    script = """
    import threading
    thread = threading.Thread(target=nvmlDeviceGetPowerUsage, args=(card(0),), daemon=True)
    thread.start()
    print(json.dumps([nvmlDeviceGetPowerUsage(card(1)), nvmlDeviceGetTemperatureV(card(0), 0)]), flush=True)
    thread.join()
    print("done", flush=True)
    """
    process = start(driver, script)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == [52_000, 45]
    if uninterruptible:
        poll(lambda: "D" in thread_states(process.pid))
    assert process.poll() is None
    driver.clear()
    output, _ = process.communicate(timeout=20)
    assert (output, process.returncode) == ("done\n", 0)


def thread_states(pid: int) -> set[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


def test_a_process_with_an_uninterruptible_call_leaves_nothing_behind(driver: Driver) -> None:
    driver.hang("nvmlDeviceGetPowerUsage", uninterruptible=True)
    process = start(driver, "print('calling', flush=True); nvmlDeviceGetPowerUsage(card())")
    assert process.stdout is not None
    assert process.stdout.readline() == "calling\n"
    poll(lambda: "D" in thread_states(process.pid))
    (child,) = map(
        int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    )
    process.kill()
    process.communicate(timeout=20)
    poll(lambda: not Path(f"/proc/{child}").exists())


def test_a_power_limit_takes_effect_across_processes_and_is_logged(
    driver: Driver, watch: Any
) -> None:
    watcher = watch(driver)
    script = """
    nvmlDeviceSetPowerManagementLimit(card(2), 320000)
    print(json.dumps([nvmlDeviceGetPowerManagementLimit(card(2)), nvmlDeviceGetEnforcedPowerLimit(card(2))]))
    """
    assert run(driver, script) == [320_000, 320_000]
    assert watcher.ask("nvmlDeviceGetPowerManagementLimit(handles[2])") == 320_000
    assert watcher.ask("nvmlDeviceGetPowerManagementLimit(handles[0])") == 400_000
    assert [driver.power_limit(i) for i in range(4)] == [400, 400, 320, 400]
    (write,) = driver.writes()
    assert write.function == "nvmlDeviceSetPowerManagementLimit"
    assert (write.uuid, write.value, write.code, write.applied) == (
        driver.uuids[2],
        320_000,
        0,
        True,
    )
    assert write.pid not in (watcher.process.pid, os.getpid())


def test_a_refused_write_changes_nothing_and_is_logged(driver: Driver) -> None:
    driver.refuse_writes(0)
    driver.refuse_writes(1, error=999)
    driver.ignore_writes(2)
    script = """
    print(json.dumps([code(nvmlDeviceSetPowerManagementLimit, card(i), mw)
                      for i, mw in ((0, 320000), (1, 320000), (2, 320000), (3, 90000))]))
    """
    assert run(driver, script) == [4, 999, 0, 2]
    assert [driver.power_limit(i) for i in range(4)] == [400] * 4
    assert [(write.code, write.applied) for write in driver.writes()] == [
        (4, False),
        (999, False),
        (0, False),
        (2, False),
    ]


def test_what_is_not_implemented_is_absent(driver: Driver) -> None:
    assert run(driver, "print(code(nvmlDeviceGetTopologyCommonAncestor, card(0), card(1)))") == 13


def test_many_calls_on_many_processes_parse_the_state_once(driver: Driver) -> None:
    for gpu in range(4):
        driver.set_processes(gpu, [DriverProcess(10_000 + i, 1024**2) for i in range(128)])
    script = """
    import os, resource
    handles = [card(i) for i in range(4)]
    [nvmlDeviceGetPowerUsage(h) for h in handles]
    read_before = int(open("/proc/self/io").read().split()[1])
    for _ in range(200):
        for h in handles:
            nvmlDeviceGetPowerUsage(h)
    print(int(open("/proc/self/io").read().split()[1]) - read_before)
    """
    # What is read is the accounting file itself, not a state of 512 processes 800 times.
    assert run(driver, script) < 10_000


def test_threads_may_call_while_the_state_changes(driver: Driver) -> None:
    script = """
    import threading
    seen = set()
    def read():
        for _ in range(2000):
            held = nvmlDeviceGetComputeRunningProcesses(card(0))
            seen.add((nvmlDeviceGetTemperatureV(card(0), 0), len(held)))
    print("go", flush=True)
    threads = [threading.Thread(target=read) for _ in range(4)]
    [t.start() for t in threads]; [t.join() for t in threads]
    print(json.dumps(sorted(seen)))
    """
    process = start(driver, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    stop = threading.Event()

    def change() -> None:
        temperature = 45
        while not stop.wait(0.005):
            temperature = 45 + (temperature - 44) % 10
            driver.set(0, temperature=temperature)

    changer = threading.Thread(target=change)
    changer.start()
    output, _ = process.communicate(timeout=60)
    stop.set()
    changer.join()
    assert process.returncode == 0
    assert all(45 <= temperature <= 55 and count == 0 for temperature, count in json.loads(output))
