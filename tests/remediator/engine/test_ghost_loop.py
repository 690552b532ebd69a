"""A restart that leaves the card at 100 %: simulator, exporter, a vLLM process and the whole remediator.

A killed kernel can leave the counter of utilisation latched for days, so that GPUHang goes on firing.
Every limit that would end a loop is out of the way here.
"""

from __future__ import annotations

import contextlib
import json
import threading
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
MODEL = "qwen"
NO_LIMITS = {
    "cooldown": "0s",
    "attempts_per_hour": 100,
    "attempts_per_day": 100,
    "destructive_per_hour": 100,
    "flap_episodes_per_hour": 100,
    "breaker_failures": 100,
    "breaker_relapses": 100,
    "breaker_targets": 100,
}
HANG = {"signal": "hang", "progress_window": "300ms"}
RUNG = {
    "steps": [
        {"action": "check", "signal": "hang", "within": "60s"},
        {"action": "restart_service"},
        {"action": "wait_ready"},
        {"action": "load_models"},
        {"action": "canary"},
    ],
    "verify": HANG,
    "within": "60s",
}


class Host:
    """One card with a vLLM on it, and who looks after it."""

    def __init__(self, folder: Path, simulator: str, exporter: str) -> None:
        self.simulator, self.exporter, self.fired = simulator, exporter, 0
        (card,) = call(f"{simulator}/api/v1/gpus")["gpus"]
        self.uuid: str = card["uuid"]
        port = free_port()
        self.vllm = f"http://127.0.0.1:{port}"
        self.command = [PYTHON, "-m", "simulator", "vllm", "--listen", f"127.0.0.1:{port}"]
        self.command += ["--gpu-server", simulator, "--gpu", self.uuid, "--model", f"{MODEL}=1GB"]
        self.command += ["--load-seconds", "0.1"]
        manager = {"type": "process", "command": self.command, "working_directory": str(ROOT)}
        raw = {
            "state_dir": str(folder / "state"),
            "mode": "auto",
            "allow": ["service_restart"],
            "exporter": {"url": exporter},
            "gpus": {"control": "simulated", "simulator_url": simulator},
            "services": [
                {
                    "name": "vllm",
                    "driver": "vllm",
                    "endpoint": self.vllm,
                    "manager": manager,
                    "gpus": "all",
                    "models": [MODEL],
                }
            ],
            "playbooks": {"recover-hang": {"evidence": HANG, "recheck": "1s", "rungs": [RUNG]}},
            "timing": {
                "probe_interval": "200ms",
                "stalled_after": "2s",
                "canary_timeout": "2s",
                "settling": "200ms",
            },
            "limits": NO_LIMITS,
        }
        config, clock = build(Config, raw, ""), SystemClock()
        self.remediator = app.build(config, clock, app.open_store(config, clock))

    @property
    def service(self) -> Any:
        return self.remediator.world.services["vllm"]

    def start(self) -> None:
        self.service.manager.start(20)
        poll(lambda: self.service.driver.probe().state == "ready")
        self.remediator.worker.start()

    def stall(self) -> None:
        """The engine stops, with a request in it; what it leaves behind outlasts every restart."""
        ghost = {"fault": "hang", "gpu": self.uuid, "power_watts": 60.0}
        call(f"{self.simulator}/api/v1/faults", ghost)
        call(f"{self.vllm}/_simulator/faults", {"fault": "stall"})
        threading.Thread(target=self._ask, daemon=True).start()
        poll(self.saturated)

    def _ask(self) -> None:
        body = {"model": MODEL, "prompt": "ping", "max_tokens": 5}
        with contextlib.suppress(OSError):
            call(f"{self.vllm}/v1/completions", body)

    def saturated(self) -> bool:
        with contextlib.suppress(urllib.error.HTTPError):
            reading = call(f"{self.exporter}/api/gpu/{self.uuid}")["gpu"]
            return bool((reading["saturated_seconds"] or 0.0) >= 1.0)
        return False

    def tell(self, status: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if status == "firing":
            self.fired, self.began = self.fired + 1, now
        alert = {
            "status": status,
            "labels": {"alertname": "GPUHang", "uuid": self.uuid},
            "annotations": {},
            "startsAt": self.began,
            "endsAt": now if status == "resolved" else "0001-01-01T00:00:00Z",
            "fingerprint": "0123456789abcdef",
        }
        body = {"version": "4", "receiver": "remediator", "groupKey": "", "alerts": [alert]}
        self.remediator.intake.accept(parse(json.dumps(body).encode()))
        self.remediator.worker.nudge()

    def fires_again(self) -> str:
        """GPUHang ends and fires anew; what is decided of it at last."""
        before = len(self.refuted)
        self.tell("resolved")
        self.tell("firing")
        poll(lambda: len(self.refuted) > before, self.story, 90)
        return self.refuted[-1]

    @property
    def decided(self) -> list[dict[str, Any]]:
        with self.remediator.world.store.reading() as tx:
            records = [dict(one.record) for one in tx.audit_records(limit=10_000)]
        return [one for one in records if one["event"] == "decision"]

    @property
    def refuted(self) -> list[str]:
        return [one["reason"] for one in self.decided if one["data"]["decision"] == "refute"]

    def story(self) -> list[str]:
        return [one["sentence"] for one in self.decided]

    @property
    def runs(self) -> list[Any]:
        with self.remediator.world.store.reading() as tx:
            return list(tx.runs.latest(100))

    def restarts(self) -> int:
        with self.remediator.world.store.reading() as tx:
            return int(tx.inventory.service("vllm").restarts)

    def close(self) -> None:
        self.remediator.worker.stop()
        self.remediator.world.store.close()
        for process in psutil.process_iter(["cmdline"]):
            if (process.info["cmdline"] or [])[1:] == self.command[1:]:
                end(process.pid)
        runner.reap()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    # A card is saturated after a second.
    settings = tmp_path / "exporter.yml"
    settings.write_text(
        "thresholds: {saturation: {ratio: 0.99, seconds: 1}}\nintervals: {processes: 1}\n"
    )
    with simulated_gpus("--gpus", "1") as simulator, exporter(simulator, settings) as url:
        one = Host(tmp_path, simulator, url)
        try:
            one.start()
            yield one
        finally:
            one.close()


def test_a_restart_on_a_card_with_ghost_utilisation_does_not_start_a_loop(host: Host) -> None:
    host.stall()
    host.tell("firing")
    poll(lambda: host.runs and host.runs[0].ended_at is not None, host.story, 90)
    assert (host.runs[0].state, host.runs[0].playbook) == ("succeeded", "recover-hang")
    assert host.restarts() == 1
    after = host.service.manager.status().identity

    # The restart has cured the server; the counter stands at 100 % as before.
    assert host.saturated()
    assert [host.fires_again() for _ in range(4)] == ["busy"] * 4
    assert after.same(host.service.manager.status().identity)

    # Nor is there anything to restart where nobody uses the card any more.
    host.service.manager.stop(None, 10)
    poll(lambda: not call(f"{host.exporter}/api/gpu/{host.uuid}")["gpu"]["processes"])
    assert host.saturated()
    assert host.fires_again() == "ghost"
    assert host.service.manager.status().identity is None
    assert (len(host.runs), host.restarts()) == (1, 1)
