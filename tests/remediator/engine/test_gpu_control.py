"""GPU controls: what really reaches the driver, and what is said when it does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remediator import gpu_control
from remediator.clock import SystemClock
from remediator.config import GpuConfig
from remediator.errors import ControlError, OutcomeUnknown
from remediator.helper.desk import Desk
from remediator.helper.ledger import Ledger
from remediator.helper.policy import Policy
from tests.nvml_standin import Driver
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.processes import call, free_port, simulated_gpus
from tests.remediator.helper.conftest import serve
from tests.remediator.helper.support import Running

__all__ = ["serve"]

SET = "nvmlDeviceSetPowerManagementLimit"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The stand-in driver library: no test ever writes through another one."""
    one = Driver(tmp_path / "driver", gpus=2)
    for name, value in one.env().items():
        monkeypatch.setenv(name, value)
    return one


Make = Callable[..., gpu_control.GpuControl]


@pytest.fixture(params=["nvml", "helper"])
def nvml(request: pytest.FixtureRequest, serve: Callable[..., Running], tmp_path: Path) -> Make:
    """The driver library, by ourselves and through the helper."""

    def make(timeout: float = 20.0) -> gpu_control.GpuControl:
        if request.param == "nvml":
            return gpu_control.create(GpuConfig(control="nvml", timeout=timeout))
        policy = Policy(os.geteuid(), allow=("power_limit",), timeout=timeout)
        desk = Desk(policy, Ledger(tmp_path, SystemClock()), SystemClock())
        socket = serve(desk).socket
        return gpu_control.create(
            GpuConfig(control="helper", helper_socket=socket, timeout=max(timeout, 10.0))
        )

    return make


def test_nvml_reads_writes_and_reads_back_one_card_by_uuid(driver: Driver, nvml: Make) -> None:
    first, second = driver.uuids
    control = nvml()
    assert vars(control.power(second)) == {
        "limit": 400_000,
        "default": 400_000,
        "minimum": 100_000,
        "maximum": 400_000,
    }
    control.set_power_limit(second, 320_000)
    assert control.power(second).limit == 320_000
    (write,) = driver.writes()
    assert (write.function, write.uuid, write.value) == (SET, second, 320_000)
    assert write.applied
    assert driver.power_limit(0) == 400.0, f"{first} was not touched"


def test_nvml_without_permission_says_what_is_needed(driver: Driver, nvml: Make) -> None:
    driver.refuse_writes()
    with pytest.raises(ControlError, match="needs root"):
        nvml().set_power_limit(driver.uuids[0], 320_000)
    assert driver.power_limit(0) == 400.0


@pytest.mark.parametrize("milliwatts", [99_000, 401_000])
def test_nvml_outside_the_limits_is_refused_by_the_driver(
    driver: Driver, milliwatts: int, nvml: Make
) -> None:
    with pytest.raises(ControlError, match=r"NVML|outside of what the card takes"):
        nvml().set_power_limit(driver.uuids[0], milliwatts)


@pytest.mark.parametrize("trouble", ["lost", "unknown", "unloaded"])
def test_nvml_without_the_card_is_an_error(driver: Driver, trouble: str, nvml: Make) -> None:
    uuid = driver.uuids[0]
    if trouble == "lost":
        driver.lose(0)
    if trouble == "unknown":
        uuid = "GPU-ffffffff-0000-0000-0000-000000000000"
    if trouble == "unloaded":
        driver.unload()
    for ask in (lambda: nvml().power(uuid), lambda: nvml().set_power_limit(uuid, 320_000)):
        with pytest.raises(ControlError, match=r"NVML|no such card") as caught:
            ask()
        assert not isinstance(caught.value, OutcomeUnknown)
    assert not [write for write in driver.writes() if write.applied]


@pytest.mark.parametrize("uuid", ["GPU-1; reboot", "--help", "../x", "", "GPU-" + "0" * 100])
def test_nvml_takes_no_text_for_a_uuid(driver: Driver, uuid: str, nvml: Make) -> None:
    with pytest.raises(ControlError, match=r"usage|not a GPU uuid"):
        nvml().power(uuid)


def test_an_nvml_write_that_hangs_is_unknown_within_its_deadline(
    driver: Driver, nvml: Make
) -> None:
    driver.hang(SET)
    with pytest.raises(OutcomeUnknown, match="did not end within"):
        nvml(1.5).set_power_limit(driver.uuids[0], 320_000)
    driver.clear()
    assert nvml().power(driver.uuids[0]).limit == 400_000


def test_an_nvml_read_that_hangs_is_an_error(driver: Driver, nvml: Make) -> None:
    driver.hang("nvmlDeviceGetPowerManagementLimit")
    with pytest.raises(ControlError) as caught:
        nvml(1.0).power(driver.uuids[0])
    assert not isinstance(caught.value, OutcomeUnknown), "a read changes nothing"


def through(bench: Bench, control: gpu_control.GpuControl, uuid: str) -> Bench:
    """A bench whose card is capped through a real control."""
    bench.world = type(bench.world)(**{**vars(bench.world), "control": control})
    card = bench.cards.pop(bench.uuids[0])
    card.uuid = uuid
    card.celsius = 84.0
    bench.cards[uuid] = card
    bench.uuids = [uuid]
    bench.evaluator._world = bench.executor._world = bench.leases._world = bench.world
    bench.fire("GPUTemperatureWarning")
    return bench


def test_a_cap_that_the_driver_silently_ignores_is_not_applied(
    bench: Bench, driver: Driver, nvml: Make
) -> None:
    driver.ignore_writes()
    through(bench, nvml(), driver.uuids[0]).act()
    assert (bench.run.state, bench.run.reason) == ("failed", "not_applied")
    (write,) = driver.writes()
    assert not write.applied


def test_a_hung_driver_call_costs_one_run_and_the_remediator_goes_on(
    make_bench: Callable[..., Bench], driver: Driver, nvml: Make
) -> None:
    driver.hang(SET, gpu=0)
    first = through(make_bench(), nvml(1.5), driver.uuids[0])
    first.clock.at(1, lambda: setattr(first.card, "celsius", 70.0))
    first.act()
    assert (first.run.state, first.run.reason) == ("failed", "not_applied")
    second = through(make_bench(), nvml(), driver.uuids[1])
    second.clock.at(1, lambda: setattr(second.card, "celsius", 70.0))
    second.act()
    assert second.run.state == "succeeded"
    assert driver.power_limit(1) == 320.0


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    with simulated_gpus("--gpus", "2") as url:
        yield url


@pytest.fixture
def uuids(simulator: str) -> Iterator[list[str]]:
    listed = call(simulator + "/api/v1/gpus")["gpus"]
    yield [one["uuid"] for one in listed]
    call(simulator + "/api/v1/faults", method="DELETE")


def simulated(url: str, timeout: float = 5.0) -> gpu_control.GpuControl:
    return gpu_control.create(GpuConfig(control="simulated", simulator_url=url, timeout=timeout))


def test_simulated_reads_writes_and_reads_back(simulator: str, uuids: list[str]) -> None:
    control = simulated(simulator + "/")
    before = control.power(uuids[0])
    assert (before.default, before.minimum) == (400_000, 100_000)
    control.set_power_limit(uuids[0], 320_000)
    assert control.power(uuids[0]).limit == 320_000
    control.set_power_limit(uuids[0], 400_000)
    written = call(simulator + "/api/v1/writes")["writes"]
    assert [(one["uuid"], one["watts"]) for one in written[-2:]] == [
        (uuids[0], 320.0),
        (uuids[0], 400.0),
    ]


def test_simulated_refusals_are_errors(simulator: str, uuids: list[str]) -> None:
    control = simulated(simulator)
    with pytest.raises(ControlError, match="refused 99000 mW"):
        control.set_power_limit(uuids[0], 99_000)
    with pytest.raises(ControlError):
        control.power("GPU-ffffffff-0000-0000-0000-000000000000")
    call(simulator + "/api/v1/faults", {"fault": "lose", "gpu": uuids[1]})
    with pytest.raises(ControlError, match="lost"):
        control.power(uuids[1])


def test_simulated_that_does_not_answer_in_time_is_unknown(
    simulator: str, uuids: list[str]
) -> None:
    call(simulator + "/api/v1/faults", {"fault": "slow", "gpu": uuids[1], "seconds": 2})
    with pytest.raises(OutcomeUnknown):
        simulated(simulator, 0.3).set_power_limit(uuids[1], 320_000)
    with pytest.raises(ControlError):
        simulated(simulator, 0.3).power(uuids[1])


def test_simulated_that_is_not_there_changed_nothing() -> None:
    control = simulated(f"http://127.0.0.1:{free_port()}")
    for ask in (lambda: control.power("GPU-1"), lambda: control.set_power_limit("GPU-1", 1)):
        with pytest.raises(ControlError) as caught:
            ask()
        assert not isinstance(caught.value, OutcomeUnknown)


def test_no_control_refuses_everything() -> None:
    control = gpu_control.create(GpuConfig(control="none"))
    for ask in (lambda: control.power("GPU-1"), lambda: control.set_power_limit("GPU-1", 1)):
        with pytest.raises(ControlError, match=r"gpus.control is none"):
            ask()
