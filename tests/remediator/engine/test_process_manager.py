"""The `process` manager over real processes."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from remediator import managers, runner
from remediator.clock import SystemClock
from remediator.errors import ConfigError, ManagerError, OutcomeUnknown, StorageError
from remediator.managers import ProcessIdentity
from tests.remediator.engine.processes import PYTHON, deaf, end

SLEEP = "import time; time.sleep(600)"
DEAF = (
    "import signal, sys, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
)


class Memory:
    """What the store would keep of a service's process."""

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {}
        self.fails: Exception | None = None

    def load(self) -> dict[str, Any]:
        return self.identity

    def save(self, identity: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.identity = dict(identity)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Pids to end after the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        end(pid)
    for kept in list(runner._children):
        if kept.pid in pids:
            kept.wait(30)
    runner.reap()


@pytest.fixture
def command() -> list[str]:
    """An argv that nothing else on this machine has."""
    return [PYTHON, "-c", SLEEP, uuid.uuid4().hex]


def manager(memory: Memory, command: list[str], **options: Any) -> managers.ProcessManager:
    context = managers.Context(SystemClock(), memory.load, memory.save)
    raw = {"type": "process", "command": command, "stop_timeout": "30s", **options}
    return managers.create(raw, "ollama", context)


def test_starts_once_knows_it_again_and_stops_it(
    memory: Memory, command: list[str], started: list[int]
) -> None:
    one = manager(memory, command)
    assert one.status().state == "exited"
    identity = one.start(30)
    started.append(identity.pid)
    assert one.start(30) == identity, "a second start finds the first"
    assert one.status().identity == identity
    # a new remediator over the same memory
    assert manager(memory, command).status().identity == identity
    one.stop(identity, 30)
    assert one.status().state == "exited"
    one.stop(identity, 30)


def test_adopts_a_process_that_somebody_else_started(
    memory: Memory, command: list[str], started: list[int]
) -> None:
    foreign = subprocess.Popen(command)
    started.append(foreign.pid)
    identity = manager(memory, command).start(30)
    assert identity.pid == foreign.pid
    assert memory.identity["pid"] == foreign.pid
    foreign.kill()
    foreign.wait(30)


def test_a_start_that_could_not_be_remembered_is_found_again(
    memory: Memory, command: list[str], started: list[int]
) -> None:
    memory.fails = ManagerError("the store could not commit")
    with pytest.raises(ManagerError):
        manager(memory, command).start(30)
    memory.fails = None
    identity = manager(memory, command).start(30)
    started.append(identity.pid)
    assert sum(p.info["cmdline"] == command for p in psutil.process_iter(["cmdline"])) == 1


def test_two_processes_with_the_same_command_are_a_question_for_a_person(
    memory: Memory, command: list[str], started: list[int]
) -> None:
    both = [subprocess.Popen(command) for _ in range(2)]
    started.extend(process.pid for process in both)
    one = manager(memory, command)
    for ask in (one.status, lambda: one.start(1), lambda: one.stop(None, 1)):
        with pytest.raises(ManagerError, match="2 processes have the configured command"):
            ask()
    for process in both:
        assert process.poll() is None
        process.kill()
        process.wait(30)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A service that is a `#!` script, like those that pip installs."""
    path = tmp_path / "vllm"
    path.write_text(f"#!{PYTHON}\n{SLEEP}\n")
    path.chmod(0o755)
    return path


def processes_of(script: Path) -> list[int]:
    every = psutil.process_iter(["cmdline"])
    return [p.pid for p in every if str(script) in (p.info["cmdline"] or [])]


@pytest.mark.parametrize("first_line", ["#!{python}", "#!/usr/bin/env -S {python} -u", "#!/bin/sh"])
def test_a_script_is_known_behind_its_interpreter(
    memory: Memory,
    script: Path,
    started: list[int],
    first_line: str,
    eventually: Callable[..., object],
) -> None:
    body = f"{SLEEP}\n"
    if first_line == "#!/bin/sh":  # as pip writes it where the path of python is too long
        body = f"'''exec' {PYTHON} \"$0\" \"$@\"\n' '''\n{SLEEP}\n"
    script.write_text(first_line.format(python=PYTHON) + "\n" + body)
    one = manager(memory, [str(script), "serve"])
    foreign = subprocess.Popen([str(script), "serve"])
    started.append(foreign.pid)
    eventually(lambda: "python" in " ".join(psutil.Process(foreign.pid).cmdline()[:1]))
    identity = one.status().identity
    assert identity is not None
    assert identity.pid == foreign.pid
    assert one.start(30).pid == foreign.pid
    assert processes_of(script) == [foreign.pid], "no second one is put beside it"
    one.stop(identity, 30)
    assert foreign.wait(30) < 0
    assert one.status().state == "exited"


def test_who_only_looks_at_a_script_is_not_the_service(
    memory: Memory, script: Path, started: list[int], eventually: Callable[..., object]
) -> None:
    argv = ["/usr/bin/tail", "-f", str(script)]
    reader = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    started.append(reader.pid)
    eventually(lambda: psutil.Process(reader.pid).cmdline() == argv)
    one = manager(memory, [str(script)])
    assert one.status().state == "exited"
    one.stop(None, 1)
    assert reader.poll() is None
    reader.kill()
    reader.wait(30)


def test_two_processes_of_a_script_are_a_question_for_a_person(
    memory: Memory, script: Path, started: list[int], eventually: Callable[..., object]
) -> None:
    both = [subprocess.Popen([str(script)]) for _ in range(2)]
    started.extend(process.pid for process in both)
    eventually(lambda: len(processes_of(script)) == 2)
    one = manager(memory, [str(script)])
    with pytest.raises(ManagerError, match="2 processes have the configured command"):
        one.start(1)
    for process in both:
        process.kill()
        process.wait(30)


def test_the_program_below_a_wrapper_is_the_service(
    memory: Memory, command: list[str], started: list[int], eventually: Callable[..., object]
) -> None:
    """A wrapper that stays has the same argv behind its own."""
    wrapper = subprocess.Popen(["/usr/bin/timeout", "600", *command])
    started.append(wrapper.pid)
    below = eventually(
        lambda: [p for p in psutil.Process(wrapper.pid).children() if p.cmdline() == command]
    )
    started.append(below[0].pid)
    assert manager(memory, command).status().identity.pid == below[0].pid
    end(below[0].pid)
    wrapper.wait(30)


def test_what_could_not_be_remembered_is_not_started_a_second_time(
    memory: Memory, started: list[int], tmp_path: Path, eventually: Callable[..., object]
) -> None:
    """Also where it cannot be found again, because it runs under another name by now."""
    ready = tmp_path / "ready"
    code = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write(f'{os.getpid()} '); "
        "os.execv(sys.executable, ['renamed', '-c', 'import time; time.sleep(600)'])"
    )
    one = manager(memory, [PYTHON, "-c", code, str(ready)])
    memory.fails = StorageError("the store could not commit")
    with pytest.raises(StorageError):
        one.start(30)
    pid = int(str(eventually(lambda: ready.exists() and ready.read_text())))
    started.append(pid)
    eventually(lambda: psutil.Process(pid).cmdline()[:1] == ["renamed"])
    for _ in range(3):
        with pytest.raises(StorageError):
            one.start(30)
    memory.fails = None
    assert one.start(30).pid == pid
    assert memory.identity["pid"] == pid
    assert ready.read_text().split() == [str(pid)], "it was started once"


def test_a_pid_that_was_given_to_another_process_is_not_ours(
    memory: Memory, command: list[str], started: list[int]
) -> None:
    other = subprocess.Popen([PYTHON, "-c", SLEEP])
    started.append(other.pid)
    born = psutil.Process(other.pid).create_time()
    memory.identity = ProcessIdentity(other.pid, born - 3600).to_json()
    one = manager(memory, command)
    assert one.status().state == "exited"
    one.stop(ProcessIdentity(other.pid, born - 3600), 1)
    assert other.poll() is None
    other.kill()
    other.wait(30)


def test_a_stop_meant_for_the_old_process_spares_the_new_one(
    memory: Memory, command: list[str], started: list[int]
) -> None:
    one = manager(memory, command)
    new = one.start(30)
    started.append(new.pid)
    one.stop(ProcessIdentity(new.pid + 1, new.started_at - 100), 1)
    assert one.status().identity == new


def test_a_process_that_ignores_sigterm_is_left_alone_and_reported(
    memory: Memory, started: list[int], tmp_path: Path, eventually: Callable[..., object]
) -> None:
    ready = tmp_path / "ready"
    one = manager(memory, [PYTHON, "-c", DEAF, str(ready)])
    identity = one.start(30)
    started.append(identity.pid)
    eventually(ready.exists)
    with pytest.raises(ManagerError, match=r"did not end on SIGTERM; it is left alone"):
        one.stop(identity, 0.5)
    assert one.status().identity == identity


def test_a_process_of_another_user_is_a_refusal_not_a_crash(
    memory: Memory, command: list[str], started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = manager(memory, command)
    started.append(one.start(30).pid)

    def denied(self: psutil.Process, number: int) -> None:
        raise psutil.AccessDenied(self.pid)

    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "send_signal", denied)
        with pytest.raises(ManagerError, match="may not be stopped by this user"):
            one.stop(None, 1)


def test_it_is_detached_and_writes_to_its_log(
    memory: Memory, started: list[int], tmp_path: Path, eventually: Callable[..., object]
) -> None:
    log = tmp_path / "service.log"
    code = "import os, time; print(os.getsid(0), flush=True); time.sleep(600)"
    one = manager(memory, [PYTHON, "-c", code, uuid.uuid4().hex], log_file=str(log))
    identity = one.start(30)
    started.append(identity.pid)
    eventually(lambda: log.exists() and log.read_text().strip())
    assert int(log.read_text()) == identity.pid, (
        "a session of its own: no signal of ours reaches it"
    )


def test_it_outlives_the_remediator(
    memory: Memory, command: list[str], started: list[int], tmp_path: Path
) -> None:
    starter = (
        "import sys, pathlib; from remediator import runner\n"
        "print(runner.spawn_detached(sys.argv[1:], cwd=pathlib.Path('/'), extra_environment={}, "
        "log_file=None))"
    )
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", starter, *command],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    started.append(int(done.stdout))
    assert manager(memory, command).status().identity.pid == int(done.stdout)


def test_a_process_that_ended_is_exited_and_no_zombie(
    memory: Memory, started: list[int], eventually: Callable[..., object]
) -> None:
    one = manager(memory, [PYTHON, "-c", "pass", uuid.uuid4().hex])
    identity = one.start(30)
    eventually(lambda: one.status().state == "exited")
    eventually(lambda: one.status() and not psutil.pid_exists(identity.pid))


def test_the_environment_of_a_service_comes_from_the_configuration_only(
    memory: Memory,
    started: list[int],
    tmp_path: Path,
    eventually: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_SECRET_OF_OURS", "x")
    log = tmp_path / "env.log"
    code = "import os, time; print('|'.join(sorted(os.environ)), flush=True); time.sleep(600)"
    one = manager(
        memory,
        [PYTHON, "-c", code, uuid.uuid4().hex],
        log_file=str(log),
        environment={"OLLAMA_HOST": "127.0.0.1"},
    )
    started.append(one.start(30).pid)
    names = str(eventually(lambda: log.exists() and log.read_text().strip())).split("|")
    assert "OLLAMA_HOST" in names
    assert "A_SECRET_OF_OURS" not in names


@pytest.mark.parametrize("wrong", [[], ["ollama", "serve"]])
def test_a_command_must_name_its_program(memory: Memory, wrong: list[str]) -> None:
    with pytest.raises(ConfigError, match="absolute"):
        manager(memory, wrong)


def test_a_program_that_is_not_there_is_an_error_that_names_it(memory: Memory) -> None:
    with pytest.raises(ManagerError, match="/no/such/program"):
        manager(memory, ["/no/such/program"]).start(1)


def test_runner_gives_up_on_what_does_not_end_and_never_kills_it(
    tmp_path: Path, eventually: Callable[..., object], started: list[int]
) -> None:
    ready = tmp_path / "ready"
    code = (
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    with deaf(), pytest.raises(OutcomeUnknown, match="did not end within"):
        runner.run([PYTHON, "-c", code, str(ready)], timeout=0.3)
    pid = int(str(eventually(lambda: ready.exists() and ready.read_text())))
    started.append(pid)
    assert psutil.Process(pid).is_running()
