"""How long others wait at the remediator while thousands of connections drip.

Half of the crowd sends its headers a byte at a time, half the body of a delivery; whoever is sent away comes
again. Beside it one client delivers alerts and one asks for the health, over loopback, each request on a
connection of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

from benchmarks.command import run
from benchmarks.figures import percentile, table

_GOAL_MILLISECONDS = 50.0
_HEAD = b"POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_BODY_BYTES = 100_000
_PAUSE = 0.02
_START_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 where the goal was missed."""
    options = _parser().parse_args(arguments)
    return run(partial(_met, options.connections, options.requests))


def _met(connections: int, requests: int) -> bool:
    rows, missed = [], False
    with tempfile.TemporaryDirectory(prefix="gpu-slow-") as folder, _served(Path(folder)) as served:
        port, token = served
        for crowd in (0, connections):
            with _dripping(port, crowd):
                for name, ask in (("GET /-/healthy", _healthy), ("POST /api/v1/alerts", _deliver)):
                    took = _measure(partial(ask, port, token), requests)
                    worst = percentile(took, 99)
                    missed |= crowd > 0 and worst > _GOAL_MILLISECONDS
                    figures = (percentile(took, 50), worst, max(took))
                    rows.append((str(crowd), name, *(f"{one:.1f}" for one in figures)))
    print(table(("slow connections", "request", "p50, ms", "p99, ms", "max, ms"), rows))
    print(f"\ngoal: p99 at most {_GOAL_MILLISECONDS:g} ms: {'MISSED' if missed else 'met'}")
    return not missed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_clients", description=__doc__)
    parser.add_argument("--connections", type=int, default=2000, metavar="N")
    parser.add_argument("--requests", type=int, default=500, metavar="N", help="of each kind")
    return parser


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[tuple[int, str]]:
    """A remediator with nothing to watch: its port, and the webhook's token."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = int(reserved.getsockname()[1])
    token = secrets.token_hex(16)
    (folder / "token").write_text(token)
    config = {
        "state_dir": str(folder / "state"),
        "gpus": {"control": "none"},
        "web": {
            "listen_address": f"127.0.0.1:{port}",
            "tokens": {"webhook": str(folder / "token")},
        },
    }
    (folder / "remediator.yml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "remediator", "serve"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--config.file={folder / 'remediator.yml'}"], stderr=log
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(port, token):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.05)
        yield port, token
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int, token: str) -> bool:
    try:
        _healthy(port, token)
    except OSError:
        return False
    return True


def _healthy(port: int, _: str) -> None:
    _ask(port, "GET", "/-/healthy", 200)


def _deliver(port: int, token: str) -> None:
    labels = {"alertname": "GPUTemperatureWarning", "uuid": f"GPU-{secrets.token_hex(4)}"}
    alert = {
        "status": "firing",
        "labels": labels,
        "annotations": {},
        "startsAt": "2026-01-01T00:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": secrets.token_hex(8),
    }
    body = {
        "receiver": "gpu-remediator",
        "status": "firing",
        "alerts": [alert],
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "",
        "version": "4",
        "groupKey": "{}:{}",
        "truncatedAlerts": 0,
    }
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    _ask(port, "POST", "/api/v1/alerts", 202, json.dumps(body), headers)


def _ask(
    port: int,
    method: str,
    path: str,
    wanted: int,
    body: str | None = None,
    headers: dict[str, str] | None = None,
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    if answer.status != wanted:
        raise SystemExit(f"{method} {path}: HTTP {answer.status}, not {wanted}")


def _measure(ask: Callable[[], None], requests: int) -> list[float]:
    """Milliseconds of each request."""
    took = []
    for _ in range(requests):
        began = time.perf_counter()
        ask()
        took.append(1000 * (time.perf_counter() - began))
        time.sleep(_PAUSE)
    return took


@contextlib.contextmanager
def _dripping(port: int, size: int) -> Iterator[None]:
    """The crowd, in a process of its own, complete before anything is measured."""
    if not size:
        yield
        return
    context = multiprocessing.get_context("spawn")
    complete, over = context.Event(), context.Event()
    process = context.Process(target=_drip, args=(port, size, complete, over))
    process.start()
    try:
        if not complete.wait(_START_SECONDS):
            raise SystemExit("the crowd could not be made")
        yield
    finally:
        over.set()
        process.join(_START_SECONDS)


def _drip(port: int, size: int, complete: Event, over: Event) -> None:
    """Each connection sends a byte a second; whoever was sent away comes again."""
    crowd: list[socket.socket | None] = [None] * size
    while not over.is_set():
        began = time.monotonic()
        for number in range(size):
            crowd[number] = _drop(crowd[number]) or _come(port, number)
            # Spread over the second, once all are there.
            if number % 20 == 0 and over.wait(
                max(0.0, began + number / size - time.monotonic()) if complete.is_set() else 0
            ):
                return
        complete.set()


def _come(port: int, number: int) -> socket.socket | None:
    try:
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        length = f"Content-Length: {_BODY_BYTES}\r\n\r\n".encode()
        sock.sendall(_HEAD + (length if number % 2 else b"X-Drip: "))
        sock.setblocking(False)
    except OSError:
        return None
    return sock


def _drop(sock: socket.socket | None) -> socket.socket | None:
    """Send a byte; None where that is no use any more."""
    if sock is None:
        return None
    try:
        sock.send(b" ")
        if not sock.recv(1):
            raise ConnectionResetError
    except BlockingIOError:
        return sock
    except OSError:
        pass
    sock.close()
    return None


if __name__ == "__main__":
    sys.exit(main())
