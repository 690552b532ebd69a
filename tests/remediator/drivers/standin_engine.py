"""A stand-in container engine on a Unix socket: the few Docker Engine API v1.41 calls we make.

Bodies and statuses are those that Podman 4.3.1's API (v1.41) gave; `restarting` and a stop of a
paused container are as Docker's documentation has them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

NEVER = "0001-01-01T00:00:00Z"


def rfc3339(unix: float) -> str:
    moment = dt.datetime.fromtimestamp(unix, dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "789Z"


class Container:
    """One container, as `GET /containers/{id}/json` shows it."""

    def __init__(self, name: str, number: int = 1) -> None:
        self.name = name
        self.id = f"{number:064x}"
        self.next_pid = 4000
        self.retries = 0
        self.written: list[tuple[float, int, str]] = []
        self.terminal = False
        self.policy: dict[str, Any] = {"Name": "", "MaximumRetryCount": 0}
        self.stop_signal: str | None = None
        self.state: dict[str, Any] = {
            "Status": "created",
            "Running": False,
            "Paused": False,
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": 0,
            "ExitCode": 0,
            "Error": "",
            "StartedAt": NEVER,
            "FinishedAt": NEVER,
        }

    def put(self, **state: Any) -> None:
        self.state.update(state)

    def up(self) -> None:
        self.next_pid += 1
        self.put(Status="running", Running=True, Pid=self.next_pid, StartedAt=rfc3339(time.time()))

    def end(self, code: int, *, ago: float = 0.0) -> None:
        when = rfc3339(time.time() - ago)
        self.put(Status="exited", Running=False, Paused=False, Pid=0, ExitCode=code)
        self.put(FinishedAt=when)

    def log(self, since: int) -> bytes:
        """Its log as `GET …/logs?timestamps=1` gives it: in frames, unless it has a terminal."""
        lines = [
            (stream, f"{rfc3339(at)} {text}\n".encode())
            for at, stream, text in self.written
            if at >= since
        ]
        if self.terminal:
            return b"".join(line.replace(b"\n", b"\r\n") for _, line in lines)
        return b"".join(bytes([kind, 0, 0, 0]) + len(n).to_bytes(4, "big") + n for kind, n in lines)

    @property
    def body(self) -> dict[str, Any]:
        config = {"StopSignal": self.stop_signal} if self.stop_signal else {}
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "State": dict(self.state),
            "RestartCount": self.retries,
            "HostConfig": {"RestartPolicy": self.policy},
            "Config": config,
        }


class Engine:
    """What the tests do to the engine, and what it was asked."""

    def __init__(self) -> None:
        self.containers: list[Container] = []
        self.requests: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.garbage: bytes | None = None
        self.ignores = False
        self.dies_with: int | None = None
        self.silent = threading.Event()
        self.silent.set()
        self.before_write = lambda: None

    def find(self, name: str) -> Container | None:
        return next((c for c in self.containers if name in (c.name, c.id)), None)

    def write(self, verb: str, container: Container) -> int:
        if self.ignores:
            return 204
        if verb == "start":
            if container.state["Running"]:
                return 304
            container.up()
            if self.dies_with is not None:
                container.end(self.dies_with)
            return 204
        if not container.state["Running"]:
            return 304
        container.end(143)
        return 204

    @property
    def writes(self) -> list[str]:
        return [request for request in self.requests if request.startswith("POST")]


class _Handler(BaseHTTPRequestHandler):
    engine: Engine

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def _answer(self) -> None:
        engine = self.engine
        engine.requests.append(f"{self.command} {self.path}")
        engine.silent.wait(20)
        parts = urlsplit(self.path)
        _, word, name, verb = parts.path.split("/")
        query = parse_qs(parts.query)
        assert word == "containers"
        container = engine.find(name)
        if engine.garbage is not None:
            return self._send(200, engine.garbage)
        if self.command == "POST":
            engine.before_write()
            container = engine.find(name)
            if engine.refusal:
                status, message = engine.refusal
                return self._send(status, json.dumps({"message": message}).encode())
        if container is None:
            message = f'no container with name or ID "{name}" found: no such container'
            return self._send(404, json.dumps({"message": message}).encode())
        if verb == "logs":
            assert {"stdout", "stderr", "timestamps"} <= query.keys()
            if engine.refusal:
                return self._send(engine.refusal[0], engine.refusal[1].encode())
            return self._send(200, container.log(int(query["since"][0])))
        if self.command == "GET":
            return self._send(200, json.dumps(container.body).encode())
        if verb == "stop":
            assert query["t"][0].isdigit()
        return self._send(engine.write(verb, container), b"")

    def _send(self, status: int, body: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.send_response(status)
            if status not in (204, 304):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def serve(engine: Engine, socket: Path) -> Iterator[None]:
    handler = type("Handler", (_Handler,), {"engine": engine})
    with _Server(str(socket), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            engine.silent.set()
            server.shutdown()
            thread.join()
