"""The helper in a thread of the test or as a process, and cards that it can write to."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from remediator.clock import SystemClock
from remediator.errors import ControlError
from remediator.gpu_control import PowerState
from remediator.helper.client import Helper
from remediator.helper.command import _bind
from remediator.helper.desk import Desk
from remediator.helper.ledger import Ledger
from remediator.helper.policy import Policy
from remediator.helper.server import Server
from tests.waiting import poll

ROOT = Path(__file__).resolve().parents[3]
CARD = "GPU-11111111-0000-0000-0000-000000000000"
OTHER = "GPU-22222222-0000-0000-0000-000000000000"


class Cards:
    """Cards in memory; a write can be held up."""

    def __init__(self) -> None:
        self.limits = {CARD: 400_000, OTHER: 400_000}
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.at_once = self.most_at_once = 0
        self.listed = 0
        self.error: Exception | None = None

    def uuids(self) -> tuple[str, ...]:
        self.listed += 1
        return tuple(self.limits)

    def power(self, uuid: str) -> PowerState:
        return PowerState(self.limits[uuid], 400_000, 100_000, 400_000)

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.set()
        assert self.go_on.wait(20)
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        self.limits[uuid] = milliwatts


class Running:
    """A helper that serves in a thread."""

    def __init__(self, folder: Path, desk: Desk | str, uid: int | None) -> None:
        self.socket = folder / "helper.sock"
        self._listener = _bind(self.socket, None)
        self.server = Server(self._listener, desk, uid, SystemClock())
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def client(self, timeout: float = 10.0) -> Helper:
        return Helper(self.socket, timeout)

    def close(self) -> None:
        self.server.stop()
        self.thread.join(20)
        self._listener.close()

    @contextlib.contextmanager
    def raw(self) -> Iterator[socket.socket]:
        """A connection that has been greeted."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.settimeout(20)
            one.connect(str(self.socket))
            assert json.loads(until_end(one, b"\n")) == {"helper": 1}
            yield one

    def say(self, data: bytes, *, end: bool = False) -> dict[str, Any]:
        """What is answered to these bytes; with `end` nothing follows them."""
        with self.raw() as one:
            one.sendall(data)
            if end:
                one.shutdown(socket.SHUT_WR)
            return json.loads(until_end(one))


def until_end(one: socket.socket, end: bytes = b"") -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while not (end and found.endswith(end)):
            part = one.recv(65536)
            if not part:
                break
            found += part
    return found


def desk_of(
    folder: Path | None,
    cards: Cards,
    allow: tuple[str, ...] = ("power_limit",),
    only: Any = "all",
    **more: Any,
) -> Desk:
    policy = Policy(os.geteuid(), allow, only, **{"timeout": 10.0, **more})
    desk = Desk(policy, Ledger(folder, SystemClock()), SystemClock())
    desk._power = desk._nvml = cards  # type: ignore[assignment]
    return desk


def refused(what: Callable[[], object]) -> str:
    try:
        what()
    except ControlError as error:
        return f"{type(error).__name__}: {error}"
    return "it was done"


class Process:
    """A helper as it is really started."""

    def __init__(self, folder: Path, policy: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.socket = folder / "helper.sock"
        self.file = folder / "helper.yml"
        self.file.write_text(policy)
        self.file.chmod(0o644)
        self._env = os.environ | (env or {}) | {"PYTHONPATH": str(ROOT)}
        self.log = folder / "helper.log"
        self.start()

    def start(self, *module: str) -> None:
        argv = [sys.executable, "-P", "-m", *(module or ("remediator.helper",))]
        argv += [f"--socket={self.socket}", f"--config.file={self.file}"]
        argv += [f"--state-dir={self.folder}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, env=self._env, stderr=log, cwd=self.folder)
        poll(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(ControlError):
            return bool(self.client().about())
        return False

    def client(self, timeout: float = 10.0) -> Helper:
        return Helper(self.socket, timeout)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
