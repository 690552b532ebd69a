"""The clock and the fan of a Jetson through the helper."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from remediator import gpu_control
from remediator.clock import SystemClock
from remediator.config import GpuConfig
from remediator.gpu_control.base import MAX_FREQUENCY
from remediator.gpu_control.jetson import fan_of
from remediator.helper.desk import Desk
from remediator.helper.ledger import Ledger
from remediator.helper.policy import Policy
from tests.remediator.drivers.trees import DEVICES, ORIN_STEPS, jetson
from tests.remediator.helper.support import Running, refused

CARD = "jetson-0123456789ab"


@pytest.fixture
def control(serve: Callable[..., Running], tmp_path: Path) -> gpu_control.GpuControl:
    jetson(tmp_path, next(iter(DEVICES)))
    policy = Policy(os.geteuid(), allow=("jetson",), timeout=10.0)
    desk = Desk(policy, Ledger(tmp_path, SystemClock()), SystemClock(), root=tmp_path)
    config = GpuConfig(control="jetson", helper_socket=serve(desk).socket, timeout=10.0)
    return gpu_control.create(config)


def test_the_clock_is_read_and_set(control: gpu_control.GpuControl) -> None:
    assert control.name == "jetson"
    assert control.power(CARD).knob is MAX_FREQUENCY
    control.set_power_limit(CARD, ORIN_STEPS[0])
    assert control.power(CARD).limit == ORIN_STEPS[0]
    assert "helper at" in control.describe_set_power_limit(CARD, 1)


def test_a_refusal_of_the_kernel_is_one_of_the_helper(
    control: gpu_control.GpuControl, tmp_path: Path
) -> None:
    fan = fan_of(control)
    assert fan is not None
    said = refused(lambda: fan.power(CARD))
    assert said == "ControlError: the helper: one fan is expected, found: 0"


def test_the_fan_is_read_and_set(control: gpu_control.GpuControl, tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/hwmon/hwmon3"
    folder.mkdir(parents=True)
    (folder / "name").write_text("pwmfan\n")
    (folder / "pwm1").write_text("64\n")
    fan = fan_of(control)
    assert fan is not None
    assert fan.power(CARD).limit == 64_000
    fan.set_power_limit(CARD, 255_000)
    assert (folder / "pwm1").read_text() == "255"
