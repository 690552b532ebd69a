"""Names of containers, asked of an engine that a test plays; a real Podman by `make real-drivers`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter import container_engine, container_names
from exporter.clock import SystemClock
from exporter.container_engine import EngineError, name_of
from exporter.container_names import ContainerNames, short
from exporter.container_socket import warn_if_unreachable
from tests.exporter.fakes import FakeClock
from tests.waiting import poll

ID = "3f1d6cba" * 8
BUSYBOX = Path("/bin/busybox")


class Engine:
    """Answers each connection with the same bytes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "engine.sock"
        self.answer = b""
        self.asked: list[str] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(self.path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def says(self, body: object, status: str = "200 OK") -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answer = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (
            status.encode(),
            len(text),
            text,
        )

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(4096).decode().partition("\r\n")[0])
                connection.sendall(self.answer)


@pytest.fixture
def engine() -> Iterator[Engine]:
    # The path of a socket is short, and a test's own folder need not be.
    with tempfile.TemporaryDirectory() as folder:
        one = Engine(Path(folder))
        yield one
        one.close()


def test_the_name_is_asked_of_the_engine(engine) -> None:
    engine.says({"Id": ID, "Name": "/vllm"})
    assert name_of(ID, engine.path) == "vllm"
    assert engine.asked == [f"GET /containers/{ID}/json HTTP/1.1"]


@pytest.mark.parametrize("name", ["", "/", "a b", "a\nb", "-rf", "/../x", "x" * 129, '"', "ü"])
def test_a_name_that_is_none_is_not_taken(engine, name) -> None:
    engine.says({"Name": name})
    assert name_of(ID, engine.path) == ""


def test_a_container_of_another_engine_has_no_name(engine) -> None:
    engine.says({"message": "No such container"}, "404 Not Found")
    assert name_of(ID, engine.path) == ""


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n" + b"\xff" * 6,
        b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + b"[" * 50000,
    ],
)
def test_an_answer_that_is_none_is_an_error(engine, answer) -> None:
    engine.answer = answer
    with pytest.raises(EngineError):
        name_of(ID, engine.path)


def test_no_engine_is_an_error(tmp_path) -> None:
    with pytest.raises(EngineError, match="no answer"):
        name_of(ID, tmp_path / "nothing.sock")


def test_at_the_start_one_line_says_that_nobody_answers(tmp_path, caplog) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nothing.sock", tmp_path / "file", tmp_path / ("x" * 200)):
        caplog.clear()
        warn_if_unreachable(path)
        (line,) = caplog.records
        assert line.levelname == "WARNING"
        assert f"--container.socket: {path}" in line.getMessage()
    caplog.clear()
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listens:
        listens.bind(f"{folder}/s")
        listens.listen()
        warn_if_unreachable(Path(folder, "s"))
    assert caplog.records == []


def test_an_engine_that_says_nothing_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(container_engine, "_TIMEOUT_SECONDS", 0.05)
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{folder}/s")
        silent.listen()
        with pytest.raises(EngineError, match="no answer"):
            name_of(ID, Path(folder, "s"))


class Asked:
    """What stands for the engine: its answers, and how often it was asked."""

    def __init__(self) -> None:
        self.names = {ID: "vllm"}
        self.error: Exception | None = None
        self.count = 0
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, container_id: str, path: Path) -> str:
        self.count += 1
        self.hold.wait(30)
        if self.error is not None:
            raise self.error
        return self.names.get(container_id, "")


def test_until_a_name_is_known_the_id_stands_for_it_and_nobody_waits() -> None:
    ask, clock, said = Asked(), FakeClock(), []
    names = ContainerNames(Path("/engine"), clock, said.append, ask)
    ask.hold.clear()
    assert [names.of(ID) for _ in range(5)] == [short(ID)] * 5
    ask.hold.set()
    poll(lambda: names.of(ID) == "vllm")
    assert (ask.count, said) == (1, [])


def test_a_name_is_asked_for_again_after_a_while_and_kept_meanwhile() -> None:
    ask, clock = Asked(), FakeClock()
    names = ContainerNames(Path("/engine"), clock, print, ask)
    poll(lambda: names.of(ID) == "vllm")
    ask.names[ID] = "renamed"
    clock.now += 599
    assert (names.of(ID), ask.count) == ("vllm", 1)
    clock.now += 2
    poll(lambda: names.of(ID) == "renamed")
    assert ask.count == 2


def test_a_container_without_a_name_is_not_asked_for_all_the_time() -> None:
    ask, clock = Asked(), FakeClock()
    names = ContainerNames(Path("/engine"), clock, print, ask)
    other = "0" * 64
    names.of(other)
    poll(lambda: ask.count == 1 and other in names._known)
    assert [names.of(other) for _ in range(3)] == [short(other)] * 3
    assert ask.count == 1


def test_an_engine_that_fails_is_left_alone_for_a_minute_and_said_once() -> None:
    ask, clock, said = Asked(), FakeClock(), []
    names = ContainerNames(Path("/engine"), clock, said.append, ask)
    ask.error = EngineError("/engine gives no answer: refused")
    names.of(ID)
    poll(lambda: said)
    for _ in range(3):
        names.of(ID)
    assert ask.count == 1
    clock.now += 61
    names.of(ID)
    poll(lambda: ask.count == 2 and not names._waiting)
    assert said == ["names of containers: /engine gives no answer: refused"]
    ask.error = None
    clock.now += 61
    names.of(ID)
    poll(lambda: names.of(ID) == "vllm" and len(said) > 1)
    assert said[1:] == ["names of containers: /engine answers again"]


def test_many_containers_do_not_fill_memory(monkeypatch) -> None:
    monkeypatch.setattr(container_names, "_LIMIT", 4)
    ask, clock = Asked(), FakeClock()
    names = ContainerNames(Path("/engine"), clock, print, ask)
    for number in range(20):
        names.of(f"{number:064x}")
        poll(lambda: not names._waiting)
    assert (ask.count, len(names._known)) == (20, 4)
    ask.hold.clear()
    for number in range(20, 40):
        names.of(f"{number:064x}")
    assert len(names._waiting) <= 5
    ask.hold.set()


@pytest.mark.skipif(
    not os.environ.get("REAL_DRIVERS")
    or not (shutil.which("podman") and shutil.which("runc") and BUSYBOX.exists())
    or os.geteuid() != 0,
    reason="real Podman NOT tested: needs `make real-drivers`, root, podman, runc, busybox-static",
)
def test_a_process_in_a_real_podman_container_gets_its_name() -> None:
    from exporter.attribution import Attributor
    from exporter.readings import ProcessUse
    from tests.remediator.drivers.test_docker_podman_real import Podman

    with tempfile.TemporaryDirectory(prefix="pm") as folder:
        podman = Podman(Path(folder))
        podman.make_image()
        path = Path(folder, "api.sock")
        service = subprocess.Popen(
            [*podman.argv, "system", "service", "--time=0", f"unix://{path}"], env=podman.env
        )
        try:
            poll(path.exists)
            podman("run", "-d", "--name=llm-server", "--network=none", "llm:1", "sleep", "600")
            shown = subprocess.run(
                [*podman.argv, "inspect", "--format={{.State.Pid}} {{.Id}}", "llm-server"],
                env=podman.env,
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
            )
            pid, container = shown.stdout.split()
            clock = SystemClock()
            names = ContainerNames(path, clock, print)
            one = Attributor(Path("/proc"), clock, names, patience=30)

            def found() -> ProcessUse:
                return one.name([ProcessUse(int(pid))])[0]

            poll(lambda: found().container_name == "llm-server")
            assert found().container_id == container
            podman("rm", "--force", "--time=0", "llm-server")
            assert found() == ProcessUse(int(pid))
        finally:
            service.terminate()
            service.wait(30)
