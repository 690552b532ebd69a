"""The exporters that are compared: how each is started, and scraped as Prometheus does it."""

from __future__ import annotations

import gzip
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.ports import HOST
from deploy.local.waiting import poll

_READY_SECONDS = 90.0
_STOP_SECONDS = 20.0
# What Prometheus 2.42 sends.
_HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;"
    "q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}


class ExporterError(Exception):
    """An exporter did not do what it was started for; the text holds its last lines."""


@dataclass(frozen=True)
class Exporter:
    """One program that serves metrics.

    Attributes:
        name: What it is called in the table.
        command: Its argv for a port and an empty folder of its own.
        process_series: How the line of a GPU process on its page begins, one line a process.
    """

    name: str
    command: Callable[[int, Path], list[str]]
    process_series: str


OURS = Exporter(
    "gpu-exporter",
    lambda port, folder: [
        *(sys.executable, "-m", "exporter", "serve", "--backend=nvml", "--log.level=warning"),
        *(f"--web.listen-address={HOST}:{port}", f"--storage.path={folder}"),
    ],
    "gpu_process_memory_used_bytes{",
)
PEER = Exporter(
    "nvitop-exporter",
    lambda port, _folder: [
        *(sys.executable, "-m", "nvitop_exporter"),
        *("--bind-address", HOST, "--port", str(port)),
    ],
    "process_gpu_memory_MiB{",
)


@dataclass(frozen=True)
class Scrape:
    """One answer to a scrape: how long it took, and what came over the wire."""

    seconds: float
    wire: bytes
    encoded: bool

    @property
    def page(self) -> str:
        """The metrics as text."""
        return (gzip.decompress(self.wire) if self.encoded else self.wire).decode()


class Running:
    """An exporter that runs; a context manager that stops it."""

    def __init__(self, exporter: Exporter, environment: Mapping[str, str], folder: Path) -> None:
        self._exporter = exporter
        self._log = folder / "log"
        port = _free_port()
        # It is kept open where the exporter keeps it open, and opened anew where not.
        self._connection = http.client.HTTPConnection(HOST, port, timeout=30)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                exporter.command(port, folder),
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """The process at the root of its tree."""
        return self._process.pid

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return self._connection.port

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def await_processes(self, count: int) -> None:
        """Waits until the page shows so many GPU processes.

        Raises:
            ExporterError: It ended, or did not show them in time.
        """
        if not poll(lambda: self._shown() == count, timeout=_READY_SECONDS, interval=0.5):
            shown = self._shown()
            said = "no page" if shown is None else f"{shown} GPU processes"
            raise self._error(f"shows {said} instead of {count} GPU processes")

    def scrape(self) -> Scrape:
        """Asks for the page once, and reads all of the answer.

        Raises:
            ExporterError: There is no answer, or not a good one.
        """
        started = time.perf_counter()
        try:
            self._connection.request("GET", "/metrics", headers=_HEADERS)
            answer = self._connection.getresponse()
            wire = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise self._error(f"does not answer ({error})") from error
        seconds = time.perf_counter() - started
        if answer.status != http.client.OK:
            raise self._error(f"answers {answer.status}")
        return Scrape(seconds, wire, answer.getheader("Content-Encoding") == "gzip")

    def _shown(self) -> int | None:
        if self._process.poll() is not None:
            raise self._error(f"ended with status {self._process.returncode}")
        try:
            page = self.scrape().page
        except ExporterError:
            return None
        return page.count(f"\n{self._exporter.process_series}")

    def _error(self, what: str) -> ExporterError:
        last = self._log.read_text(errors="replace").splitlines()[-10:]
        said = "".join(f"\n    {line}" for line in last) or "\n    (nothing)"
        return ExporterError(f"{self._exporter.name} {what}. It said:{said}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
