"""The nvidia-smi backend against a program of that name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from exporter.backends import registry
from exporter.backends._smi_command import SmiCommand, Timeout
from exporter.backends.nvidia_smi import NvidiaSmiBackend
from exporter.clock import SystemClock
from exporter.config import Config, Intervals
from exporter.device_sampler import Schedule
from exporter.environment import Environment
from exporter.errors import BackendError, DeviceFault, ReadingError
from exporter.frames import DevicesFrame, FaultFrame, Frame, SampleFrame
from exporter.readings import BackendReason, DeviceHealth, FaultReason, Sample
from exporter.sampling import Collector
from exporter.service import Service, ServiceOptions
from tests.exporter.fake_smi import FakeSmi
from tests.exporter.fakes import FakeClock

MIB = 2**20


@pytest.fixture
def smi(tmp_path, monkeypatch):
    made = FakeSmi(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    monkeypatch.delenv("KUBERNETES_PORT", raising=False)
    yield made
    for pid in made.hung():
        if alive(pid):
            os.killpg(pid, signal.SIGKILL)


@pytest.fixture
def backend(smi, tmp_path) -> NvidiaSmiBackend:
    return NvidiaSmiBackend(Environment(tmp_path), FakeClock(), timeout=1.0, together=1.0)


def alive(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def fields(call: list[str]) -> list[str]:
    (query,) = (one for one in call if one.startswith("--query-gpu="))
    return query.partition("=")[2].split(",")


def test_units_are_base_units(backend) -> None:
    found = backend.open()
    assert found.driver_version == "580.95.05"
    first = found.devices[0]
    info, read = first.info, first.sample()
    assert (info.index, info.uuid, info.name) == (0, "GPU-0", "NVIDIA A100-SXM4-40GB")
    assert info.pci_bus_id == "00000000:00:00.0"
    assert info.memory_total_bytes == 40960 * MIB
    assert info.power_limit_default_watts == 400
    assert (info.power_limit_min_watts, info.power_limit_max_watts) == (100, 400)
    assert info.clocks_max_hertz["memory"] == 1.215e9
    assert read.errors == ()
    assert read.sample == Sample(
        temperature_celsius=64,
        memory_temperature_celsius=71,
        memory_total_bytes=40960 * MIB,
        memory_used_bytes=8192 * MIB,
        memory_free_bytes=32256 * MIB,
        memory_reserved_bytes=512 * MIB,
        utilization_ratio=0.97,
        memory_utilization_ratio=0.3,
        encoder_utilization_ratio=0.05,
        decoder_utilization_ratio=0,
        power_watts=210.53,
        power_limit_watts=320,
        clocks_hertz={"graphics": 1.2e9, "sm": 1.2e9, "memory": 1.215e9, "video": 1.1e9},
        clock_events=("sw_power_cap", "hw_thermal_slowdown"),
        performance_state=0,
    )


def test_what_newer_and_older_drivers_tell_of_margins_and_links(smi, tmp_path) -> None:
    smi.unknown = ["utilization.encoder", "utilization.decoder", "pcie.link.gen.gpucurrent"]
    smi.set(
        0, temperature__gpu__tlimit="-2", mig__mode__current="[N/A]", mig__mode__pending="[N/A]"
    )
    device = NvidiaSmiBackend(Environment(tmp_path), FakeClock()).open().devices[0]
    read, health = device.sample(), device.health()
    assert read.sample.temperature_margin_celsius == -2
    assert (read.sample.encoder_utilization_ratio, read.errors) == (None, ())
    assert (health.health.pcie_link_generation, health.errors) == (3, ())
    assert health.health.mig_mode is None


def test_health_in_the_same_words_as_every_backend(smi, backend) -> None:
    first, second = backend.open().devices
    smi.set(1, gpu_recovery_action="Drain and Reset", ecc__errors__corrected__volatile__sram="N/A")
    assert first.health().health == DeviceHealth(
        clock_event_seconds={"sw_power_cap": 1.5, "hw_thermal_slowdown": 0},
        ecc_errors={
            "corrected": {"dram": 3, "sram": 0},
            "uncorrected": {"dram": 0, "sram": 0},
        },
        remapped_rows={"correctable": 1, "uncorrectable": 0},
        row_remap_pending=True,
        row_remap_failure=False,
        recovery_action="none",
        pcie_link_generation=4,
        pcie_link_width=8,
        mig_mode={"current": False, "pending": True},
    )
    assert (first.info.pcie_link_generation_max, first.info.pcie_link_width_max) == (4, 16)
    health = second.health().health
    assert health.recovery_action == "drain_and_reset"
    assert health.ecc_errors["corrected"] == {"all": 3}


@pytest.mark.parametrize(
    ("said", "action"),
    [("Reset", "reset"), ("GPU Reset", "reset"), ("Reboot", "reboot"),
     ("Node Reboot", "reboot"), ("Drain P2P", "drain_p2p"), ("Unknown(9)", "unknown"),
     ("[N/A]", None)],
)  # fmt: skip
def test_recovery_actions_in_all_spellings(smi, backend, said, action) -> None:
    smi.set(0, gpu_recovery_action=said)
    assert backend.open().devices[0].health().health.recovery_action == action


def test_an_older_driver_is_asked_for_what_it_knows(smi, backend) -> None:
    smi.unknown = [
        "clocks_event_reasons.active",
        "gpu_recovery_action",
        "memory.reserved",
        "clocks_event_reasons_counters.sw_power_cap",
    ]
    smi.publish()
    first, second = backend.open().devices
    before = len(smi.calls())
    read = first.sample().sample
    assert read.clock_events == ("gpu_idle",)
    assert read.memory_reserved_bytes is None
    assert read.temperature_celsius == 64
    health = second.health().health
    assert health.recovery_action is None
    assert health.clock_event_seconds == {"hw_thermal_slowdown": 0}
    # What was refused once is not asked again.
    assert len(smi.calls()) == before + 2


def test_a_driver_that_knows_none_of_the_health_fields(smi, backend) -> None:
    backend.open()
    asked = {field for call in smi.calls() if "--query-gpu" in str(call) for field in fields(call)}
    smi.unknown = ["pcie.link.gen.current"]
    smi.unknown += [field for field in asked if field.startswith(("ecc", "retired", "remapped",
                    "gpu_recovery", "clocks_event_reasons_counters", "pcie", "mig"))]  # fmt: skip
    smi.publish()
    assert backend.open().devices[0].health().health == DeviceHealth()


NOTHING = ["[N/A]", "N/A", "", "[Not Supported]", "Not Supported", "[Function Not Found]",
           "[Requested functionality has been deprecated]"]  # fmt: skip
FAILED = {"[Insufficient Permissions]": "no_permission", "[Unknown Error]": "unknown",
          "ERR!": "unknown", "[Something New]": "unknown", "warm": "not_a_number",
          "nan": "not_a_number", "inf": "not_a_number"}  # fmt: skip


@pytest.mark.parametrize("token", [*NOTHING, *FAILED])
def test_a_token_that_is_no_reading_is_absent_and_never_zero(smi, backend, token) -> None:
    smi.set(0, temperature__gpu=token, power__draw=token, utilization__gpu=token)
    result = backend.open().devices[0].sample()
    read = result.sample
    assert (read.temperature_celsius, read.power_watts, read.utilization_ratio) == (None,) * 3
    assert read.memory_used_bytes == 8192 * MIB
    assert result.errors == ((FAILED[token],) * 3 if token in FAILED else ())


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("[GPU is lost]", FaultReason.LOST),
        ("GPU is lost", FaultReason.LOST),
        ("[GPU requires reset]", FaultReason.RESET_REQUIRED),
    ],
)
def test_a_device_fault_in_one_cell_discards_the_row_and_no_other(
    smi, backend, token, reason
) -> None:
    first, second = backend.open().devices
    smi.set(0, power__draw=token, memory__used="0")
    with pytest.raises(DeviceFault) as raised:
        first.sample()
    assert raised.value.reason is reason
    assert second.sample().sample.power_watts == 210.53
    found = backend.open()
    assert [one.info.uuid for one in found.devices] == ["GPU-0", "GPU-1"]
    smi.set(0, name=token)
    found = backend.open()
    assert [one.info.uuid for one in found.devices] == ["GPU-1"]
    assert [(one.index, one.reason) for one in found.failed] == [(0, reason)]


def test_one_run_reads_all_gpus_and_is_not_repeated_for_each(smi, backend) -> None:
    first, second = backend.open().devices
    before = len(smi.calls())
    first.sample()
    second.sample()
    assert len(smi.calls()) == before + 1
    backend._clock.now += 1
    smi.set(1, temperature__gpu="65")
    assert second.sample().sample.temperature_celsius == 65
    assert len(smi.calls()) == before + 2


@pytest.mark.parametrize(
    ("code", "say", "reason"),
    [
        (15, "Unable to determine the device handle: GPU is lost.", FaultReason.LOST),
        (10, "interrupt problem", FaultReason.UNKNOWN),
        (255, "Unknown Error", FaultReason.UNKNOWN),
        (255, "GPU is lost. Reboot the system to recover this GPU", FaultReason.LOST),
        (3, "GPU requires reset", FaultReason.RESET_REQUIRED),
        (8, "power cables", FaultReason.UNKNOWN),
        (13, "", FaultReason.UNKNOWN),
    ],
)
def test_one_gpu_that_fails_all_together_costs_only_itself(smi, backend, code, say, reason) -> None:
    first, second = backend.open().devices
    smi.break_gpu(0, code=code, say=say)
    backend._clock.now += 1
    assert second.sample().sample.temperature_celsius == 64
    with pytest.raises(DeviceFault) as raised:
        first.sample()
    assert raised.value.reason is reason
    found = backend.open()
    assert [one.info.uuid for one in found.devices] == ["GPU-1"]
    assert [(one.index, one.reason) for one in found.failed] == [(0, reason)]
    smi.break_gpu(0)
    assert len(backend.open().devices) == 2


def test_a_corrupted_inforom_is_a_complaint_beside_good_rows(smi, backend, monkeypatch) -> None:
    device = backend.open().devices[0]
    original = SmiCommand.run

    def complaining(self, *arguments):
        answer = original(self, *arguments)
        warning = "WARNING: infoROM is corrupted at gpu 0000:00:00.0\n"
        return type(answer)(14, answer.output + warning)

    monkeypatch.setattr(SmiCommand, "run", complaining)
    assert device.sample().sample.temperature_celsius == 64


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (4, BackendReason.NO_PERMISSION),
        (9, BackendReason.DRIVER_NOT_LOADED),
        (12, BackendReason.LIBRARY_MISSING),
        (18, BackendReason.VERSION_MISMATCH),
        (17, BackendReason.NOT_IN_CONTAINER),
    ],
)
def test_what_holds_for_all_gpus_is_no_fault_of_one(smi, backend, code, reason) -> None:
    device = backend.open().devices[0]
    smi.break_all(code=code, say="NVIDIA-SMI has failed")
    backend._clock.now += 1
    for ask in (device.sample, device.health, device.processes, backend.open):
        with pytest.raises(BackendError) as raised:
            ask()
        assert raised.value.reason is reason
    smi.break_all()
    assert backend.open().devices[0].sample().sample.temperature_celsius == 64


def test_no_gpu_at_all_is_an_empty_list(smi, backend) -> None:
    smi.gpus.clear()
    smi.break_all(code=6, say="No devices were found")
    assert backend.open().devices == ()


def test_without_the_program_it_says_what_to_install(backend, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendError, match="install") as raised:
        backend.open()
    assert raised.value.reason is BackendReason.LIBRARY_MISSING


def test_processes_with_odd_names(smi, backend) -> None:
    smi.gpus[0]["_apps"] = [
        {"pid": "7", "used_gpu_memory": "100", "process_name": "/opt/a, b/python3 --token=x"},
        {"pid": "8", "used_gpu_memory": "[N/A]", "process_name": "VLLM::EngineCore"},
        {"pid": "9", "used_gpu_memory": "1", "process_name": "[Not Found]"},
        {"pid": "[N/A]", "used_gpu_memory": "1", "process_name": "x"},
    ]
    smi.publish()
    found = [
        (one.pid, one.process, one.memory_used_bytes)
        for one in backend.open().devices[0].processes().processes
    ]
    assert found == [(7, "a,", 100 * MIB), (8, "VLLM::EngineCore", None), (9, "", MIB)]


def test_a_process_on_two_mig_devices_is_one(smi, backend) -> None:
    smi.gpus[0]["_apps"] = [
        {"pid": "7", "used_gpu_memory": used, "process_name": "/usr/bin/vllm"}
        for used in ("100", "[N/A]", "50")
    ]
    smi.publish()
    (found,) = backend.open().devices[0].processes().processes
    assert (found.pid, found.memory_used_bytes) == (7, 150 * MIB)


def test_a_memory_whose_errors_are_not_read_once_is_not_told_as_a_sum(smi, backend) -> None:
    device = backend.open().devices[0]
    smi.set(0, ecc__errors__corrected__volatile__dram="[Unknown Error]")
    read = device.health().health.ecc_errors
    assert read == {"uncorrected": {"dram": 0, "sram": 0}}
    smi.set(0, ecc__errors__corrected__volatile__dram="[N/A]")
    assert device.health().health.ecc_errors["corrected"] == {"all": 3}


def test_a_process_list_without_permission_costs_only_itself(smi, backend) -> None:
    smi.gpus[0]["_apps"] = [
        {"pid": "[Insufficient Permissions]", "used_gpu_memory": "1", "process_name": "x"}
    ]
    smi.publish()
    with pytest.raises(ReadingError, match="no_permission"):
        backend.open().devices[0].processes()


def test_a_gpu_that_hangs_costs_the_others_one_wait_and_leaves_no_process(
    smi, backend, eventually
) -> None:
    first, second = backend.open().devices
    smi.break_gpu(0, hang=True, child=True)
    backend._clock.now += 1
    # The run about all is ended; from then on each is asked by itself.
    assert second.sample().sample.temperature_celsius == 64
    with pytest.raises(DeviceFault) as raised:
        first.sample()
    assert raised.value.reason is FaultReason.TIMEOUT
    assert len(smi.hung()) == 2
    child = int((smi.folder / "child").read_text())
    eventually(lambda: not any(map(alive, [*smi.hung(), child])))
    backend._clock.now += 1
    assert second.sample().sample.temperature_celsius == 64
    assert len(smi.hung()) == 2
    smi.break_gpu(0)
    assert first.sample().sample.temperature_celsius == 64


def test_a_gpu_that_hangs_from_the_start_holds_up_the_opening_of_itself_only(
    smi, tmp_path, eventually
) -> None:
    smi.break_gpu(0, hang=True)
    told: list[Frame] = []
    # Its own run would be waited for until the test is over.
    backend = NvidiaSmiBackend(Environment(tmp_path), SystemClock(), timeout=300, together=0.5)
    schedule = Schedule(sample=0.1, check=60, opening=0.1)
    collector = Collector(backend, schedule, told.append, SystemClock())
    collector.start()
    try:
        eventually(lambda: [one for one in told if isinstance(one, SampleFrame)])
        assert {one.uuid for one in told if isinstance(one, SampleFrame)} == {"GPU-1"}
        devices = eventually(
            lambda: [one for one in told if isinstance(one, DevicesFrame) and one.failed]
        )[-1]
        assert [(one.index, one.reason) for one in devices.failed] == [(0, FaultReason.TIMEOUT)]
    finally:
        collector.request_stop()
        for pid in filter(alive, smi.hung()):
            os.killpg(pid, signal.SIGKILL)
        assert collector.join(30)


def test_those_that_were_listed_once_are_opened_though_the_list_hangs_now(smi, backend) -> None:
    backend.open()
    smi.break_gpu(0, hang=True)
    backend._clock.now += 1
    with pytest.raises(DeviceFault):
        backend._sample_query.read(backend._all)
    backend._apart = True
    smi.break_listing(hang=True)
    assert [one.index for one in backend.begin().cards] == [0, 1]


def test_a_gpu_on_which_nvidia_smi_is_stuck_gets_no_successor_that_would_be_stuck_too(
    smi, tmp_path, eventually
) -> None:
    told: list[Frame] = []
    backend = NvidiaSmiBackend(Environment(tmp_path), SystemClock(), timeout=0.5, together=0.5)
    collector = Collector(backend, Schedule(sample=0.1, check=60), told.append, SystemClock())
    collector.start()
    try:
        eventually(lambda: len({one.uuid for one in told if isinstance(one, SampleFrame)}) == 2)
        smi.break_gpu(0, hang=True, ignore_term=True)
        stuck = eventually(
            lambda: [one for one in told if isinstance(one, FaultFrame) and "stuck" in one.message]
        )
        assert stuck[0].uuid == "GPU-0"
        assert backend.has_stuck()
        assert not collector.wants_successor
        smi.break_gpu(0)
        for pid in filter(alive, smi.hung()):
            os.killpg(pid, signal.SIGKILL)
        # What was read of it when it was opened is old.
        eventually(lambda: collector.wants_successor)
        assert not backend.has_stuck()
    finally:
        collector.request_stop()
        for pid in filter(alive, smi.hung()):
            os.killpg(pid, signal.SIGKILL)
        assert collector.join(30)


def test_when_all_opened_by_themselves_one_run_reads_all_again(smi, backend) -> None:
    smi.break_gpu(0, code=15, say="GPU is lost")
    assert [one.info.uuid for one in backend.open().devices] == ["GPU-1"]
    smi.break_gpu(0)
    first, second = backend.open().devices
    before = len(smi.calls())
    first.sample()
    second.sample()
    assert len(smi.calls()) == before + 1


def test_one_that_does_not_end_when_asked_is_left_alone_and_no_other_is_started(smi) -> None:
    smi.break_all(hang=True, ignore_term=True)
    command = SmiCommand(str(smi.program), 1.0)
    with pytest.raises(Timeout):
        command.run("-L")
    (stuck,) = smi.hung()
    assert alive(stuck)
    smi.break_all()
    for _ in range(3):
        with pytest.raises(Timeout, match=str(stuck)):
            command.run("-L")
    assert len(smi.calls()) == 1
    os.killpg(stuck, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while True:
        try:
            assert command.run("--list-gpus").output.startswith("GPU 0:")
            break
        except Timeout:
            assert time.monotonic() < deadline


class Machine:
    def __init__(self, library: bool, smi: bool) -> None:
        self.is_tegra = lambda: False
        self.library_loads = lambda: library
        self.has_nvidia_smi = lambda: smi


@pytest.mark.parametrize(
    ("library", "smi", "chosen"),
    [
        (True, True, "nvml"),
        (True, False, "nvml"),
        (False, True, "nvidia-smi"),
        (False, False, "nvml"),
    ],
)
def test_auto_takes_it_only_where_the_library_cannot_be_loaded(library, smi, chosen) -> None:
    assert registry.resolve("auto", Machine(library, smi)) == chosen


def test_it_serves_through_the_worker(smi, eventually) -> None:
    smi.set(1, temperature__gpu="84")
    config = Config(intervals=Intervals(processes=1, health=1, check=1, fault_after=3))
    service = Service(config, ServiceOptions(backend="nvidia-smi", sample_interval=0.2))
    service.start()
    try:
        assert service.wait_for_first_cycle(20)
        views = service.store.snapshot().gpus
        assert [view.sample.temperature_celsius for view in views] == [64, 84]
        assert views[0].health.recovery_action == "none"
        # Nobody tells of Xids here: no count of zero that would look like good news.
        assert views[0].xids is None
        smi.break_gpu(0, code=15, say="GPU is lost")
        eventually(lambda: service.store.snapshot().gpus[0].fault is FaultReason.LOST)
        assert service.store.snapshot().gpus[1].up
    finally:
        service.stop()


def test_a_folder_of_the_path_that_may_not_be_entered_is_no_error(tmp_path, monkeypatch):
    def barred(path, *, follow_symlinks=True):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("pathlib.Path.stat", barred)
    assert registry.Machine().has_nvidia_smi() is False
