from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remediator.cli import main
from remediator.store import Store
from tests.remediator.edge.support import (
    GPU,
    KEY,
    SERVICE,
    ExporterStandIn,
    FakeClock,
    InProcess,
    RealServer,
    in_process,
    write_config,
)


@pytest.fixture
def remediator(tmp_path: Path) -> Iterator[InProcess]:
    with in_process(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """One real server process for all tests of a module."""
    running = RealServer(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def exporter() -> Iterator[ExporterStandIn]:
    stand_in = ExporterStandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: (exit status, standard output, standard error)."""
    for name in ("CONFIG_FILE", "WEB_LISTEN_ADDRESS", "LOG_LEVEL", "LOG_FORMAT"):
        monkeypatch.delenv(f"GPU_REMEDIATOR_{name}", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def config(tmp_path: Path, exporter: ExporterStandIn) -> Path:
    """One service, one card, and an exporter that answers; nothing has run yet."""
    return write_config(
        tmp_path,
        mode="auto",
        allow=["service_restart"],
        services=[SERVICE],
        exporter={"url": exporter.url, "timeout": "20s"},
        gpus={"control": "simulated", "simulator_url": exporter.url, "inventory": [GPU]},
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """The state that a server left behind."""
    opened = Store(tmp_path / "state", KEY, FakeClock(time.time()))
    (tmp_path / "state" / "audit.key").write_bytes(KEY)
    yield opened
    opened.close()
