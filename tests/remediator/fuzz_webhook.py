"""Generated requests to the webhook: never a 500, never an action, no growth.

Each is a delivery, one that was refused once, or plain noise, with its JSON, its bytes or its headers
changed at random. All of it meets the whole application in this process, with every action allowed and a
healthy card of ours that many of the alerts name: what is decided about what got in is decided by the
real engine.

`python -m tests.remediator.fuzz_webhook --count 1000000` ends with 1 and the seed when a promise broke.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from remediator.config import ServiceConfig
from remediator.world import Service
from tests.remediator.edge.support import GPU, TOKENS, InProcess, alert, in_process, payload
from tests.remediator.edge.test_payload import ACCEPTED, REFUSED
from tests.remediator.engine.fakes import Card, FakeDriver, FakeGpus, FakeManager

ANSWERS = {202, 400, 401, 403, 404, 405, 413, 415}
NAMES = ("GPUTemperatureShutdown", "GPUTemperatureWarning", "LLMServiceDown", "GPUHang", "Watchdog")
# After so many a new remediator takes over, and what is due is decided each time after so many.
_A_LIFE = 50_000
_BETWEEN_DECISIONS = 500
# Beyond it a seed costs more than it tells.
_SMALL = 8192
_PATHS = (
    "/api/v1/alerts", "/webhook", "/api/v1/alerts/", "/api/v1/../../etc/passwd", "/api/v1/alerts\0",
    "//api/v1/alerts", "/api/v1/alerts;x", "/api/v1/alerts/\ud7ff", "/",
)  # fmt: skip
_METHODS = ("POST", "GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "BREW")
_KINDS = (
    "application/json", "application/json; charset=utf-16", "text/plain", "", "multipart/form-data",
    "application/x-www-form-urlencoded", "\xff", "a" * 500,
)  # fmt: skip
_NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**63, 2**31, 1e308, -0.0, "", "x" * 1025, "x" * 20_000, "\0", "\r\n",
    "\x1b[2J", "\u202e", "\ud800", "\udfff\ud800", "$(reboot)", "../../etc/passwd", "{{7*7}}", "%s%n",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "2026-11-21T10:00:00.123456789Z",
    "2026-11-21", "firing", "resolved", "pending", "4", "00", [], {}, [[]], [None], {"": ""},
    {"alertname": []}, GPU, "GPU-" + "0" * 60,
)  # fmt: skip


@dataclass
class Report:
    """What came of it; `problems` is empty when all is well."""

    answers: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    decided: int = 0
    seconds: float = 0.0
    rss_early: int = 0
    rss_late: int = 0

    @property
    def growth(self) -> float:
        """By which part the memory grew between the first tenth and the end."""
        return self.rss_late / self.rss_early - 1 if self.rss_early else 0.0


@dataclass(frozen=True)
class Request:
    """One request, as WSGI has it."""

    method: str
    path: str
    kind: str
    token: str | None
    body: bytes


class Generator:
    """Requests by seed."""

    def __init__(self) -> None:
        every = (*ACCEPTED.values(), *(raw for raw, _ in REFUSED.values()))
        self._seeds = [raw for raw in every if len(raw) <= _SMALL]
        self._documents = [payload(alert(name), alert(name, uuid=GPU, n="1")) for name in NAMES]
        self._documents.append(payload(alert("LLMServiceDown", llm_service="ollama")))

    def request(self, seed: int) -> Request:
        """The request of a seed."""
        rng = random.Random(seed)
        usual = rng.random() < 0.9
        token: str | None = TOKENS["webhook"]
        if not usual and rng.random() < 0.5:
            token = rng.choice([None, "", "wrong", TOKENS["read"], "\xff" * 9, "x" * 5000])
        return Request(
            method="POST" if usual else rng.choice(_METHODS),
            path=_PATHS[rng.randrange(2)] if usual else rng.choice(_PATHS),
            kind="application/json" if usual else rng.choice(_KINDS),
            token=token,
            body=self._body(rng),
        )

    def _body(self, rng: random.Random) -> bytes:
        how = rng.random()
        if how < 0.6:
            document = copy.deepcopy(rng.choice(self._documents))
            for _ in range(rng.randint(0, 4)):
                _change(rng, document)
            raw = json.dumps(document).encode()
        elif how < 0.9:
            raw = rng.choice(self._seeds)
        else:
            raw = rng.randbytes(rng.randint(0, 200))
        return _damaged(rng, raw) if rng.random() < 0.4 else raw


def _change(rng: random.Random, document: Any) -> None:
    """Change one value, name or count somewhere in a JSON document."""
    at = document
    while True:
        if isinstance(at, dict) and at:
            key: Any = rng.choice(list(at))
        elif isinstance(at, list) and at:
            key = rng.randrange(len(at))
        else:
            return
        if isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.8:
            at = at[key]
            continue
        how = rng.random()
        if how < 0.6:
            at[key] = copy.deepcopy(rng.choice(_NASTY))
        elif how < 0.7:
            del at[key]
        elif isinstance(at, dict):
            at[str(rng.choice(_NASTY))] = copy.deepcopy(at[key])
        else:
            at.extend([copy.deepcopy(at[key])] * rng.randint(1, 5))
        return


def _damaged(rng: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(len(data))
        how = rng.randrange(4)
        if how == 0:
            data[at] = rng.randrange(256)
        elif how == 1:
            del data[at : at + rng.randint(1, 20)]
        elif how == 2:
            data[at:at] = rng.choice(
                [b"{", b"[", b'"', b"\\u", b",", b"\x00", b"1e999", b"[" * 2000]
            )
        else:
            end = min(len(data), at + rng.randint(1, 40))
            data[at:at] = data[at:end]
    return bytes(data)


@contextmanager
def target() -> Iterator[InProcess]:
    """A remediator that may do everything, with a healthy card and a healthy service of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        in_process(
            Path(folder),
            mode="auto",
            allow=["service_restart", "service_stop", "gpu_reset"],
            gpus={"control": "none", "inventory": "auto"},
        ) as made,
    ):
        gpus = FakeGpus(made.clock, {GPU: Card(GPU)})  # type: ignore[arg-type]
        manager = FakeManager(made.clock)  # type: ignore[arg-type]
        config = ServiceConfig("ollama", "fake", "http://127.0.0.1:1", {}, gpus="all")
        service = Service(config, FakeDriver(manager), manager)
        object.__setattr__(made.remediator.world, "gpus", gpus)
        object.__setattr__(made.remediator.world, "services", {"ollama": service})
        # Whether a commit is durable is not in question here.
        made.store._db.execute("PRAGMA synchronous = OFF")
        yield made


def answer(made: InProcess, request: Request) -> tuple[int, bytes]:
    """Status and body, from the application itself; what it raises comes through."""
    environ = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path.encode("utf-8", "surrogatepass").decode("latin-1"),
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "9941",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": request.kind,
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if request.token is not None:
        environ["HTTP_AUTHORIZATION"] = f"Bearer {request.token}"
    told: list[str] = []
    chunks = made.app(environ, lambda status, headers, exc_info=None: told.append(status))
    try:
        body = b"".join(chunks)
    finally:
        if hasattr(chunks, "close"):
            chunks.close()
    return int(told[0].split()[0]), body


def fuzz(first: int, count: int) -> Report:
    """Send the requests of `count` seeds from `first` on."""
    report, generator, process = Report(), Generator(), psutil.Process()
    began = time.monotonic()
    for life in range(first, first + count, _A_LIFE):
        with target() as made:
            for seed in range(life, min(life + _A_LIFE, first + count)):
                _one(report, made, seed, generator.request(seed))
                if seed % _BETWEEN_DECISIONS == 0:
                    _decide(report, made, seed)
                if seed == first + count // 10:
                    report.rss_early = process.memory_info().rss
            _decide(report, made, seed)
            with made.store.reading() as tx:
                if tx.verify_audit().broken_at is not None:
                    report.problems.append(f"up to seed {seed}: the audit does not verify")
    report.rss_late = process.memory_info().rss
    report.seconds = time.monotonic() - began
    return report


def _one(report: Report, made: InProcess, seed: int, request: Request) -> None:
    try:
        status, body = answer(made, request)
    except Exception as error:  # noqa: BLE001 - that there is none is the promise
        report.problems.append(f"seed {seed}: {type(error).__name__}: {error}")
        return
    report.answers[status] += 1
    if status not in ANSWERS and request.method != "OPTIONS" and request.path != "/":
        report.problems.append(f"seed {seed}: answered {status}")
    elif status >= 400 and request.method != "HEAD" and not json.loads(body).get("error"):
        report.problems.append(f"seed {seed}: {status} does not say why")


def _decide(report: Report, made: InProcess, seed: int) -> None:
    """What the worker would do now; then the episodes are over, as after a day."""
    made.clock.seconds += 120
    with made.store.reading() as tx:
        due = [one.id for one in tx.episodes.open_all()]
    for episode in due:
        made.remediator.evaluator.evaluate(episode)
    report.decided += len(due)
    with made.store.transaction() as tx:
        for episode in due:
            tx.episodes.end(episode, made.clock.now(), "silent")
        runs, leases = tx.runs.latest(10), tx.leases.open_all()
    if runs or leases:
        report.problems.append(f"up to seed {seed}: something was done: {runs or leases}")
    counted = made.remediator.counters.get("alerts")
    if len(counted) > 2 * (len(made.remediator.playbooks.by_alert) + 2):
        report.problems.append(f"up to seed {seed}: {len(counted)} counters")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when a promise broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.remediator.fuzz_webhook")
    parser.add_argument("--count", type=int, default=1_000_000, help="requests (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the first one's seed (%(default)s)")
    options = parser.parse_args(arguments)
    report = fuzz(options.seed, options.count)
    for problem in report.problems[:20]:
        print(problem)
    answers = ", ".join(f"{n} x {status}" for status, n in sorted(report.answers.items()))
    grown = report.growth >= 0.05 and options.count >= 100_000
    print(
        f"{options.count} requests in {report.seconds:.0f} s: {answers}; {report.decided} decisions, "
        f"{len(report.problems)} problems; resident {report.rss_early >> 20} MiB, then "
        f"{report.rss_late >> 20} MiB ({report.growth:+.1%}{', GROWN' if grown else ''})"
    )
    return 1 if report.problems or grown else 0


if __name__ == "__main__":
    sys.exit(main())
