"""The `ray_serve` driver against a real Ray Serve with two applications and no GPU.

Needs REAL_SERVERS=1 and a Python that has `ray[serve]` (500 MB, and 1 GB of memory while it runs):
RAY_PYTHON, or `.tools/ray-venv/bin/python`, which `python3 -m venv .tools/ray-venv` and
`.tools/ray-venv/bin/pip install 'ray[serve]==2.60.0'` make.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from remediator import http, services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ServiceError
from remediator.services import ServiceDriver
from tests.remediator.drivers.real_server import only_where, python_of, states_until_ready
from tests.remediator.engine.processes import free_port
from tests.waiting import poll

PYTHON = python_of("RAY_PYTHON", "ray-venv")
TOKEN = "a-token-of-this-test-0123456789"
START_SECONDS = 120.0
pytestmark = only_where("Ray Serve", "ray[serve]", PYTHON, seconds=400)


@dataclass(frozen=True)
class Ray:
    dashboard: int
    metrics: int
    proxy: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def app(self) -> str:
        return f"http://127.0.0.1:{self.proxy}/llm"

    def driver(self, **options: object) -> ServiceDriver:
        told = {
            "application": "llm",
            "token_file": str(self.folder / "token"),
            "proxy_url": self.app,
            "metrics_url": f"http://127.0.0.1:{self.metrics}/metrics",
        }
        url = f"http://127.0.0.1:{self.dashboard}"
        config = ServiceConfig("llm", "ray_serve", url, {}, options={**told, **options})
        return services.create(config, Timing(probe_timeout=5.0))


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    # Paths of Ray's sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    (folder / "token").write_text(TOKEN)
    ports = [free_port() for _ in range(3)]
    environment = {
        **os.environ,
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
    }
    argv = [str(PYTHON), str(Path(__file__).with_name("ray_app.py")), *map(str, ports)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*argv, str(folder / "t")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        yield Ray(*ports, folder, process)
    finally:
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def test_it_comes_up_works_loses_a_replica_and_ends(ray: Ray) -> None:
    one = ray.driver()
    seen = states_until_ready(
        one, ray.process, lambda: (ray.folder / "log").read_text()[-2000:], START_SECONDS
    )
    # Before the application is deployed Ray runs, and it is not there.
    assert seen <= {"refused", "error", "silent", "dead", "loading", "ready"}
    poll(lambda: one.probe().gpus_asked == 1.25, seconds=60)

    idle = poll(lambda: (at := one.probe()).requests_running is not None and at, seconds=60)
    assert [model.name for model in idle.models] == ["tiny"]
    assert idle.requests_in_flight == 0
    one.load("tiny", 5)
    with pytest.raises(ServiceError, match="serves tiny, not llama"):
        one.load("llama", 5)
    assert 0 < one.canary("tiny", 20) < 20

    poll(lambda: one.probe().progress is not None, seconds=60)
    before = one.probe().progress
    asking = threading.Thread(target=_ask, args=(ray, 1000), daemon=True)
    asking.start()
    busy = poll(lambda: (at := one.probe()).requests_running and at, seconds=30)
    assert (busy.state, busy.requests_running) == ("ready", 1)
    poll(lambda: (one.probe().progress or 0) > before, seconds=30)
    asking.join(60)

    with contextlib.suppress(ServiceError):
        http.call("POST", ray.app + "/die", timeout=10)
    states = set()

    def is_replaced() -> bool:
        at = one.probe()
        states.add(at.state)
        return states - {"ready"} and at.state == "ready"

    poll(is_replaced, seconds=90)
    assert "refused" not in states
    assert "dead" not in states, "Ray was replacing it"
    # The dead one's counter is still on the page, and is not read.
    page = http.call("GET", f"http://127.0.0.1:{ray.metrics}/metrics", timeout=10).body.decode()
    lines = [line for line in page.splitlines() if line.startswith("ray_vllm_generation_tokens")]
    assert len(lines) >= 1
    after = poll(lambda: one.probe().progress, seconds=60)
    assert after < 1000


def test_a_token_that_is_missing_or_wrong_is_said(ray: Ray, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("another-token-0123456789")
    poll(
        lambda: "options.token_file" in ray.driver(token_file=None).probe().detail,
        seconds=START_SECONDS,
    )
    wrong = ray.driver(token_file=str(tmp_path / "wrong")).probe()
    assert (wrong.state, "is not this cluster's" in wrong.detail) == ("error", True)


def test_an_application_that_is_not_there_is_dead(ray: Ray) -> None:
    poll(lambda: ray.driver(application="three").probe().state == "dead", seconds=START_SECONDS)


def test_a_dashboard_that_is_elsewhere_is_no_service_that_is_down(ray: Ray) -> None:
    config = ServiceConfig(
        "llm", "ray_serve", f"http://127.0.0.1:{free_port()}", {}, options={"proxy_url": ray.app}
    )
    probe = services.create(config, Timing()).probe()
    assert (probe.state, "proxy works" in probe.detail) == ("error", True)


def _ask(ray: Ray, tokens: int) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": tokens}
    with contextlib.suppress(ServiceError):
        http.call("POST", ray.app + "/v1/completions", timeout=60, body=body)
