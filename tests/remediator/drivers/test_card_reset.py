"""Resets: by a stand-in nvidia-smi in every mood, of simulated cards, and who is in the way of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from remediator import gpu_reset, runner
from remediator.config import GpuConfig
from remediator.errors import ConfigError, ControlError, OutcomeUnknown
from remediator.gpu_reset import Client
from remediator.gpu_reset.device_files import holders
from remediator.gpu_reset.nvidia_smi import NvidiaSmiReset
from tests.remediator.drivers import standin_nvidia_smi
from tests.remediator.engine.processes import call, deaf, simulated_gpus
from tests.waiting import poll

CARD = "GPU-11111111-0000-0000-0000-000000000000"
OTHER = "GPU-22222222-0000-0000-0000-000000000000"
A100 = ["NVIDIA A100-SXM4-40GB", "Disabled", "Disabled"]


class Host:
    """Two cards and the stand-in nvidia-smi."""

    def __init__(self, program: Path) -> None:
        self.program = program
        self._file = program.parent / "smi.json"
        self._file.write_text("{}")
        cards = {CARD: {"traits": A100}, OTHER: {"traits": A100}}
        self.put(mode="", read_mode="", row="", cards=cards)
        self.proc = program.parent / "proc"
        self.proc.mkdir()
        self.reset = self.make()

    def make(self, **more: Any) -> NvidiaSmiReset:
        given = {"timeout": 10.0, "proc": self.proc, "is_root": lambda: True} | more
        return NvidiaSmiReset(self.program, **given)

    def put(self, **more: Any) -> None:
        self._file.write_text(json.dumps(self.state | more))

    def put_traits(self, *traits: str) -> None:
        self.put(cards=self.state["cards"] | {CARD: {"traits": traits}})

    def add_card(self, bus: str, uuid: str, minor: int) -> None:
        """As /proc/driver/nvidia/gpus/*/information of driver 550 says it."""
        folder = self.proc / "driver/nvidia/gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 92\nGPU UUID: \t {uuid}\n"
            f"Video BIOS: \t 92.00.45.00.03\nBus Type: \t PCIe\nDevice Minor: \t {minor}\n"
            "GPU Excluded:\t No\n"
        )

    def add_process(self, pid: int, name: str, *files: str) -> None:
        folder = self.proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text(name[:15] + "\n")
        for number, file in enumerate(files):
            (folder / "fd" / str(number)).symlink_to(file)

    @property
    def state(self) -> dict[str, Any]:
        return json.loads(self._file.read_text())

    @property
    def resets(self) -> list[str]:
        return self.state.get("resets", [])

    @property
    def calls(self) -> list[list[str]]:
        log = self.program.parent / "argv.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def failing(self, reset: NvidiaSmiReset | None = None) -> dict[str, str]:
        """The checks that fail, with their answers."""
        checks = (reset or self.reset).checks(CARD)
        return {one.name: one.answer for one in checks if one.passed is False}


@pytest.fixture
def host(install_program: Callable[[ModuleType, str], Path]) -> Host:
    return Host(install_program(standin_nvidia_smi, "nvidia-smi"))


def test_resets_exactly_one_card_with_a_fixed_argv(host: Host) -> None:
    assert host.reset.reset(CARD, 10) is True
    assert host.resets == [CARD]
    assert host.calls == [["-i", CARD, "--gpu-reset"]]
    assert host.reset.describe(CARD) == f"{host.program} -i {CARD} --gpu-reset"


@pytest.mark.parametrize("uuid", ["", "0", "--gpu-reset", "GPU-1,GPU-2", "0 1", "../x", "GPU-1\n"])
def test_what_is_no_uuid_never_reaches_the_program(host: Host, uuid: str) -> None:
    with pytest.raises(ControlError, match="is not a GPU uuid"):
        host.reset.reset(uuid, 10)
    assert host.calls == []


REFUSED = {
    2: "does not know an argument",
    3: "does not support it",
    4: "needs root",
    6: "no such card",
    9: "driver is not loaded",
    12: "libnvidia-ml.so was not found",
    13: "too old",
    15: "fallen off the bus",
}


@pytest.mark.parametrize(("code", "words"), REFUSED.items())
def test_an_exit_status_that_says_that_nothing_was_reset_is_a_refusal(
    host: Host, code: int, words: str
) -> None:
    host.put(mode=code)
    with pytest.raises(ControlError, match=rf"{words}.*exit status {code}") as caught:
        host.reset.reset(CARD, 10)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert len(host.calls) == 1


@pytest.mark.parametrize(
    "says",
    [
        "GPU 00000000:01:00.0 is currently in use by another process.",
        "Unable to reset this GPU because it's being used by some other process. In use by another client",
        "GPU 00000000:01:00.0 is the primary GPU and cannot be reset.",
    ],
)
def test_a_card_in_use_is_a_refusal_although_the_status_is_that_of_any_error(
    host: Host, says: str
) -> None:
    host.put(mode=255, says=says)
    with pytest.raises(ControlError) as caught:
        host.reset.reset(CARD, 10)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert says[:60] in str(caught.value)


@pytest.mark.parametrize("code", [1, 10, 14, 77, 255])
def test_any_other_failure_leaves_the_outcome_unknown(host: Host, code: int) -> None:
    host.put(mode=code)
    with pytest.raises(OutcomeUnknown, match=f"exit status {code}"):
        host.reset.reset(CARD, 10)


def test_an_exit_with_0_that_does_not_say_so_confirms_nothing(host: Host) -> None:
    host.put(mode="lie")
    assert host.reset.reset(CARD, 10) is False
    assert host.resets == []


def test_a_reset_that_hangs_is_unknown_and_its_process_is_never_killed(host: Host) -> None:
    host.put(mode="hang")
    with deaf(), pytest.raises(OutcomeUnknown, match="did not end within"):
        host.reset.reset(CARD, 0.3)
    program = str(host.program)
    (process,) = poll(
        lambda: [
            one
            for one in psutil.process_iter(["cmdline"])
            if program in (one.info["cmdline"] or [])
        ]
    )
    process.kill()
    process.wait(30)
    runner.reap()


# preconditions


def test_a_card_that_may_be_reset_passes_every_check(host: Host) -> None:
    assert [one.name for one in host.reset.checks(CARD)] == [
        "root",
        "nvidia_smi",
        "model",
        "mig",
        "display",
    ]
    assert host.failing() == {}
    assert not any("--gpu-reset" in argv for argv in host.calls)


def test_without_root_nothing_is_even_asked(host: Host) -> None:
    assert host.failing(host.make(is_root=lambda: False)) == {"root": "a reset needs root"}
    assert host.calls == []


def test_a_program_that_is_not_there_is_named(host: Host, tmp_path: Path) -> None:
    absent = NvidiaSmiReset(tmp_path / "absent", 10, proc=host.proc, is_root=lambda: True)
    assert "set gpus.nvidia_smi" in host.failing(absent)["nvidia_smi"]
    with pytest.raises(ControlError, match="absent"):
        absent.reset(CARD, 10)


def test_a_program_by_a_relative_path_is_a_wrong_configuration() -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        gpu_reset.create(GpuConfig(control="nvml", nvidia_smi=Path("nvidia-smi")))


@pytest.mark.parametrize(
    ("traits", "failing"),
    [
        (["NVIDIA A100", "Enabled", "Disabled"], "mig"),
        (["NVIDIA A100", "Disabled", "Enabled"], "display"),
        (["NVIDIA GeForce RTX 4090", "[N/A]", "Disabled"], "model"),
    ],
)
def test_a_card_that_must_not_be_reset_fails_its_check(
    host: Host, traits: list[str], failing: str
) -> None:
    host.put_traits(*traits)
    assert list(host.failing()) == [failing]


def test_a_consumer_board_can_be_allowed(host: Host) -> None:
    host.put_traits("NVIDIA GeForce RTX 4090", "[N/A]", "Disabled")
    assert host.failing(host.make(allow_consumer=True)) == {}


def test_what_a_card_cannot_tell_stands_in_nobodys_way(host: Host) -> None:
    host.put_traits("NVIDIA T4", "[N/A]", "[GPU requires reset]")
    assert host.failing() == {}
    checks = {one.name: one for one in host.reset.checks(CARD)}
    assert (checks["mig"].passed, checks["mig"].answer) == (None, "[N/A]")


@pytest.mark.parametrize("mode", [15, 9, "hang"])
def test_a_card_that_does_not_answer_is_not_reset(host: Host, mode: object) -> None:
    host.put(read_mode=mode)
    assert list(host.failing(host.make(timeout=0.5 if mode == "hang" else 10))) == ["answers"]


@pytest.mark.parametrize("control", ["jetson", "none"])
def test_where_nothing_can_be_reset_it_says_why(control: Any) -> None:
    one = gpu_reset.create(GpuConfig(control=control))
    (check,) = one.checks(CARD)
    assert check.passed is False
    assert check.answer
    for ask in (lambda: one.clients(CARD), lambda: one.reset(CARD, 1)):
        with pytest.raises(ControlError):
            ask()
    assert "refused" in one.describe(CARD)


# who holds the card


def test_who_has_the_cards_file_open_is_found_and_nobody_else(host: Host) -> None:
    host.add_card("0000:01:00.0", OTHER, 0)
    host.add_card("0000:02:00.0", CARD, 1)
    host.add_process(10, "ollama", "/dev/null", "/dev/nvidiactl", "/dev/nvidia1")
    host.add_process(11, "train.py", "/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm")
    host.add_process(12, "bash", "/dev/pts/0")
    host.add_process(13, "train.py", "/dev/nvidia10")
    assert host.reset.clients(CARD) == (Client(10, "ollama"),)
    assert host.reset.clients(OTHER) == (Client(11, "train.py"),)


def test_where_the_cards_file_is_not_known_any_card_counts(host: Host) -> None:
    host.add_process(10, "ollama", "/dev/nvidia1")
    host.add_process(11, "Xorg", "/dev/nvidia0")
    host.add_process(12, "bash", "/dev/nvidiactl")
    assert host.reset.clients(CARD) == (Client(10, "ollama"), Client(11, "Xorg"))


def test_the_persistence_daemon_is_nvidia_smis_own_business(host: Host) -> None:
    host.add_process(10, "nvidia-persistenced", "/dev/nvidia0")
    assert host.reset.clients(CARD) == ()


def test_a_process_that_ends_meanwhile_is_nobody(host: Host) -> None:
    (host.proc / "10").mkdir()
    assert host.reset.clients(CARD) == ()


def test_without_proc_nothing_is_concluded(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="cannot look for clients"):
        holders(tmp_path / "absent", CARD)


# the simulator


def simulated(url: str) -> gpu_reset.CardReset:
    return gpu_reset.create(GpuConfig(control="simulated", simulator_url=url))


def test_a_simulated_card_is_reset_and_asks_for_nothing_more() -> None:
    with simulated_gpus() as url:
        (card,) = call(f"{url}/api/v1/gpus")["gpus"]
        one = simulated(url)
        fault = {"fault": "recovery_action", "gpu": card["uuid"], "action": "reset"}
        call(f"{url}/api/v1/faults", fault)
        assert one.clients(card["uuid"]) == ()
        assert all(check.passed for check in one.checks(card["uuid"]))
        assert one.reset(card["uuid"], 10) is True
        after = call(f"{url}/api/v1/gpus/{card['uuid']}")
        assert after["recovery_action"] == "none"


def test_a_simulated_card_in_use_refuses_and_says_by_whom() -> None:
    with simulated_gpus() as url:
        (card,) = call(f"{url}/api/v1/gpus")["gpus"]
        mine = {
            "pid": psutil.Process().pid,
            "name": "me",
            "gpu": card["uuid"],
            "memory_bytes": 2**30,
            "load_ratio": 0.0,
        }
        call(f"{url}/api/v1/attachments", mine, method="PUT")
        one = simulated(url)
        assert one.clients(card["uuid"]) == (Client(mine["pid"], "me"),)
        with pytest.raises(ControlError, match=f"in use by pid {mine['pid']}") as caught:
            one.reset(card["uuid"], 10)
        assert not isinstance(caught.value, OutcomeUnknown)


def test_a_simulator_that_is_not_there_refuses() -> None:
    one = simulated("http://127.0.0.1:1")
    assert [check.passed for check in one.checks(CARD)] == [False]
    for ask in (lambda: one.clients(CARD), lambda: one.reset(CARD, 1)):
        with pytest.raises(ControlError, match="did not answer"):
            ask()
