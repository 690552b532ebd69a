"""Real child processes for tests; each test ends what it started, by pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import poll

PYTHON = sys.executable
_SUPERVISORD = """
[supervisord]
nodaemon=true
logfile=%(here)s/supervisord.log
pidfile=%(here)s/supervisord.pid
childlogdir=%(here)s
[unix_http_server]
file=%(here)s/s.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def end(pid: int) -> None:
    """Kill one process that a test started, and wait until it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.send_signal(signal.SIGCONT)
        process.kill()
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(5)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """What is started meanwhile ignores SIGTERM from its first moment on, however slowly it starts."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def child(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, **more: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that does not outlive the block."""
    process = subprocess.Popen(
        list(argv),
        env=dict(os.environ) | dict(env or {}),
        stdout=subprocess.DEVNULL,
        stderr=more.pop("stderr", subprocess.DEVNULL),
        **more,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def call(url: str, body: Any = None, method: str | None = None) -> Any:
    """One JSON request to a loopback server."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        assert process.poll() is None, f"it ended with status {process.returncode}"
        return False

    poll(listens, f"something listens on {port}")


@contextlib.contextmanager
def supervisord(programs: str) -> Iterator[str]:
    """The real supervisord with these `[program:x]` sections; yields its URL once it answers."""
    # Not pytest's folder: the path of a Unix socket has to be short.
    with tempfile.TemporaryDirectory() as folder:
        config, address = Path(folder) / "supervisord.conf", f"{folder}/s.sock"
        config.write_text(_SUPERVISORD + programs)
        argv = [PYTHON, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(config)]
        daemon = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def listens() -> bool:
            assert daemon.poll() is None, f"it ended with status {daemon.returncode}"
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one:
                one.connect(address)
                return True
            return False

        try:
            poll(listens)
            yield f"unix://{address}"
        finally:
            children = psutil.Process(daemon.pid).children(recursive=True)
            end(daemon.pid)
            daemon.wait(30)
            for process in children:
                end(process.pid)


@contextlib.contextmanager
def simulated_gpus(*arguments: str) -> Iterator[str]:
    """`python -m simulator gpus`; yields its URL."""
    port = free_port()
    argv = [PYTHON, "-m", "simulator", "gpus", "--listen", f"127.0.0.1:{port}", *arguments]
    with child(argv) as process:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def simulated_ollama(gpu_server: str, gpu: str, *arguments: str) -> Iterator[str]:
    """`python -m simulator ollama` on one card; yields its URL."""
    port = free_port()
    argv = [PYTHON, "-m", "simulator", "ollama", "--listen", f"127.0.0.1:{port}"]
    argv += ["--gpu-server", gpu_server, "--gpu", gpu, *arguments]
    with child(argv) as process:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def exporter(simulator: str, settings: Path, *more: str) -> Iterator[str]:
    """`gpu-exporter serve` over simulated cards, with a configuration file and more options; its address."""
    port = free_port()
    argv = [PYTHON, "-m", "exporter", "serve", "--backend=simulated", "--sample-interval=0.2"]
    argv += [f"--simulator.url={simulator}", f"--web.listen-address=127.0.0.1:{port}"]
    argv += [f"--config.file={settings}", *more]
    with child(argv, env={"PYTHONPATH": str(Path(__file__).parents[3])}) as process:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
