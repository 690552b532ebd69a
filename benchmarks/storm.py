"""A storm of alerts on a real remediator, one request each, while its playbooks run.

Ten thousand different alerts a minute, none of which was there before: what the webhook takes, what the
process grows to, whether one is lost, and whether a card that gets hot meanwhile is capped later than in
the calm. Then as many as it takes, and more than it can take.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from benchmarks.command import run
from benchmarks.figures import percentile, table
from tests.remediator.edge.support import (
    GPU,
    TOKENS,
    ExporterStandIn,
    RealServer,
    alert,
    body,
    command,
)
from tests.waiting import poll

_CONNECTIONS = 16
_LATENCY_GOAL = 0.250
_MEMORY_GOAL = 256 * 2**20
_REFUSAL_GOAL = 1.0
_HOT, _COOL = 84.0, 60.0
_HEADERS = {
    "Content-Type": "application/json",
    "Authorization": f"Bearer {TOKENS['webhook']}",
}


@dataclass
class Answers:
    """What the webhook answered: seconds by status, from when a request was due."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    alerts: int = 0
    errors: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: int, seconds: float, alerts: int) -> None:
        """Count one."""
        with self.lock:
            self.seconds.setdefault(status, []).append(seconds)
            if status == 202:
                self.alerts += alerts

    def statuses(self) -> Counter[int]:
        """How many answers of each kind."""
        return Counter({status: len(found) for status, found in self.seconds.items()})

    def p99(self, status: int = 202) -> float:
        """Seconds that 99 % of the answers of a kind did not exceed; 0 without any."""
        found = self.seconds.get(status)
        return percentile(found, 99) if found else 0.0


def deliveries(size: int, since: float) -> Iterator[bytes]:
    """Deliveries of `size` alerts that were never there before: of other hosts, of names nobody knows."""
    started = datetime.fromtimestamp(since, UTC).isoformat()
    for number in itertools.count():
        found = []
        for index in range(number * size, (number + 1) * size):
            name = ("GPUTemperatureWarning", "LLMServiceDown", "SomethingElse")[index % 3]
            labels = {"instance": f"host-{index}:9940", "remediate": "true", "severity": "warning"}
            labels |= {"uuid": f"GPU-{index:032x}"} if index % 3 == 0 else {"llm_service": "theirs"}
            found.append(alert(name, starts=started, key=f"{index:016x}", **labels))
        yield body(*found)


class Sender:
    """Keeps connections open, as Alertmanager does, and sends on each what is due."""

    def __init__(self, port: int, connections: int = _CONNECTIONS) -> None:
        self.answers = Answers()
        self._port = port
        self._due: queue.Queue[tuple[float | None, bytes, int] | None] = queue.Queue(
            maxsize=connections
        )
        self._threads = [threading.Thread(target=self._send) for _ in range(connections)]
        for thread in self._threads:
            thread.start()

    def give(self, raw: bytes, alerts: int, due: float | None = None) -> None:
        """A delivery that was due at a time, or is as soon as a connection is free."""
        self._due.put((due, raw, alerts))

    def close(self) -> Answers:
        """Wait for every answer."""
        for _ in self._threads:
            self._due.put(None)
        for thread in self._threads:
            thread.join()
        return self.answers

    def _send(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while (job := self._due.get()) is not None:
            due, raw, alerts = job
            since = time.monotonic() if due is None else due
            try:
                connection.request("POST", "/api/v1/alerts", raw, _HEADERS)
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                with self.answers.lock:
                    self.answers.errors += 1
                connection.close()
                continue
            self.answers.add(response.status, time.monotonic() - since, alerts)
        connection.close()


class Incidents(threading.Thread):
    """One card gets hot, is capped, cools and is given back, again and again."""

    def __init__(self, server: RealServer, card: ExporterStandIn) -> None:
        super().__init__()
        self.to_cap: list[float] = []
        self.to_restore: list[float] = []
        self.failed = ""
        self._server = server
        self._card = card
        self._ended = threading.Event()

    def run(self) -> None:
        """Play incidents until `end`."""
        try:
            while not self._ended.is_set():
                self._one()
        except (AssertionError, OSError) as error:
            self.failed = str(error) or type(error).__name__

    def _one(self) -> None:
        card, started = self._card, datetime.now(UTC).isoformat()
        card.gpu["temperature"] = _HOT
        hot = alert(uuid=GPU, starts=started, key="f" * 16)
        began = time.monotonic()
        assert self._server.post(body(hot)).status == 202
        poll(lambda: card.limit_watts < 400, "the card is capped", 60)
        self.to_cap.append(time.monotonic() - began)
        card.gpu["temperature"] = _COOL
        began = time.monotonic()
        poll(lambda: card.limit_watts == 400, "the cap is undone", 60)
        self.to_restore.append(time.monotonic() - began)
        ended = datetime.now(UTC).isoformat()
        over = alert(status="resolved", uuid=GPU, starts=started, ends=ended, key="f" * 16)
        assert self._server.post(body(over)).status == 202
        self._ended.wait(1.0)

    def end(self) -> Incidents:
        """Let the one under way end."""
        self._ended.set()
        self.join()
        return self


class Memory(threading.Thread):
    """The largest resident memory of a process."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.largest = 0
        self._process = psutil.Process(pid)
        self._ended = threading.Event()

    def run(self) -> None:
        """Look twice a second until `end`."""
        while not self._ended.wait(0.5):
            self.largest = max(self.largest, self._process.memory_info().rss)

    def end(self) -> int:
        """Bytes."""
        self._ended.set()
        self.join()
        return self.largest


@dataclass(frozen=True)
class Figure:
    """One measured thing beside its goal."""

    name: str
    value: str
    goal: str
    met: bool = True


def storm(server: RealServer, card: ExporterStandIn, rate: float, seconds: float) -> list[Figure]:
    """Alerts at a rate for a time; `rate` in alerts a second."""
    calm = Incidents(server, card)
    calm.start()
    time.sleep(min(20.0, seconds))
    calm.end()
    memory, incidents, sender = (
        Memory(server.process.pid),
        Incidents(server, card),
        Sender(server.port),
    )
    for thread in (memory, incidents):
        thread.start()
    source, began = deliveries(1, time.time()), time.monotonic()
    count = round(rate * seconds)
    for number in range(count):
        due = began + number / rate
        time.sleep(max(0.0, due - time.monotonic()))
        sender.give(next(source), 1, due)
    answers = sender.close()
    took = time.monotonic() - began
    incidents.end()
    largest = memory.end()
    lost = answers.alerts - _kept(server)
    late = max(incidents.to_cap, default=99.0) - max(calm.to_cap, default=0.0)
    accepted = answers.statuses()[202]
    return [
        Figure(
            "alerts answered 202",
            f"{accepted} of {count} in {took:.0f} s",
            "all",
            accepted == count,
        ),
        Figure(
            "p99 of the webhook",
            f"{answers.p99() * 1000:.0f} ms",
            "250 ms",
            answers.p99() <= _LATENCY_GOAL,
        ),
        Figure(
            "resident memory at most",
            f"{largest / 2**20:.0f} MiB",
            "256 MiB",
            largest <= _MEMORY_GOAL,
        ),
        Figure("answered 202 and lost", str(lost), "0", lost == 0),
        Figure("seconds to a cap, calm", _seconds(calm.to_cap), "-", not calm.failed),
        Figure(
            "seconds to a cap, storm",
            _seconds(incidents.to_cap),
            "1 s later at most",
            late <= 1 and not incidents.failed,
        ),
        Figure("seconds to its undo, calm", _seconds(calm.to_restore), "-"),
        Figure("seconds to its undo, storm", _seconds(incidents.to_restore), "-"),
    ]


def most(server: RealServer, size: int, seconds: float) -> list[Figure]:
    """As many as it takes: every connection sends the next one as soon as it has its answer."""
    before, sender = _kept(server), Sender(server.port, 8)
    source, began = deliveries(size, time.time()), time.monotonic()
    # Fingerprints that no other part of the benchmark uses.
    shift = int(began * 1e6) % 2**40 * size
    source = itertools.islice(_shifted(size, shift), None)
    while time.monotonic() - began < seconds:
        sender.give(next(source), size)
    answers = sender.close()
    took = time.monotonic() - began
    kept = _kept(server) - before
    return [
        Figure(
            f"held durably, {size} a request",
            f"{answers.alerts / took:.0f} alerts/s",
            "-",
            kept == answers.alerts,
        )
    ]


def _shifted(size: int, shift: int) -> Iterator[bytes]:
    started = datetime.now(UTC).isoformat()
    for number in itertools.count():
        first = shift + number * size
        yield body(
            *(
                alert("SomethingElse", starts=started, key=f"{index:016x}", instance=f"h{index}")
                for index in range(first, first + size)
            )
        )


def overload(server: RealServer, seconds: float) -> list[Figure]:
    """Many more connections than it has threads, each as fast as it can."""
    sender, began = Sender(server.port, 200), time.monotonic()
    source = _shifted(20, int(began * 1e6) % 2**40 * 20 + 2**61)
    before = _kept(server)
    while time.monotonic() - began < seconds:
        sender.give(next(source), 20)
    answers = sender.close()
    statuses = answers.statuses()
    lost = answers.alerts - (_kept(server) - before)
    said = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    return [
        Figure("overload: answers", said, "202 and 503 only", set(statuses) <= {202, 503}),
        Figure(
            "overload: p99 of a 503",
            f"{answers.p99(503):.2f} s",
            "1 s",
            answers.p99(503) <= _REFUSAL_GOAL,
        ),
        Figure("overload: answered 202 and lost", str(lost), "0", lost == 0),
        Figure("overload: connections that broke", str(answers.errors), "0", answers.errors == 0),
    ]


def _kept(server: RealServer) -> int:
    return int(server.rows("SELECT count(*) FROM episodes WHERE fingerprint != ?", "f" * 16)[0][0])


def _seconds(found: Sequence[float]) -> str:
    if not found:
        return "none"
    return f"{percentile(found, 50):.2f}, at most {max(found):.2f} (n={len(found)})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 when a goal was missed."""
    options = _parser().parse_args(arguments)
    return run(partial(_met, options))


def _met(options: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        card = ExporterStandIn()
        server = RealServer(
            Path(folder),
            mode="auto",
            exporter={"url": card.url, "timeout": "3s"},
            gpus={"control": "simulated", "simulator_url": card.url, "inventory": "auto"},
            timing={"hold_down": "1s", "settling": "0s"},
            limits={
                "flap_episodes_per_hour": 100000,
                "attempts_per_hour": 100000,
                "attempts_per_day": 100000,
            },
        )
        try:
            parts: list[Callable[[], list[Figure]]] = [
                lambda: storm(server, card, options.rate / 60, options.seconds),
                lambda: most(server, 1, options.most_seconds),
                lambda: most(server, 100, options.most_seconds),
                lambda: overload(server, options.most_seconds),
            ]
            figures = [figure for part in parts for figure in _told(part())]
            server.stop()
            audit = command("audit", "verify", f"--config.file={server.config}")
            figures += _told(
                [
                    Figure(
                        "the audit verifies",
                        str(audit.returncode == 0),
                        "True",
                        audit.returncode == 0,
                    )
                ]
            )
        finally:
            server.stop()
            card.close()
    return all(figure.met for figure in figures)


def _told(figures: list[Figure]) -> list[Figure]:
    rows = [(f.name, f.value, f.goal, "met" if f.met else "MISSED") for f in figures]
    print(table(("figure", "measured", "goal", ""), rows), flush=True)
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the storm (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=10_000.0, help="alerts a minute (%(default)s)"
    )
    parser.add_argument(
        "--most-seconds", type=float, default=20.0, help="of each other part (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
