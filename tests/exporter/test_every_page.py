"""The page of every backend and of every fault, before promtool, the strict parser and the catalogue."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from deploy.local.binaries import find
from exporter.backends import registry
from exporter.backends.base import Backend, BackendOptions
from exporter.backends.jetson import JetsonBackend
from exporter.backends.nvidia_smi import NvidiaSmiBackend
from exporter.backends.replay import ReplayBackend
from exporter.backends.simulated import create as simulated
from exporter.capture import file as capture_file
from exporter.catalogue import METRICS, Kind
from exporter.environment import Environment
from exporter.errors import BackendError, DeviceFault, ReadingError
from exporter.frames import (
    BackendFrame,
    DevicesFrame,
    FaultFrame,
    HealthFrame,
    ProcessesFrame,
    SampleFrame,
)
from exporter.readings import BackendReason, FaultReason
from tests.exporter import golden
from tests.exporter.fake_smi import FakeSmi
from tests.exporter.fakes import Bench, FakeClock, SimulatorServer
from tests.exporter.fault_bench import FaultBench
from tests.exporter.test_jetson_backend import TREES, Board
from tests.exporter.test_page import full, rendered
from tests.waiting import poll

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
OWN = re.compile(r"(gpu|host)_")
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)([{ ])(.*)")

Pages = dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Pages:
    """Each page by what it is of, as text and as OpenMetrics."""
    folder = tmp_path_factory.mktemp("pages")
    found = dict(of_the_driver(folder / "nvml"))
    for path in golden.captures():
        found[f"replay of {path.stem}"] = both(told(ReplayBackend(capture_file.load(path))))
    for tree in sorted(TREES.glob("*.tree")):
        board = Board(folder / tree.stem, tree.stem)
        found[f"jetson {tree.stem}"] = both(told(JetsonBackend(board.root)))
        shutil.rmtree(board.root / "sys")
        found[f"jetson {tree.stem} without a GPU"] = both(told(JetsonBackend(board.root)))
        board.close()
    found |= dict(of_nvidia_smi(folder))
    found |= dict(of_the_simulator())
    found["full"] = both(full())
    for reason in BackendReason:
        bench = full()
        bench.store.apply(BackendFrame("nvml", up=False, reason=reason, message='a "quoted"\n\\'))
        found[f"backend {reason}"] = both(bench)
    for fault in FaultReason:
        bench = full()
        bench.store.apply(FaultFrame("GPU-0", 0, "sample", str(fault), fault))
        found[f"fault {fault}"] = both(bench)
    return found


def of_the_driver(folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """A real worker on the stand-in driver: each fault of a card beside the others, and of all."""
    bench = FaultBench(folder, 5)
    driver = bench.driver
    bench.service.start()
    try:
        poll(lambda: bench.well(*range(5)), "all cards are read")
        yield "nvml, all well", page_of(bench)
        driver.xid(4, 79)
        driver.lose(0)
        driver.fail(gpu=1, error=16)
        driver.hang("nvmlDeviceGetPowerUsage", gpu=2)
        driver.fail(gpu=3, error=999)
        faults = dict(enumerate(("lost", "reset_required", "timeout", "unknown")))

        def seen() -> dict[int, str]:
            return {index: str(bench.views()[index].fault) for index in faults}

        poll(lambda: seen() == faults, seen)
        poll(lambda: bench.well(4), "the other card is read")
        yield "nvml, a card with each fault", page_of(bench)
        driver.clear()
        poll(lambda: bench.well(*range(5)), "all cards are back")
        bench.service.release.ask(30)
        poll(lambda: bench.views()[0].fault is FaultReason.RELEASED, "released")
        yield "nvml, released", page_of(bench)
        bench.service.release.take_back()
        poll(lambda: bench.well(*range(5)), "all cards are back")
        driver.fail("nvmlDeviceGetPowerUsage", error=9)
        driver.unload()
        poll(lambda: bench.service.store.snapshot().backend.up is False, "the driver is gone")
        yield "nvml, no driver", page_of(bench)
    finally:
        bench.stop()


def of_nvidia_smi(folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    smi = FakeSmi(folder / "bin")
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{smi.folder}:{before}"
    backend = NvidiaSmiBackend(Environment(folder), FakeClock(), timeout=1.0, together=1.0)
    try:
        yield "nvidia-smi", both(told(backend))
        smi.set(0, power__draw="[GPU is lost]")
        smi.set(1, power__draw="[Unknown Error]", fan__speed="[N/A]")
        backend._clock.now += 1
        yield "nvidia-smi, a lost GPU", both(told(backend))
        smi.break_all(code=9, say="couldn't communicate with the NVIDIA driver")
        yield "nvidia-smi, no driver", both(told(backend))
    finally:
        os.environ["PATH"] = before
        for pid in smi.hung():
            os.kill(pid, signal.SIGKILL)


def of_the_simulator() -> Iterator[tuple[str, tuple[str, str]]]:
    simulator = SimulatorServer()
    try:
        backend = simulated(BackendOptions(simulator_url=simulator.url))
        yield "simulated", both(told(backend))
        simulator.gpus["GPU-sim-0"]["lost"] = True
        yield "simulated, a lost GPU", both(told(backend))
    finally:
        simulator.close()
    yield "simulated, no simulator", both(told(backend))


def told(backend: Backend) -> Bench:
    """What a store knows after each collection of each GPU was made once."""
    bench = Bench(gpus=0)
    try:
        found = backend.open()
    except BackendError as error:
        bench.store.apply(BackendFrame(backend.name, up=False, reason=error.reason))
        return bench
    versions = {"driver_version": found.driver_version, "cuda_version": found.cuda_version}
    bench.store.apply(BackendFrame(backend.name, up=True, **versions))
    infos = tuple(device.info for device in found.devices)
    bench.store.apply(DevicesFrame(infos, found.failed, 0.0, found.watched))
    time, now = bench.clock.time(), bench.clock.monotonic()
    for device in found.devices:
        uuid = device.info.uuid
        try:
            read = device.sample()
            bench.store.apply(SampleFrame(uuid, time, now, read.sample, 0.0, read.errors))
            health = device.health()
            bench.store.apply(HealthFrame(uuid, now, health.health, 0.0, health.errors))
            uses = device.processes().processes
            known = None if uses is None else len(uses)
            bench.store.apply(ProcessesFrame(uuid, now, uses and tuple(uses), known, 0.0))
        except DeviceFault as fault:
            bench.store.apply(FaultFrame(uuid, now, "sample", str(fault.reason), fault.reason))
        except ReadingError as error:
            bench.store.apply(FaultFrame(uuid, now, "processes", str(error)))
    backend.close()
    return bench


def both(bench: Bench) -> tuple[str, str]:
    return rendered(bench), rendered(bench, OPENMETRICS)


def page_of(bench: FaultBench) -> tuple[str, str]:
    page = bench.service.page
    return page.render()[0].decode(), page.render(OPENMETRICS)[0].decode()


def test_the_strict_parser_accepts_each(pages) -> None:
    for what, (_, strict) in pages.items():
        assert strict.endswith("# EOF\n"), what
        assert list(openmetrics(strict)), what


def test_promtool_accepts_all_of_them(pages) -> None:
    """In one run, which is slow: their lines as they are, each page told apart by a label."""
    described: dict[str, list[str]] = {}
    for what, (text, _) in pages.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split(" ")[2]
                known = described.setdefault(family, [])
                if line not in known:
                    assert len(known) < 2, f"{what}: {line} contradicts {known}"
                    known.append(line)
            else:
                name, mark, rest = SAMPLE.fullmatch(line).groups()
                more = "," if mark == "{" else "} "
                described[family].append(f'{name}{{page="{what}"{more}{rest}')
    lines = "".join(f"{line}\n" for family in described.values() for line in _sorted(family))
    done = subprocess.run(
        [str(find().promtool), "check", "metrics"],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def _sorted(lines: list[str]) -> list[str]:
    return sorted(lines, key=lambda line: not line.startswith("# "))


def test_each_series_is_that_of_the_catalogue_and_each_of_the_catalogue_is_on_a_page(pages) -> None:
    seen: set[str] = set()
    for what, (_, strict) in pages.items():
        for family in openmetrics(strict):
            for one in family.samples:
                if not OWN.match(one.name):
                    continue
                metric = METRICS[one.name]
                told_of = (family.type, family.unit, family.documentation)
                assert told_of == (metric.kind.value, metric.unit, metric.help), (what, one.name)
                assert set(one.labels) == set(metric.label_names), (what, one.name)
                assert one.name.endswith("_total") == (metric.kind is Kind.COUNTER), one.name
                seen.add(one.name)
    # A kernel before 4.13 counts no OOM kills.
    assert METRICS.keys() - seen <= {"host_oom_kills_total"}


def test_no_backend_is_missing(pages) -> None:
    tested = {re.split("[, ]", what)[0].replace("-", "_") for what in pages}
    assert {name.replace("-", "_") for name in registry.names()} - {"auto"} <= tested
