"""What the tests of the remediator's edges share: payloads, an exporter stand-in, a real server process."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import http.client
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from remediator.app import Remediator, build, web_application
from remediator.config import Config, load
from remediator.store import Store
from remediator.web.auth import load_identities
from tests.remediator.quick_store import QuickStore
from tests.waiting import poll

ROOT = Path(__file__).resolve().parents[3]
GPU = "GPU-11111111-2222-3333-4444-555555555555"
KEY = b"k" * 64
TOKENS = {role: f"{role}-token-{'x' * 20}" for role in ("webhook", "read", "operate")}
SERVICE = {
    "name": "ollama",
    "driver": "ollama",
    "endpoint": "http://127.0.0.1:9",
    "manager": {"type": "process", "command": ["/bin/false", "--no-such-process"]},
    "gpus": [GPU],
}
START = "2026-11-21T10:00:00.123456789Z"
_ZERO_TIME = "0001-01-01T00:00:00Z"


def fingerprint(labels: Mapping[str, str]) -> str:
    text = json.dumps(dict(labels), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def alert(
    name: str = "GPUTemperatureWarning",
    *,
    status: str = "firing",
    starts: str = START,
    ends: str | None = None,
    key: str | None = None,
    **labels: str,
) -> dict[str, Any]:
    """One alert as Alertmanager sends it."""
    every = {"alertname": name, **(labels or {"uuid": GPU})}
    end = _ZERO_TIME if status == "firing" else "2026-11-21T10:05:00Z"
    return {
        "status": status,
        "labels": every,
        "annotations": {"summary": "a GPU is hot"},
        "startsAt": starts,
        "endsAt": ends or end,
        "generatorURL": "http://prometheus.invalid/graph",
        "fingerprint": key or fingerprint(every),
    }


def payload(*alerts: Mapping[str, Any], **over: Any) -> dict[str, Any]:
    """A whole delivery of version 4, as Alertmanager 0.25 writes it."""
    return {
        "receiver": "gpu-remediator",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.invalid:9093",
        "version": "4",
        "groupKey": '{}/{remediate="true"}:{}',
        "truncatedAlerts": 0,
        **over,
    }


def body(*alerts: Mapping[str, Any], **over: Any) -> bytes:
    return json.dumps(payload(*alerts, **over)).encode()


class FakeClock:
    """Time that moves only when told."""

    def __init__(self, now: float = 1_795_000_000.0) -> None:
        self.seconds = now

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.seconds += seconds
        return event.is_set()


def gpu_json(**over: Any) -> dict[str, Any]:
    """One GPU of the exporter's JSON, as docs/architecture.md has it."""
    return {
        "index": 0,
        "uuid": GPU,
        "name": "NVIDIA Test",
        "pci_bus_id": "00000000:01:00.0",
        "up": True,
        "fault": None,
        "temperature": 64.0,
        "utilization": 20.0,
        "memory": {
            "used_mb": 1024,
            "total_mb": 40960,
            "percent": 2.5,
            "used_bytes": 2**30,
            "free_bytes": 39 * 2**30,
            "total_bytes": 40 * 2**30,
        },
        "power": {
            "draw_w": 210.0,
            "limit_w": 400.0,
            "default_limit_w": 400.0,
            "min_limit_w": 100.0,
            "max_limit_w": 400.0,
        },
        "clocks": {"graphics_mhz": 1410, "memory_mhz": 1215},
        "fan_speed": 40.0,
        "health": "healthy",
        "error": "none",
        "error_message": "",
        "timestamp": time.time(),
        "age_seconds": 0.4,
        "thresholds": {
            "temperature_celsius": {"warning": 83, "critical": 85, "shutdown": 90},
            "memory_bytes": {"warning": 36 * 2**30, "critical": 38 * 2**30},
            "saturation": {"ratio": 0.99, "seconds": 30},
        },
        "saturated_seconds": 0.0,
        "processes": [],
        **over,
    }


class ExporterStandIn:
    """A small server that speaks the JSON of the exporter and of a simulated card's power limit.

    It remembers what it was asked, and `limit_watts` is what was last written.
    """

    def __init__(self) -> None:
        self.gpu = gpu_json()
        self.limit_watts = 400.0
        self.asked: list[str] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.asked.append(f"{self.command} {self.path}")
                status, answer = stand_in.answer(self.path.partition("?")[0])
                raw = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def do_PUT(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.limit_watts = sent["watts"]
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        gpu = {**self.gpu, "timestamp": time.time()}
        if path == "/api/gpus":
            return 200, {"available": True, "timestamp": time.time(), "gpus": [gpu]}
        if path == f"/api/gpu/{GPU}":
            return 200, {"available": True, "gpu": gpu}
        if path == f"/api/gpu/{GPU}/history":
            sample = {"timestamp": time.time(), "temperature": gpu["temperature"]}
            return 200, {"uuid": GPU, "samples": [sample]}
        if path in (f"/api/v1/gpus/{GPU}", f"/api/v1/gpus/{GPU}/power-limit"):
            return 200, {
                "power_limit_watts": self.limit_watts,
                "power_limit_default_watts": 400.0,
                "power_limit_min_watts": 100.0,
                "power_limit_max_watts": 400.0,
            }
        return 404, {"available": False, "error": "no such GPU"}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def write_config(folder: Path, **over: Any) -> Path:
    """A configuration with a token for each role; `over` replaces whole top-level keys."""
    for role, token in TOKENS.items():
        (folder / f"{role}.token").write_text(token + "\n", encoding="utf-8")
    raw: dict[str, Any] = {
        "state_dir": str(folder / "state"),
        "mode": "observe",
        "exporter": {"url": "http://127.0.0.1:9", "timeout": "1s"},
        "gpus": {"control": "none", "inventory": [GPU]},
        "web": {"listen_address": "127.0.0.1:0", "tokens": token_files(folder)},
        **over,
    }
    path = folder / "remediator.yml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def token_files(folder: Path) -> dict[str, str]:
    return {role: str(folder / f"{role}.token") for role in TOKENS}


@dataclass(frozen=True)
class InProcess:
    """A wired remediator and its application, with no thread started."""

    config: Config
    clock: FakeClock
    store: Store
    remediator: Remediator
    app: Any

    def client(self, role: str | None = None) -> Any:
        client = self.app.test_client()
        if role is not None:
            client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {TOKENS[role]}"
        return client

    def deliver(self, *alerts: Mapping[str, Any], **over: Any) -> Any:
        return self.client("webhook").post(
            "/api/v1/alerts", data=body(*alerts, **over), content_type="application/json"
        )

    def decide_all(self) -> None:
        """What the worker would do now with every open episode."""
        with self.store.reading() as tx:
            episodes = tx.episodes.open_all()
        for episode in episodes:
            self.remediator.evaluator.evaluate(episode.id)


@contextlib.contextmanager
def in_process(folder: Path, **over: Any) -> Iterator[InProcess]:
    config = load(write_config(folder, **over))
    clock = FakeClock()
    store = QuickStore(config.state_dir, KEY, clock)
    remediator = build(config, clock, store)
    app = web_application(remediator, load_identities(config.web))
    try:
        yield InProcess(config, clock, store, remediator, app)
    finally:
        store.close()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json()["error"])


class RealServer:
    """`python -m remediator serve` as its own process, on a loopback port of its own."""

    def __init__(self, folder: Path, **over: Any) -> None:
        self.folder = folder
        # Bound but not listening: nothing else is given this port, and the server can still take it.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        web = {"listen_address": f"127.0.0.1:{self.port}", "tokens": token_files(folder)}
        self.config = write_config(folder, **{"web": web, **over})
        self.database = folder / "state" / "remediator.db"
        self.log = folder / "log.txt"
        self._log = self.log.open("ab")
        self.process = start_serve(self.config, stderr=self._log)
        try:
            poll(self._ready, "the server is ready")
        except BaseException:
            self.stop()
            raise

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.call("GET", "/-/ready").status == 200
        except OSError:
            return False

    def call(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        *,
        role: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        every = dict(headers or {})
        if role is not None:
            every["Authorization"] = f"Bearer {TOKENS[role]}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body=data, headers=every)
            response = connection.getresponse()
            return Reply(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def post(self, data: bytes, *, role: str | None = "webhook", **headers: str) -> Reply:
        every = {"Content-Type": "application/json"}
        every.update({name.replace("_", "-"): value for name, value in headers.items()})
        return self.call("POST", "/api/v1/alerts", data, role=role, headers=every)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What is on disk, read by a connection of our own."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)
        ) as connection:
            return connection.execute(query, values).fetchall()

    def limit_file_size(self, size: int) -> None:
        """No file of the server may grow beyond `size` bytes, as on a full disk; -1 lifts it."""
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, hard))

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._log.close()
            self._reserved.close()
        return code


def start_serve(config: Path, *, stderr: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "remediator", "serve", f"--config.file={config}"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=clean_environment(),
    )


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("GPU_REMEDIATOR_")}


def command(
    *arguments: str, stdin: bytes = b"", obey_modes: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """`python -m remediator …` to its end; `obey_modes` takes root's right to ignore file modes."""
    return subprocess.run(
        [sys.executable, "-m", "remediator", *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        timeout=60,
        env=clean_environment(),
        preexec_fn=_obey_file_modes if obey_modes else None,
        check=False,
    )


_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


def _obey_file_modes() -> None:
    # Root ignores file modes by these two capabilities; without root there is nothing to drop.
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def add_lease(store: Store, uuid: str = GPU) -> None:
    """A power limit that was capped and is to be given back."""
    with store.transaction() as tx:
        tx.leases.take(
            uuid=uuid,
            knob="power_limit",
            control="simulated",
            original=400_000,
            value=320_000,
            run_id=1,
            now=store._clock.now(),
        )
