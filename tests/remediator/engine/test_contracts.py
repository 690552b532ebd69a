"""Every part there is keeps its contract; a new file is held to it without new test code."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest

from remediator import actions, gpu_control, managers, services, signals
from remediator.actions import StepContext
from remediator.clock import SystemClock
from remediator.config import GpuConfig, ServiceConfig, Timing
from remediator.errors import ConfigError, ManagerError, RemediatorError, ServiceError
from remediator.playbooks import load
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.processes import PYTHON

# The smallest valid block of each part; a new part adds its line.
ACTIONS: dict[str, dict[str, Any]] = {
    "cap_power": {"to": "80%"},
    "check": {"signal": "service_down"},
    "settle": {"seconds": "1s"},
    "stop_service": {"because": "a test"},
}
SIGNALS: dict[str, dict[str, Any]] = {
    "memory": {"level": "warning"},
    "temperature": {"level": "warning"},
}
MANAGERS: dict[str, dict[str, Any]] = {
    "docker": {"container": "ollama", "url": "unix:///no/such/socket"},
    "kubernetes": {"namespace": "llm", "name": "ollama", "url": "https://127.0.0.1:1"},
    "process": {"command": [PYTHON, "-c", "pass", "a contract test"]},
    "supervisord": {"url": "unix:///no/such/socket", "process": "ollama"},
    "systemd": {"unit": "ollama.service", "systemctl": "/bin/false"},
}
CONTROLS = ("nvml", "nvidia-smi", "jetson", "helper", "simulated", "none")
PERMISSIONS = (None, "service_restart", "service_stop", "gpu_reset")


def module(package: ModuleType, name: str) -> ModuleType:
    return importlib.import_module(f"{package.__name__}.{name}")


def action(name: str) -> actions.Action:
    return actions.create({"action": name, **ACTIONS.get(name, {})}, "test")


def manager(name: str) -> managers.ProcessManager:
    context = managers.Context(SystemClock(), dict, lambda identity: None)
    return managers.create({"type": name, **MANAGERS[name]}, "ollama", context)


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process can be started and no socket connected."""

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError(f"IO in what must only describe: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        (actions, "Parameters"),
        (signals, "Parameters"),
        (services, "Options"),
        (managers, "Options"),
    ],
)
def test_every_module_has_frozen_settings_and_a_constructor(
    package: ModuleType, settings: str
) -> None:
    assert package.names()
    for name in package.names():
        one = module(package, name)
        kept = getattr(one, settings)
        assert dataclasses.is_dataclass(kept), name
        assert kept.__dataclass_params__.frozen, name
        assert callable(one.create), name
        assert inspect.getdoc(one), name


@pytest.mark.parametrize("package", [actions, signals, services, managers])
def test_an_unknown_name_is_told_the_nearest(package: ModuleType) -> None:
    near = package.names()[0]
    wrong = near[:-1] + ("x" if near[-1] != "x" else "y")
    create: dict[ModuleType, Callable[[], object]] = {
        actions: lambda: actions.create({"action": wrong}, "test"),
        signals: lambda: signals.create({"signal": wrong}, "test"),
        services: lambda: services.create(
            ServiceConfig("a", wrong, "http://127.0.0.1:1", {}), Timing()
        ),
        managers: lambda: managers.create(
            {"type": wrong}, "a", managers.Context(None, dict, print)
        ),
    }
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        create[package]()


@pytest.mark.parametrize("name", actions.names())
def test_every_action_says_what_it_is(name: str) -> None:
    one = action(name)
    assert one.kind == name
    assert one.permission in PERMISSIONS
    assert one.scope in ("gpu", "one_service", "all_services")
    assert isinstance(one.destructive, bool)
    assert isinstance(one.resumable, bool)
    assert all(callable(getattr(one, part)) for part in ("describe", "intend", "begun", "run"))
    if one.destructive:
        assert one.permission is not None, "what interrupts a service needs a second key"


@pytest.mark.parametrize("name", actions.names())
def test_every_action_describes_itself_without_doing_anything(
    name: str, make_bench: Callable[..., Bench], isolated: None
) -> None:
    bench = make_bench(services=("ollama",))
    context = StepContext(
        bench.world, bench.uuids[0], bench.world.services["ollama"], threading.Event()
    )
    bench.drivers["ollama"].forced = None
    bench.control.hangs = True
    before = bench.disk.transactions
    assert action(name).describe(context)
    assert bench.disk.transactions == before
    assert bench.managers["ollama"].calls == []
    assert bench.clock.passed == 0


@pytest.mark.parametrize("name", actions.names())
def test_every_action_refuses_a_wrong_target(name: str, bench: Bench) -> None:
    context = StepContext(bench.world, None, None, threading.Event())
    one = action(name)
    with pytest.raises(RemediatorError, match="needs a"):
        one.describe(context) if name != "settle" else context.on_service


@pytest.mark.parametrize("name", actions.names())
def test_every_step_stops_waiting_when_it_is_asked_to(
    name: str, make_bench: Callable[..., Bench]
) -> None:
    """No action waits on anything but the clock with its run's stop event."""
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    stop = threading.Event()
    stop.set()
    context = StepContext(bench.world, bench.uuids[0], bench.world.services["ollama"], stop)
    one = action(name)
    begun = bench.clock.passed
    try:
        intent = one.intend(context)
        if not intent.nothing:
            one.run(context, intent.data)
    except RemediatorError:
        pass
    assert bench.clock.passed == begun


@pytest.mark.parametrize("name", signals.names())
def test_every_signal_says_unknown_when_nothing_can_be_read(
    name: str, make_bench: Callable[..., Bench]
) -> None:
    bench = make_bench(services=("ollama",))
    bench.gpus.silent = True
    bench.managers["ollama"].die()
    bench.managers["ollama"].fails = "no manager"
    one = signals.create({"signal": name, **SIGNALS.get(name, {})}, "test")
    kind = "service" if name == "service_down" else "gpu"
    target = Target(kind, "ollama" if kind == "service" else bench.uuids[0])
    before = bench.disk.transactions
    finding = one.read(bench.world, target)
    assert finding.state == "unknown"
    assert finding.reason in one.reasons
    assert finding.sentence
    assert bench.disk.transactions == before, "a signal changes nothing"


@pytest.mark.parametrize("book", sorted(load({}).by_name))
def test_every_shipped_playbook_reads_signals_with_known_reasons(book: str) -> None:
    playbook = load({}).by_name[book]
    for signal in (playbook.evidence, *(rung.verify for rung in playbook.rungs)):
        assert len(set(signal.reasons)) == len(signal.reasons) > 0


@pytest.mark.parametrize("name", managers.names())
def test_every_manager_describes_itself_without_doing_anything(name: str, isolated: None) -> None:
    one = manager(name)
    assert one.kind == name
    assert one.unit
    described = {verb: one.describe(verb) for verb in ("start", "stop", "restart")}
    assert all(described.values())
    assert len(set(described.values())) == 3


@pytest.mark.parametrize("name", managers.names())
def test_every_manager_takes_a_stop_of_what_is_gone_for_done(name: str) -> None:
    one = manager(name)
    gone = managers.ProcessIdentity(2**22 + 1, 1.0)
    if name != "process":  # its daemon does not answer, and that it says
        with pytest.raises(ManagerError):
            one.stop(gone, 1)
    else:
        one.stop(gone, 1)


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", services.names())
def test_every_call_of_a_driver_has_a_deadline(name: str, black_hole: str) -> None:
    one = services.create(ServiceConfig("a", name, black_hole, {}), Timing(probe_timeout=0.3))
    begun = time.monotonic()
    assert one.probe().state == "silent"
    for ask in (lambda: one.load("m", 0.3), lambda: one.canary("m", 0.3)):
        with pytest.raises(ServiceError):
            ask()
    assert time.monotonic() - begun < 30, "none of them waits for ever"


@pytest.mark.parametrize("name", services.names())
def test_every_driver_says_what_it_is_without_asking(name: str, isolated: None) -> None:
    one = services.create(ServiceConfig("a", name, "http://127.0.0.1:1", {}), Timing())
    assert one.kind == name
    assert isinstance(one.can_unload, bool)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_describes_a_write_without_doing_it(name: str, isolated: None) -> None:
    one = gpu_control.create(GpuConfig(control=name, simulator_url="http://127.0.0.1:1"))
    assert one.name == name
    assert "GPU-1" in one.describe_set_power_limit("GPU-1", 320_000)


def test_the_controls_that_are_tested_are_all_there_are() -> None:
    assert set(get_args(get_type_hints(GpuConfig)["control"])) == set(CONTROLS)
    folder = Path(str(gpu_control.__file__)).parent
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__", "base"}
    calls = {name for name in modules if name.endswith("_call")}
    assert modules - calls == {name.replace("-", "_") for name in CONTROLS} - {"none"}
