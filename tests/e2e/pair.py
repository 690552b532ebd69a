"""Two real Alertmanagers in a cluster, two real Prometheus with skewed clocks, and what lies between.

Go programs take no faked clock, so the second Prometheus's alerts are shifted on their way: that is all
that an Alertmanager sees of a clock that is wrong.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from deploy.local import binaries
from deploy.local.ports import HOST, Ports
from deploy.local.relocation import relocated
from deploy.local.supervisor import REPOSITORY
from tests.remediator.edge.support import GPU
from tests.waiting import poll

Answer = tuple[int, bytes]


class Between(ThreadingHTTPServer):
    """A small server: `answer` gets method, path, headers and body of each request."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, str, Any, bytes], Answer]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                status, raw = answer(self.command, self.path, self.headers, body)
                self.send_response(status)
                if self.command == "GET":
                    # Prometheus 3 scrapes no page that does not say what it is.
                    self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                # Alertmanager may have given up on a slow answer.
                with contextlib.suppress(OSError):
                    self.wfile.write(raw)

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__((HOST, 0), Handler)
        self.address = f"{HOST}:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever is away is away; the tests ask about what arrived."""


def call(address: str, method: str, path: str, body: Any = None, timeout: float = 10.0) -> Any:
    """The JSON that `address` answers; None where it answers nothing."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        raw = None if body is None else json.dumps(body)
        connection.request(method, path, raw, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        assert response.status < 300, (response.status, data)
        return json.loads(data) if data else None
    finally:
        connection.close()


class Receiver:
    """Stands before the remediator: passes deliveries on, late, or refuses them for good."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.refusing = False
        self.deliveries: list[dict[str, Any]] = []
        self._port = 0
        self.server = Between(self._answer)

    def passes_on_to(self, port: int) -> None:
        """Where the remediator listens."""
        self._port = port

    def _answer(self, method: str, path: str, headers: Any, body: bytes) -> Answer:
        if self.refusing or not self._port:
            return 401, b"not now"
        self.deliveries.append(json.loads(body))
        time.sleep(self.delay)
        connection = http.client.HTTPConnection(HOST, self._port, timeout=10)
        try:
            passed_on = {k: headers[k] for k in ("Content-Type", "Authorization")}
            connection.request(method, path, body, passed_on)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def senders(self, name: str, status: str = "firing") -> set[str]:
        """The Alertmanagers that delivered an alert of this name."""
        return {
            one["externalURL"]
            for one in list(self.deliveries)
            for alert in one["alerts"]
            if (alert["labels"]["alertname"], alert["status"]) == (name, status)
        }

    def starts(self, name: str) -> set[str]:
        """The starts that were told of an alert of this name."""
        return {
            alert["startsAt"]
            for one in list(self.deliveries)
            for alert in one["alerts"]
            if alert["labels"]["alertname"] == name
        }


def skewed(alertmanager: str, seconds: float) -> Between:
    """An Alertmanager's address for a Prometheus whose clock is `seconds` ahead."""

    def shift(text: str) -> str:
        moment = dt.datetime.fromisoformat(text) + dt.timedelta(seconds=seconds)
        return moment.isoformat()

    def answer(method: str, path: str, _: Any, body: bytes) -> Answer:
        alerts = json.loads(body)
        for one in alerts:
            one |= {key: shift(one[key]) for key in ("startsAt", "endsAt") if one.get(key)}
        call(alertmanager, method, path, alerts)
        return 200, b""

    return Between(answer)


def card_page(temperature: Callable[[], float]) -> Between:
    """What an exporter says of one card's temperature."""
    levels = {"warning": 83, "critical": 85, "shutdown": 90}

    def answer(*_: Any) -> Answer:
        labels = f'uuid="{GPU}",gpu="0"'
        lines = [f"gpu_temperature_celsius{{{labels}}} {temperature()}"]
        lines += [
            f'gpu_temperature_threshold_celsius{{{labels},level="{level}"}} {celsius}'
            for level, celsius in levels.items()
        ]
        return 200, ("\n".join(lines) + "\n").encode()

    return Between(answer)


@contextlib.contextmanager
def started(command: Sequence[str], log: Path, cwd: Path | None = None) -> Iterator[None]:
    """A process for as long as this lasts; it is killed, for it has nothing to keep."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def alertmanagers(folder: Path, receiver: str, token: Path) -> Iterator[tuple[str, str]]:
    """The addresses of a cluster of two with the shipped routes, hurried."""
    how = relocated(binaries.find().alertmanager)
    config = yaml.safe_load((REPOSITORY / "alertmanager" / "config.yml").read_text())
    for route in config["route"]["routes"]:
        route["group_interval"] = "1s"
    for one in config["receivers"]:
        for hook in one.get("webhook_configs", ()):
            hook["url"] = f"http://{receiver}/api/v1/alerts"
            hook.setdefault("http_config", {})["authorization"] = {"credentials_file": str(token)}
    # Pages are no matter of these tests.
    config["receivers"] = [
        one if one["name"] != "on-call" else {"name": "on-call"} for one in config["receivers"]
    ]
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config))
    first = Ports.free().exporter
    web, gossip = (first, first + 1), (first + 2, first + 3)
    with contextlib.ExitStack() as stack:
        for index in (0, 1):
            command = [
                str(how.binary),
                f"--config.file={path}",
                f"--storage.path={folder / f'am{index}'}",
                f"--web.listen-address={HOST}:{web[index]}",
                f"--web.external-url=http://am{index}.invalid",
                "--web.route-prefix=/",
                f"--cluster.listen-address={HOST}:{gossip[index]}",
                f"--cluster.advertise-address={HOST}:{gossip[index]}",
                f"--cluster.peer={HOST}:{gossip[1 - index]}",
                # A peer waits this long for the one before it; gossip settles in a second.
                *("--cluster.peer-timeout=300ms", "--cluster.gossip-interval=30ms"),
                *("--cluster.pushpull-interval=1s", "--cluster.reconnect-interval=500ms"),
            ]
            stack.enter_context(started(command, folder / f"am{index}.log", how.directory))
        addresses = (f"{HOST}:{web[0]}", f"{HOST}:{web[1]}")
        poll(lambda: all(map(_has_settled, addresses)), "the cluster is whole")
        yield addresses


def _has_settled(address: str) -> bool:
    try:
        cluster = call(address, "GET", "/api/v2/status")["cluster"]
    except OSError:
        return False
    return cluster["status"] == "ready" and len(cluster["peers"]) == 2


@contextlib.contextmanager
def prometheus(folder: Path, name: str, page: str, targets: Sequence[str]) -> Iterator[str]:
    """One replica of a pair with the shipped rules; its address."""
    config = {
        "global": {
            "scrape_interval": "1s",
            "evaluation_interval": "1s",
            "external_labels": {"replica": name},
        },
        "rule_files": [str(REPOSITORY / "prometheus" / "rules.yml")],
        "alerting": {
            # As Prometheus asks of a pair: with the label each would tell of alerts of its own.
            "alert_relabel_configs": [{"action": "labeldrop", "regex": "replica"}],
            "alertmanagers": [{"static_configs": [{"targets": list(targets)}]}],
        },
        "scrape_configs": [{"job_name": "gpu-exporter", "static_configs": [{"targets": [page]}]}],
    }
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(config))
    address = f"{HOST}:{Ports.free().exporter}"
    command = [
        str(binaries.find().prometheus),
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / name}",
        f"--web.listen-address={address}",
        "--rules.alert.resend-delay=2s",
        "--log.level=warn",
    ]
    with started(command, folder / f"{name}.log"):
        yield address


def is_under_way(address: str, alertmanagers: int) -> bool:
    """Whether a Prometheus scrapes, and knows all whom it is to tell; that takes seconds."""
    try:
        known = call(address, "GET", "/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
        (target,) = call(address, "GET", "/api/v1/targets")["data"]["activeTargets"]
    except (OSError, ValueError, AssertionError):
        return False
    return len(known) == alertmanagers and target["health"] == "up"
