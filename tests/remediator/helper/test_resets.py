"""Resets through the helper, by a stand-in nvidia-smi in every mood."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from remediator import gpu_control, gpu_reset
from remediator.clock import SystemClock
from remediator.config import GpuConfig
from remediator.errors import ControlError, OutcomeUnknown
from remediator.gpu_reset import Client
from remediator.helper.desk import Desk
from remediator.helper.ledger import Ledger
from remediator.helper.policy import Policy
from tests.remediator.drivers import standin_nvidia_smi
from tests.remediator.drivers.test_card_reset import A100, CARD, OTHER, Host
from tests.remediator.helper.support import Running, refused
from tests.waiting import poll

GIB = "GeForce RTX 4090"


@pytest.fixture
def host(install_program: Callable[[ModuleType, str], Path]) -> Host:
    return Host(install_program(standin_nvidia_smi, "nvidia-smi"))


@pytest.fixture
def start(host: Host, serve: Callable[..., Running], tmp_path: Path) -> Callable[..., Running]:
    def make(**more: object) -> Running:
        given = {"allow": ("reset", "power_limit"), "cards": (CARD, OTHER), "timeout": 10.0} | more
        policy = Policy(os.geteuid(), nvidia_smi=host.program, control="nvidia-smi", **given)
        ledger = Ledger(tmp_path, SystemClock())
        return serve(
            Desk(policy, ledger, SystemClock(), root=host.proc.parent, is_root=lambda: True)
        )

    return make


def through(helper: Running, timeout: float = 10.0) -> gpu_reset.CardReset:
    config = GpuConfig(control="helper", helper_socket=helper.socket, timeout=timeout)
    return gpu_reset.create(config)


def test_resets_exactly_one_card_after_it_has_looked_itself(
    host: Host, start: Callable[..., Running]
) -> None:
    reset = through(start())
    assert [one.name for one in reset.checks(CARD)] == [
        "helper",
        "root",
        "nvidia_smi",
        "model",
        "mig",
        "display",
    ]
    assert all(one.passed for one in reset.checks(CARD))
    assert reset.clients(CARD) == ()
    assert reset.reset(CARD, 10) is True
    assert host.resets == [CARD]
    assert host.calls[-1] == ["-i", CARD, "--gpu-reset"]


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        ([GIB, "[N/A]", "Disabled"], "model: "),
        ([A100[0], "Enabled", "Disabled"], "mig: on"),
        ([A100[0], "Disabled", "Enabled"], "display: on"),
    ],
)
def test_a_card_that_must_not_be_reset_is_refused_whatever_the_remediator_thinks(
    host: Host, start: Callable[..., Running], traits: list[str], words: str
) -> None:
    host.put_traits(*traits)
    if traits[0] == GIB:
        host.put_traits(f"NVIDIA {GIB}", *traits[1:])
    said = refused(lambda: through(start()).reset(CARD, 10))
    assert said.startswith(f"ControlError: the helper: {words}")
    assert host.resets == []


def test_a_card_that_a_process_holds_open_is_not_reset(
    host: Host, start: Callable[..., Running]
) -> None:
    host.add_card("0000:01:00.0", CARD, 0)
    host.add_card("0000:02:00.0", OTHER, 1)
    host.add_process(42, "dcgm", "/dev/nvidia0")
    reset = through(start())
    assert reset.clients(CARD) == (Client(42, "dcgm"),)
    assert refused(lambda: reset.reset(CARD, 10)).endswith("held open by dcgm (pid 42)")
    assert host.resets == []
    assert reset.reset(OTHER, 10) is True


@pytest.mark.parametrize("uuid", ["", "0", "--gpu-reset", "GPU-1,GPU-2", "../x", "all"])
def test_no_reset_without_one_card_that_is_known(
    host: Host, start: Callable[..., Running], uuid: str
) -> None:
    with pytest.raises(ControlError) as caught:
        through(start()).reset(uuid, 10)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert host.calls == []


def test_what_nvidia_smi_says_is_passed_on_as_it_is(
    host: Host, start: Callable[..., Running]
) -> None:
    reset = through(start(resets_per_day=9))
    host.put(mode=15)
    assert "fallen off the bus" in refused(lambda: reset.reset(CARD, 10))
    host.put(mode=255)
    assert refused(lambda: reset.reset(CARD, 10)).startswith("OutcomeUnknown: the helper: nvidia-")
    host.put(mode="lie")
    assert reset.reset(CARD, 10) is False


def test_a_card_is_reset_so_often_a_day_and_a_new_helper_has_not_forgotten(
    host: Host, start: Callable[..., Running]
) -> None:
    first = through(start())
    assert [first.reset(CARD, 10) for _ in range(2)] == [True, True]
    for one in (first, through(start())):
        assert "2 times within a day" in refused(lambda: one.reset(CARD, 10))  # noqa: B023
    assert host.resets == [CARD, CARD]


def test_a_reset_that_cannot_be_noted_is_not_begun(
    host: Host, start: Callable[..., Running], tmp_path: Path
) -> None:
    reset = through(start())
    (tmp_path / "writes.jsonl").mkdir()
    assert "cannot note that it begins" in refused(lambda: reset.reset(CARD, 10))
    assert host.resets == []


def test_nothing_else_touches_the_driver_while_a_card_is_reset(
    host: Host, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remediator.helper.desk.TURN", 0.2)
    host.put(mode="hang")
    cards = {uuid: {"traits": A100, "limit": 400, "default": 400, "min": 100, "max": 400}
             for uuid in (CARD, OTHER)}  # fmt: skip
    host.put(cards=cards)
    helper = start(reset_within=1.0)
    said: list[str] = []
    one = threading.Thread(
        target=lambda: said.append(refused(lambda: through(helper).reset(CARD, 10)))
    )
    one.start()
    poll((host.program.parent / "hangs").exists)
    other = gpu_control.create(GpuConfig(control="helper", helper_socket=helper.socket))
    assert f"{OTHER} is busy" in refused(lambda: other.power(OTHER))
    one.join(20)
    assert said[0].startswith("OutcomeUnknown: the helper: ")
    assert "did not end within 1 s" in said[0]
    assert other.power(OTHER).limit == 400_000
