"""The whole way of a reset with real parts: simulator, exporter, an Ollama process, the engine."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from remediator import app, runner
from remediator.alertmanager import parse
from remediator.clock import SystemClock
from remediator.config import Config
from remediator.config.strict import build
from tests.remediator.engine.processes import (
    PYTHON,
    call,
    end,
    exporter,
    free_port,
    simulated_gpus,
)
from tests.waiting import poll

ROOT = Path(__file__).parents[3]
TOKEN = "let-go-of-all-the-cards"
MODEL = "m"


class Host:
    """One card with an Ollama on it, and everything that looks after it."""

    def __init__(self, folder: Path, simulator: str, exporter: str, token: Path) -> None:
        self.simulator, self.exporter = simulator, exporter
        (card,) = call(f"{simulator}/api/v1/gpus")["gpus"]
        self.uuid: str = card["uuid"]
        port = free_port()
        self.ollama = f"http://127.0.0.1:{port}"
        self.command = [PYTHON, "-m", "simulator", "ollama", "--listen", f"127.0.0.1:{port}"]
        self.command += ["--gpu-server", simulator, "--gpu", self.uuid, "--model", f"{MODEL}=1GB"]
        raw = {
            "state_dir": str(folder / "state"),
            "mode": "auto",
            "allow": ["service_stop", "gpu_reset"],
            "exporter": {"url": exporter, "release_token_file": str(token)},
            "gpus": {"control": "simulated", "simulator_url": simulator},
            "services": [
                {
                    "name": "ollama",
                    "driver": "ollama",
                    "endpoint": self.ollama,
                    "manager": {
                        "type": "process",
                        "command": self.command,
                        "working_directory": str(ROOT),
                    },
                    "gpus": "all",
                    "models": [MODEL],
                }
            ],
            "timing": {"probe_interval": "200ms"},
        }
        config = build(Config, raw, "")
        clock = SystemClock()
        self.remediator = app.build(config, clock, app.open_store(config, clock))

    def start(self) -> None:
        """The service, and then who looks after it."""
        service = self.remediator.world.services["ollama"]
        self.before = service.manager.start(20)
        poll(lambda: service.driver.probe().state == "ready")
        service.driver.load(MODEL, 20)
        poll(self._is_seen)
        self.remediator.worker.start()

    def _is_seen(self) -> bool:
        """Whether the exporter has found the card, and the service on it."""
        try:
            reading = self.reading()
        except urllib.error.HTTPError:
            return False
        return bool(reading["up"] and reading["processes"])

    def reading(self) -> dict[str, Any]:
        return call(f"{self.exporter}/api/gpu/{self.uuid}")["gpu"]

    def asks_for(self, action: str) -> None:
        fault = {"fault": "recovery_action", "gpu": self.uuid, "action": action}
        call(f"{self.simulator}/api/v1/faults", fault)
        poll(lambda: self.reading()["recovery_action"] == action)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        alert = {
            "status": "firing",
            "labels": {"alertname": "GPURecoveryActionRequired", "uuid": self.uuid},
            "annotations": {},
            "startsAt": now,
            "endsAt": "0001-01-01T00:00:00Z",
            "fingerprint": "0123456789abcdef",
        }
        body = {"version": "4", "receiver": "remediator", "groupKey": "", "alerts": [alert]}
        self.remediator.intake.accept(parse(json.dumps(body).encode()))
        self.remediator.worker.nudge()

    def ended(self) -> Any:
        """The only run, once it is over."""

        def look() -> Any:
            with self.remediator.world.store.reading() as tx:
                runs = tx.runs.latest(10)
            return runs[0] if runs and runs[0].ended_at is not None else None

        return poll(look, seconds=60)

    def resets(self) -> list[dict[str, Any]]:
        writes = call(f"{self.simulator}/api/v1/writes")["writes"]
        return [one for one in writes if one["control"] == "reset"]

    def close(self) -> None:
        self.remediator.worker.stop()
        self.remediator.world.store.close()
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [])[1:] == self.command[1:]:
                end(process.pid)
        runner.reap()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    token = tmp_path / "release.token"
    token.write_text(TOKEN + "\n")
    settings = tmp_path / "exporter.yml"
    settings.write_text("intervals: {processes: 1, health: 1}\n")
    release = f"--web.release-token-file={token}"
    with simulated_gpus("--gpus", "1") as simulator, exporter(simulator, settings, release) as url:
        one = Host(tmp_path, simulator, url, token)
        try:
            one.start()
            yield one
        finally:
            one.close()


def test_a_card_that_asks_for_a_reset_is_emptied_let_go_reset_and_used_again(host: Host) -> None:
    host.asks_for("reset")
    run = host.ended()
    assert (run.state, run.reason) == ("succeeded", "verified"), run.sentence
    (reset,) = host.resets()
    assert reset["accepted"] is True
    after = host.remediator.world.services["ollama"].manager.status().identity
    assert after is not None
    assert not after.same(host.before)
    models = host.remediator.world.services["ollama"].driver.probe().models
    assert [model.name.partition(":")[0] for model in models] == [MODEL]
    assert host.reading()["recovery_action"] == "none"
    assert host.reading()["up"] is True


def test_somebody_elses_process_keeps_its_card_and_the_service_runs_on(host: Host) -> None:
    stranger = {
        "pid": psutil.Process().pid,
        "name": "train.py",
        "gpu": host.uuid,
        "memory_bytes": 2**30,
        "load_ratio": 0.0,
    }
    call(f"{host.simulator}/api/v1/attachments", stranger, method="PUT")
    poll(lambda: any(one["process"] == "train.py" for one in host.reading()["processes"] or ()))
    host.asks_for("drain_and_reset")
    run = host.ended()
    assert (run.state, run.reason) == ("failed", "may_not_reset")
    assert "train.py" in run.sentence
    assert host.resets() == []
    now = host.remediator.world.services["ollama"].manager.status().identity
    assert host.before.same(now)
