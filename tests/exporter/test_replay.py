"""A capture in place of a driver: the same code, the same page."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter import cli
from exporter.backends import registry
from exporter.backends.base import BackendOptions
from exporter.backends.replay import ReplayBackend, create
from exporter.capture import file as capture_file
from exporter.capture.file import Answer, Call, Capture, Header
from exporter.errors import BackendError, CaptureError, ConfigError, DeviceFault
from exporter.readings import BackendReason, FaultReason
from tests.exporter import golden
from tests.exporter.golden import page_of
from tests.nvml_standin import Driver, DriverProcess

MINIMAL: dict[Call, tuple[Answer, ...]] = {
    Call("nvmlInit"): (Answer(),),
    Call("nvmlDeviceGetCount"): (Answer(1),),
    Call("nvmlDeviceGetHandleByIndex", None, (0,)): (Answer(),),
    Call("nvmlDeviceGetUUID", 0): (Answer("GPU-a"),),
    Call("nvmlDeviceGetTemperatureV", 0, (0,)): (Answer(45),),
}
TEMPERATURE = Call("nvmlDeviceGetTemperatureV", 0, (0,))
UTILIZATION = Call("nvmlDeviceGetUtilizationRates", 0)


def replayed(**more) -> ReplayBackend:
    calls = {"temperature": TEMPERATURE, "utilization": UTILIZATION, "init": Call("nvmlInit")}
    given = {calls[name]: tuple(answers) for name, answers in more.items()}
    return ReplayBackend(Capture(Header(), MINIMAL | given))


def device(**more):
    return replayed(**more).open().devices[0]


def dump(environ: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "exporter", *arguments, "--sample-interval=0.2"]
    done = subprocess.run(
        command, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def readings(page: str) -> dict[tuple[str, tuple], float]:
    """What a page says of the GPUs, without the time of day and what a capture replaces."""
    found = {}
    for family in text_string_to_metric_families(page):
        for one in family.samples:
            labels = tuple(sorted({**one.labels, "uuid": "", "backend": "", "pid": ""}.items()))
            if one.name.startswith("gpu_") and not one.name.startswith(
                ("gpu_exporter_", "gpu_xid_", "gpu_busy_seconds")
            ):
                found[one.name, labels] = one.value
    return found


def test_a_replay_shows_what_the_driver_showed(tmp_path) -> None:
    driver = Driver(tmp_path / "driver", gpus=2)
    driver.set(0, temperature=81, utilization=97, power_mw=390_500, recovery_action=1)
    driver.set(1, energy_mj=None, memory_temperature=None)
    driver.set_processes(0, [DriverProcess(4194999, 30 * 2**30)])
    path = tmp_path / "a.jsonl"
    dump(driver.env(), "capture", str(path), "--passes=1")
    live = readings(dump(driver.env(), "dump", "--backend=nvml"))
    again = readings(dump({}, "dump", f"--backend=replay:{path}"))
    assert (
        live["gpu_temperature_celsius", (("backend", ""), ("gpu", "0"), ("pid", ""), ("uuid", ""))]
        == 81
    )
    assert again == live


def test_the_page_says_that_it_is_a_replay() -> None:
    assert 'gpu_info{backend="replay"' in page_of(replayed())
    assert replayed().fingerprint() == replayed().fingerprint()


def test_answers_come_in_their_order_and_the_last_one_stays() -> None:
    gpu = device(temperature=[Answer(45), Answer(46), Answer(47)])
    assert [gpu.sample().sample.temperature_celsius for _ in range(5)] == [45, 46, 47, 47, 47]


def test_an_error_is_replayed_in_its_place() -> None:
    gpu = device(temperature=[Answer(45), Answer(error=15), Answer(45)])
    assert gpu.sample().sample.temperature_celsius == 45
    with pytest.raises(DeviceFault) as raised:
        gpu.sample()
    assert raised.value.reason is FaultReason.LOST
    assert gpu.sample().sample.temperature_celsius == 45


def test_a_call_that_is_not_in_it_is_one_that_the_driver_does_not_know() -> None:
    result = device().sample()
    assert (result.sample.temperature_celsius, result.errors) == (45, ())
    assert result.sample.power_watts is None
    assert device().processes().processes is None


def test_a_call_that_hung_times_out() -> None:
    gpu = device(temperature=[Answer(hung=True)], utilization=[Answer({"gpu": 7, "memory": 1})])
    result = gpu.sample()
    assert (result.sample.temperature_celsius, result.errors) == (None, ("timeout",))
    assert result.sample.utilization_ratio == 0.07


def test_a_batch_of_fields_that_failed_fails_and_others_answer_one_by_one() -> None:
    batch, memory = (Call("nvmlDeviceGetFieldValues", 0, one) for one in ((), (82,)))
    answers = {
        batch: (Answer(), Answer(error=999)),
        memory: (Answer({"type": 1, "value": 71}),),
    }
    gpu = ReplayBackend(Capture(Header(), MINIMAL | answers)).open().devices[0]
    assert gpu.sample().sample.memory_temperature_celsius == 71
    result = gpu.sample()
    assert (result.sample.memory_temperature_celsius, result.errors) == (None, ("unknown",))


def test_a_driver_that_did_not_open_does_not_open_again() -> None:
    with pytest.raises(BackendError) as raised:
        replayed(init=[Answer(error=18)]).open()
    assert raised.value.reason is BackendReason.VERSION_MISMATCH


def test_it_tells_no_xids_and_asks_no_driver() -> None:
    found = replayed().open()
    assert (found.events, found.watched) == (None, ())


def test_doctor_says_nothing_of_this_machine(capsys) -> None:
    path = golden.CAPTURES / "l4.jsonl"
    assert cli.main(["doctor", f"--backend=replay:{path}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "OK       backend replay: 1 GPUs, driver 550.90.07"
    assert len(said) == 2


def test_auto_never_chooses_it() -> None:
    class Bare:
        def is_tegra(self) -> bool:
            return False

        def library_loads(self) -> bool:
            return False

        def has_nvidia_smi(self) -> bool:
            return False

    assert registry.resolve("auto", Bare()) != "replay"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("replay", "wants a file that `gpu-exporter capture` made"),
        ("replay:", "wants a file that `gpu-exporter capture` made"),
        ("replay:/nonexistent.jsonl", "cannot read /nonexistent.jsonl: No such file"),
        (f"replay:{__file__}", "line 1 is not JSON"),
    ],
)
def test_a_capture_that_cannot_be_replayed_is_refused_at_the_start(capsys, value, says) -> None:
    with pytest.raises(ConfigError, match=says):
        registry.resolve(value)
    assert cli.main(["serve", f"--backend={value}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_capture_that_is_gone_when_the_worker_starts_is_an_error_of_ours(tmp_path) -> None:
    with pytest.raises(CaptureError):
        create(BackendOptions(replay_file=str(tmp_path / "gone")))


def test_a_relative_path_is_that_of_where_it_was_given(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert registry.replay_file("replay:a.jsonl") == str(tmp_path / "a.jsonl")
    assert registry.replay_file("nvml") == ""


@pytest.mark.parametrize("path", golden.captures(), ids=lambda path: path.stem)
def test_each_card_has_the_page_that_it_had(path) -> None:
    expected = path.with_suffix(".metrics").read_text()
    assert golden.replayed(path) == expected, (
        "if that is meant: python -m tests.exporter.golden, and read the difference"
    )


@pytest.mark.parametrize("path", golden.captures(), ids=lambda path: path.stem)
def test_each_capture_says_where_it_comes_from_and_tells_of_nobody(path) -> None:
    header = capture_file.load(path).header
    assert header.source == "recorded" or header.source.startswith("built from public facts: ")
    assert header.anonymised
    text = path.read_text()
    assert set(re.findall(r"GPU-[0-9a-f-]+", text)) <= {
        f"GPU-00000000-0000-4000-8000-{number:012x}" for number in range(16)
    }
    assert all(int(pid) > 2**22 for pid in re.findall(r'"pid": (\d+)', text))


def sample_names(card: str) -> set[str]:
    page = (golden.CAPTURES / f"{card}.metrics").read_text()
    return {re.split("[{ ]", line)[0] for line in page.splitlines()}


def test_what_a_card_does_not_have_is_absent_and_never_zero() -> None:
    geforce, server = sample_names("rtx-4090"), sample_names("h100-80gb-hbm3")
    # No ECC, no memory temperature, no recovery action by that driver; fans on the desktop only.
    assert {name for name in server - geforce if not name.startswith("gpu_pcie_")} == {
        "gpu_ecc_errors_total",
        "gpu_memory_temperature_celsius",
        "gpu_recovery_action",
        "gpu_clock_event_seconds_total",
        "gpu_temperature_margin_celsius",
        "gpu_encoder_utilization_ratio",
        "gpu_decoder_utilization_ratio",
        "gpu_nvlink_up",
        "gpu_mig_mode",
    }
    assert geforce - server == {"gpu_fan_speed_ratio"}
    assert "gpu_temperature_limit_celsius" not in server
    assert "gpu_temperature_limit_celsius" in sample_names("a100-sxm4-40gb")


def test_a_card_that_is_divided_tells_its_parts_and_not_the_utilisation_of_the_whole() -> None:
    whole, divided = sample_names("h100-80gb-hbm3"), sample_names("h100-80gb-hbm3-mig")
    assert divided - whole == {
        "gpu_mig_info",
        "gpu_mig_memory_total_bytes",
        "gpu_mig_memory_used_bytes",
        "gpu_mig_memory_free_bytes",
    }
    assert {"gpu_utilization_ratio", "gpu_busy_seconds_total", "gpu_nvlink_up"} <= whole - divided
    assert {"gpu_saturated_duration_seconds", "gpu_remapped_rows_total"} <= whole - divided


def test_a_process_in_both_lists_counts_once() -> None:
    page = (golden.CAPTURES / "rtx-4090.metrics").read_text()
    used = re.findall(r"^gpu_process_memory_used_bytes.* ([0-9.e+]+)$", page, re.MULTILINE)
    assert sorted(map(float, used)) == [mib * 2**20 for mib in (60, 64, 110, 290)]
