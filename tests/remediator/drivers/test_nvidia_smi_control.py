"""The `nvidia-smi` control over a stand-in that can refuse, lie, hang and exit with each code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from remediator import gpu_control, runner
from remediator.config import GpuConfig
from remediator.errors import ConfigError, ControlError, OutcomeUnknown
from remediator.gpu_control import PowerState
from tests.remediator.drivers import standin_nvidia_smi
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.processes import deaf
from tests.waiting import poll

CARD = "GPU-11111111-0000-0000-0000-000000000000"
OTHER = "GPU-22222222-0000-0000-0000-000000000000"
LIMITS = {"limit": 400.0, "default": 400.0, "min": 100.0, "max": 400.0}
QUERY = "--query-gpu=uuid,power.limit,power.default_limit,power.min_limit,power.max_limit"


def make(program: Path, timeout: float = 10.0) -> gpu_control.GpuControl:
    return gpu_control.create(GpuConfig(control="nvidia-smi", nvidia_smi=program, timeout=timeout))


class Host:
    """Two cards, the stand-in nvidia-smi, and the control over it."""

    def __init__(self, program: Path) -> None:
        self.program = program
        self.control = make(program)
        cards = {CARD: dict(LIMITS), OTHER: dict(LIMITS)}
        self._file = program.parent / "smi.json"
        self._file.write_text("{}")
        self.put(mode="", read_mode="", row="", cards=cards)

    def put(self, **more: Any) -> None:
        self._file.write_text(json.dumps(self.state | more))

    def put_card(self, **limits: Any) -> None:
        cards = self.state["cards"]
        cards[CARD] |= limits
        self.put(cards=cards)

    @property
    def state(self) -> dict[str, Any]:
        return json.loads(self._file.read_text())

    @property
    def watts(self) -> list[float]:
        return [card["limit"] for card in self.state["cards"].values()]

    @property
    def calls(self) -> list[list[str]]:
        log = self.program.parent / "argv.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def host(install_program: Callable[[ModuleType, str], Path]) -> Host:
    return Host(install_program(standin_nvidia_smi, "nvidia-smi"))


def test_reads_and_writes_exactly_one_card_with_a_fixed_argv(host: Host) -> None:
    assert host.control.name == "nvidia-smi"
    assert host.control.power(CARD) == PowerState(400_000, 400_000, 100_000, 400_000)
    host.control.set_power_limit(CARD, 320_000)
    assert host.control.power(CARD).limit == 320_000
    assert host.watts == [320.0, 400.0]
    read = ["-i", CARD, QUERY, "--format=csv,noheader,nounits"]
    assert host.calls == [read, ["-i", CARD, "-pl", "320"], read, read]


@pytest.mark.parametrize(
    ("milliwatts", "watts"), [(312_500, "312.50"), (219_999, "219.99"), (100_000, "100")]
)
def test_watts_are_written_in_hundredths_and_never_above_what_was_asked(
    host: Host, milliwatts: int, watts: str
) -> None:
    host.control.set_power_limit(CARD, milliwatts)
    assert host.calls[0][-1] == watts
    assert host.control.power(CARD).limit == round(float(watts) * 1000)


MEANINGS = {
    2: "does not know an argument",
    3: "does not support it",
    4: "needs root",
    6: "no such card",
    8: "power cables",
    9: "driver is not loaded",
    10: "interrupt",
    12: "libnvidia-ml.so was not found",
    13: "too old",
    15: "fallen off the bus",
    255: "another error",
    77: "does not document",
}


@pytest.mark.parametrize(("code", "words"), MEANINGS.items())
def test_every_exit_status_of_a_read_is_a_sentence(host: Host, code: int, words: str) -> None:
    host.put(read_mode=code)
    with pytest.raises(ControlError, match=rf"{words}.* \(exit status {code}: ") as caught:
        host.control.power(CARD)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert standin_nvidia_smi.SAYS.get(code, "Unknown Error")[:150] in str(caught.value)


@pytest.mark.parametrize(("code", "words"), MEANINGS.items())
def test_every_exit_status_of_a_write_is_a_refusal_or_unknown(
    host: Host, code: int, words: str
) -> None:
    host.put(mode=code)
    with pytest.raises(ControlError, match=words) as caught:
        host.control.set_power_limit(CARD, 320_000)
    # Inside the driver anything may have happened before it failed.
    assert isinstance(caught.value, OutcomeUnknown) == (code in (10, 15, 255, 77))
    assert host.watts == [400.0, 400.0]
    assert len(host.calls) == 1


def test_a_corrupted_inforom_is_only_a_warning_to_a_read(host: Host) -> None:
    host.put(read_mode=14, mode=14)
    assert host.control.power(CARD).limit == 400_000
    with pytest.raises(OutcomeUnknown, match="infoROM is corrupted"):
        host.control.set_power_limit(CARD, 320_000)
    assert host.watts[0] == 320.0


def test_a_write_that_exits_with_0_and_does_nothing_is_found_out(host: Host) -> None:
    host.put(mode="lie")
    words = "exited with 0 but .* reads 400 W, not 320 W; it said: .*Treating as warning"
    with pytest.raises(ControlError, match=words):
        host.control.set_power_limit(CARD, 320_000)


def test_a_write_that_cannot_be_read_back_is_unknown(host: Host) -> None:
    host.put(read_mode=15)
    with pytest.raises(OutcomeUnknown, match=r"cannot be read back: .*fallen off the bus"):
        host.control.set_power_limit(CARD, 320_000)


def test_a_limit_outside_the_cards_range_is_refused(host: Host) -> None:
    for milliwatts in (99_000, 401_000):
        with pytest.raises(ControlError, match="does not know an argument"):
            host.control.set_power_limit(CARD, milliwatts)
    assert host.watts == [400.0, 400.0]


@pytest.mark.parametrize(
    ("field", "token"),
    [
        ("limit", "[GPU is lost]"),
        ("limit", "nan"),
        ("default", "[GPU requires reset]"),
        ("default", "inf"),
        ("min", "[N/A]"),
        ("min", "ERR!"),
        ("max", "[Not Supported]"),
        ("max", ""),
    ],
)
def test_what_is_no_number_is_no_limit(host: Host, field: str, token: str) -> None:
    host.put_card(**{field: token})
    with pytest.raises(ControlError, match=r"does not say power\.") as caught:
        host.control.power(CARD)
    assert (token or "nothing") in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        f"{OTHER}, 400.00, 400.00, 100.00, 400.00",
        f"{CARD}, 400.00, 400.00, 100.00",
        f"{CARD}, 400.00, 400.00, 100.00, 400.00\n{CARD}, 300.00, 400.00, 100.00, 400.00",
        f"{CARD}0, 400.00, 400.00, 100.00, 400.00",
        " ",
        "No devices were found",
    ],
)
def test_an_answer_about_anything_else_is_no_answer(host: Host, row: str) -> None:
    host.put(row=row)
    with pytest.raises(ControlError, match=f"did not answer for {CARD}: "):
        host.control.power(CARD)


def test_a_read_that_hangs_is_no_answer_and_its_process_is_ended(host: Host) -> None:
    host.put(read_mode="hang")
    with pytest.raises(ControlError, match="did not end within") as caught:
        make(host.program, 0.3).power(CARD)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert _processes(host) == []


def test_a_write_that_hangs_is_unknown_and_its_process_is_never_killed(host: Host) -> None:
    host.put(mode="hang")
    with deaf(), pytest.raises(OutcomeUnknown, match="did not end within"):
        make(host.program, 0.3).set_power_limit(CARD, 320_000)
    (process,) = poll(lambda: _processes(host))
    process.kill()
    process.wait(30)
    runner.reap()


def test_a_cap_between_two_hundredths_of_a_watt_is_set_and_undone(
    host: Host, tmp_path: Path
) -> None:
    bench = Bench(tmp_path / "state")
    uuid = bench.uuids[0]
    host.put(cards={uuid: LIMITS | {"limit": 333.33, "default": 333.33}})
    bench.control = host.control  # type: ignore[assignment]
    bench._wire()
    bench.card.celsius = lambda watts: 84.0 if host.watts[0] > 300 else 70.0
    bench.fire("GPUTemperatureWarning")
    bench.act()
    assert host.watts == [266.66], "80 % are 266.664 W"
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    bench.resolve("GPUTemperatureWarning")
    bench.pass_time(70)
    assert host.watts == [333.33]
    assert bench.open_leases == []
    bench.close()


def _processes(host: Host) -> list[psutil.Process]:
    program = str(host.program)
    found = psutil.process_iter(["cmdline", "status"])
    return [
        process
        for process in found
        if program in (process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.parametrize("uuid", ["", "--gpu-reset", "GPU-1,GPU-2", "0 1", "../x", "GPU-1\n"])
def test_what_is_no_uuid_never_reaches_the_program(host: Host, uuid: str) -> None:
    for ask in (
        lambda: host.control.power(uuid),
        lambda: host.control.set_power_limit(uuid, 320_000),
    ):
        with pytest.raises(ControlError, match="is not a GPU uuid"):
            ask()
    assert host.calls == []


def test_plan_shows_the_argv_and_runs_nothing(host: Host) -> None:
    said = host.control.describe_set_power_limit(CARD, 320_000)
    assert said == f"{host.program} -i {CARD} -pl 320"
    assert host.calls == []


def test_a_program_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    absent = tmp_path / "nvidia-smi"
    with pytest.raises(ControlError, match=f"cannot run {absent}: No such file"):
        make(absent).power(CARD)
    with pytest.raises(ConfigError, match=r"gpus.nvidia_smi must be an absolute path"):
        make(Path("nvidia-smi"))
