"""A replica of a real Ray Serve that takes too much memory: what is made of its death.

Needs what test_ray_serve_real.py needs, and 4 GiB of free memory: Ray's memory monitor is to find the
machine full at 3 GiB more than it holds at the start.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from remediator import http
from remediator.alertmanager import Alert, Notification
from remediator.clock import SystemClock
from tests.remediator.drivers import test_ray_serve_real as real
from tests.remediator.engine.processes import call, free_port
from tests.remediator.engine.test_real_out_of_memory import Live, retried
from tests.waiting import poll

pytestmark = real.pytestmark
APP = str(Path(__file__).with_name("ray_hungry_app.py"))
ROOM = 3 * 2**30
TOO_MUCH = 1_000_000
SAID = "killed due to the node running low on memory"


class LiveRay(Live):
    """The remediator over a Ray that it has started itself."""

    driver = "ray_serve"

    def __init__(self, folder: Path) -> None:
        self.proxy, self.metrics = free_port(), free_port()
        options = {
            "application": "llm",
            "proxy_url": f"http://127.0.0.1:{self.proxy}/llm",
            "metrics_url": f"http://127.0.0.1:{self.metrics}/metrics",
        }
        super().__init__(folder, [], options=options, models=["tiny"])
        self.canaries: list[str] = []
        driver = self.remediator.world.services["llm"].driver
        canary = driver.canary

        def noted(model: str, timeout: float) -> float:
            took = canary(model, timeout)
            self.canaries.append(model)
            return took

        driver.canary = noted  # type: ignore[method-assign]

    def process(self) -> dict[str, Any]:
        memory = psutil.virtual_memory()
        threshold = (memory.total - memory.available + ROOM) / memory.total
        command = [str(real.PYTHON), APP, str(self.port), str(self.metrics), str(self.proxy)]
        return {
            "type": "process",
            "command": [*command, str(self.folder / "t")],
            "log_file": str(self.folder / "log"),
            "environment": {
                "HOME": str(self.folder),
                "RAY_AUTH_MODE": "disabled",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_memory_usage_threshold": f"{threshold:.3f}",
            },
        }

    def ask(self, tokens: int) -> Any:
        body = {"model": "tiny", "prompt": "ping", "max_tokens": tokens}
        return call(f"http://127.0.0.1:{self.proxy}/llm/v1/completions", body)

    def fire(self, name: str = "LLMServiceOutOfMemory") -> None:
        labels = {"alertname": name, "llm_service": "llm", "job": "gpu-remediator"}
        now = SystemClock().now()
        alert = Alert("00000000000000bb", "firing", labels, {}, now, None)
        self.remediator.intake.accept(Notification("remediator", "", 0, (alert,), str(now)))
        self.remediator.worker.nudge()

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]


@pytest.fixture
def live() -> Iterator[LiveRay]:
    # Paths of Ray's sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    one = LiveRay(folder)
    try:
        one.begin(ready=False)
        poll(lambda: [*one.known().models] == ["tiny"], one.log, real.START_SECONDS)
        yield one
    finally:
        one.manager.stop(None, 60)
        one.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_replica_that_ray_kills_for_memory_is_known_for_that_and_answers_again(
    live: LiveRay,
) -> None:
    before = live.manager.status().identity
    heard: list[int] = []

    def ask_too_much() -> None:
        url = f"http://127.0.0.1:{live.proxy}/llm/v1/completions"
        body = {"model": "tiny", "prompt": "ping", "max_tokens": TOO_MUCH}
        heard.append(http.call("POST", url, timeout=200, body=body).status)

    asking = threading.Thread(target=ask_too_much, daemon=True)
    asking.start()
    poll(lambda: live.known().out_of_memory, live.log, 120)
    live.fire()
    meanwhile = retried(live)
    assert {one.partition(" ")[0] for one in meanwhile} <= {"HTTP"}, "a clear error, and no silence"
    asking.join(60)
    assert heard == [500], "the request that took too much was told that it failed"

    # The cause has its name, once, however many told of it.
    causes = live.sentences("out_of_memory")
    assert any(f"a replica of LLMServer:tiny (llm) was {SAID}" in said for said in causes)
    assert live.known().out_of_memory == 1

    # Ray itself has replaced it. A canary was answered, so nothing is restarted.
    def refuted() -> list[dict[str, Any]]:
        return [one for one in live.audit if one["reason"] == "healthy"]

    (decision,) = poll(refuted, lambda: live.sentences("decision"), 120)
    assert decision["data"]["decision"] == "refute"
    assert decision["data"]["evidence"]["probe"] == "ready"
    assert live.canaries == ["tiny"]
    assert [*live.known().models] == ["tiny"]
    assert before.same(live.manager.status().identity)
    assert live.ask(1)["choices"]
