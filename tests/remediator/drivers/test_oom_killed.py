"""Did the kernel kill it for memory? Real processes, with kernel counts that the test writes."""

from __future__ import annotations

import json
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from remediator import managers, runner
from remediator.clock import SystemClock
from remediator.managers import ProcessIdentity
from remediator.managers._kernel_kills import DeathWatch
from tests.remediator.drivers import standin_systemctl
from tests.remediator.drivers.standin_engine import Container, Engine, serve
from tests.remediator.engine.fakes import FakeClock
from tests.remediator.engine.processes import PYTHON, end, supervisord
from tests.waiting import poll

ONE, TWO = ProcessIdentity(101, 1000.0), ProcessIdentity(102, 2000.0)
SLEEP = "import time; time.sleep(600)"


class Kernel:
    """A procfs and a cgroupfs with nothing in them but counts of kills for memory."""

    def __init__(self, root: Path) -> None:
        self.procfs = root / "proc"
        self.procfs.mkdir(parents=True)
        self.cgroup = root / "sys" / "fs" / "cgroup" / "system.slice" / "ollama.service"
        self.machine(7)

    def machine(self, count: int) -> None:
        (self.procfs / "vmstat").write_text(f"nr_free_pages 1\noom_kill {count}\nswap_ra 0\n")

    def in_cgroup(self, pid: int, count: int) -> None:
        self.cgroup.mkdir(parents=True, exist_ok=True)
        (self.cgroup / "memory.events").write_text(f"low 0\noom 9\noom_kill {count}\n")
        (self.procfs / str(pid)).mkdir(exist_ok=True)
        (self.procfs / str(pid) / "cgroup").write_text("0::/system.slice/ollama.service\n")


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def watch(kernel: Kernel, sigkilled: bool | None = True, clock: FakeClock | None = None):
    return DeathWatch(clock or FakeClock(), kernel.procfs, lambda identity: sigkilled)


@pytest.mark.parametrize(
    ("sigkilled", "kills", "verdict"),
    [(True, 1, True), (True, 0, False), (False, 1, False), (None, 1, None)],
)
def test_only_sigkill_and_a_kill_for_memory_together_are_one(
    kernel: Kernel, sigkilled: bool | None, kills: int, verdict: bool | None
) -> None:
    one = watch(kernel, sigkilled)
    assert one.oom_killed(ONE) is None
    kernel.machine(7 + kills)
    assert one.oom_killed(None) is verdict
    assert one.oom_killed(None) is verdict, "it stays said"
    assert one.oom_killed(TWO) is verdict, "also once the next one runs"


def test_the_cgroup_of_the_process_has_the_word(kernel: Kernel) -> None:
    kernel.in_cgroup(ONE.pid, 3)
    one = watch(kernel)
    one.oom_killed(ONE)
    kernel.machine(8)
    assert one.oom_killed(None) is False, "somebody else's kill"
    kernel.in_cgroup(TWO.pid, 3)
    one.oom_killed(TWO)
    kernel.in_cgroup(TWO.pid, 4)
    assert one.oom_killed(None) is True


def test_a_process_that_moved_or_that_ends_just_now_is_judged_by_where_it_was(
    kernel: Kernel,
) -> None:
    one = watch(kernel)
    one.oom_killed(ONE)
    kernel.in_cgroup(ONE.pid, 3)
    assert one.oom_killed(ONE) is None
    kernel.in_cgroup(ONE.pid, 4)
    (kernel.procfs / str(ONE.pid) / "cgroup").write_text("0::/\n")
    one.oom_killed(ONE)
    assert one.oom_killed(None) is True


def test_the_memory_controller_of_version_1_counts_too(kernel: Kernel) -> None:
    folder = kernel.procfs.parent / "sys/fs/cgroup/memory/llm"
    folder.mkdir(parents=True)
    control = folder / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    (kernel.procfs / str(ONE.pid)).mkdir()
    (kernel.procfs / str(ONE.pid) / "cgroup").write_text("9:cpu:/x\n8:memory:/llm\n0::/y\n")
    one = watch(kernel)
    one.oom_killed(ONE)
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert one.oom_killed(None) is True


def test_a_cgroup_that_went_with_its_process_leaves_the_count_of_the_machine(
    kernel: Kernel,
) -> None:
    kernel.in_cgroup(ONE.pid, 3)
    one = watch(kernel)
    one.oom_killed(ONE)
    (kernel.cgroup / "memory.events").unlink()
    kernel.machine(8)
    assert one.oom_killed(None) is True


def test_without_any_count_it_cannot_be_told(kernel: Kernel) -> None:
    (kernel.procfs / "vmstat").write_text("oom_kill many\n")
    one = watch(kernel)
    one.oom_killed(ONE)
    assert one.oom_killed(None) is None


def test_a_look_between_the_count_and_the_end_hides_nothing(kernel: Kernel) -> None:
    clock = FakeClock()
    one = watch(kernel, clock=clock)
    for _ in range(10):
        one.oom_killed(ONE)
        clock.advance(5)
    kernel.machine(8)
    one.oom_killed(ONE)
    clock.advance(2)
    assert one.oom_killed(None) is True


def test_an_old_kill_is_not_blamed_on_a_later_sigkill(kernel: Kernel) -> None:
    clock = FakeClock()
    one = watch(kernel, clock=clock)
    one.oom_killed(ONE)
    kernel.machine(8)
    for _ in range(10):
        one.oom_killed(ONE)
        clock.advance(5)
    assert one.oom_killed(None) is False


def test_two_deaths_in_a_row_are_judged_each_by_itself(kernel: Kernel) -> None:
    one = watch(kernel)
    one.oom_killed(ONE)
    kernel.machine(8)
    assert one.oom_killed(TWO) is True
    assert one.oom_killed(None) is False


# A plain process: a child of ours says which signal ended it.


@pytest.fixture
def plain(kernel: Kernel) -> Iterator[managers.ProcessManager]:
    kept: dict[str, object] = {}
    context = managers.Context(SystemClock(), lambda: kept, kept.update)
    raw = {
        "type": "process",
        "command": [PYTHON, "-c", SLEEP, uuid.uuid4().hex],
        "procfs": str(kernel.procfs),
    }
    one = managers.create(raw, "ollama", context)
    yield one
    identity = one.status().identity
    if identity is not None:
        end(identity.pid)
        poll(lambda: one.status().state == "exited")


@pytest.mark.parametrize(
    ("how", "kills", "verdict"),
    [("kill", 1, True), ("kill", 0, False), ("terminate", 1, False)],
)
def test_a_plain_process(
    plain: managers.ProcessManager, kernel: Kernel, how: str, kills: int, verdict: bool
) -> None:
    pid = plain.start(30).pid
    assert plain.status().oom_killed is None
    kernel.machine(7 + kills)
    getattr(psutil.Process(pid), how)()
    poll(lambda: plain.status().state == "exited")
    assert plain.status().oom_killed is verdict
    assert [child.pid for child in runner._children if child.pid == pid] == []
    plain.start(30)
    assert plain.status().oom_killed is verdict


def test_of_an_adopted_process_nobody_can_tell_how_it_ended(kernel: Kernel) -> None:
    command = [PYTHON, "-c", SLEEP, uuid.uuid4().hex]
    stranger = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    kept: dict[str, object] = {}
    context = managers.Context(SystemClock(), lambda: kept, kept.update)
    raw = {"type": "process", "command": command, "procfs": str(kernel.procfs)}
    one = managers.create(raw, "ollama", context)
    try:
        poll(lambda: one.status().running)
        kernel.machine(8)
    finally:
        stranger.kill()
        stranger.wait(20)
    assert one.status().oom_killed is None


# supervisord: its log says which signal ended a program.

_PROGRAMS = f"""
[program:ollama]
command={PYTHON} -c "{SLEEP}"
autostart=false
autorestart=false
startsecs=0
[program:again]
command={PYTHON} -c "{SLEEP}"
autostart=false
autorestart=true
startsecs=0
"""


@pytest.fixture(scope="module")
def supervisor() -> Iterator[str]:
    with supervisord(_PROGRAMS) as url:
        yield url


def program(supervisor: str, kernel: Kernel, name: str) -> managers.ProcessManager:
    context = managers.Context(SystemClock(), dict, lambda identity: None)
    raw = {
        "type": "supervisord",
        "url": supervisor,
        "process": name,
        "procfs": str(kernel.procfs),
    }
    return managers.create(raw, "ollama", context)


def started(one: managers.ProcessManager) -> psutil.Process:
    process = psutil.Process(one.start(30).pid)
    # Before that it is still supervisord's fork, which takes a SIGTERM for its own.
    poll(lambda: "time.sleep(600)" in " ".join(process.cmdline()))
    return process


@pytest.mark.parametrize(
    ("how", "kills", "verdict"),
    [("kill", 1, True), ("kill", 0, False), ("terminate", 1, False)],
)
def test_a_program_of_supervisord(
    supervisor: str, kernel: Kernel, how: str, kills: int, verdict: bool
) -> None:
    one = program(supervisor, kernel, "ollama")
    process = started(one)
    assert one.status().oom_killed is None
    kernel.machine(7 + kills)
    getattr(process, how)()
    poll(lambda: one.status().state == "exited")
    assert one.status().oom_killed is verdict


def test_a_program_that_supervisord_started_again_at_once(supervisor: str, kernel: Kernel) -> None:
    one = program(supervisor, kernel, "again")
    first = started(one)
    assert one.status().oom_killed is None
    kernel.machine(8)
    first.kill()

    def again() -> managers.ProcessStatus | None:
        # It is starting, with a pid, before supervisord says that it runs.
        now = one.status()
        return now if now.running and now.identity.pid != first.pid else None

    assert poll(again).oom_killed is True


# systemd and container engines say it themselves.


@pytest.mark.parametrize(
    ("result", "signal", "verdict"),
    [
        ("oom-kill", 9, True),
        ("signal", 9, None),
        ("signal", 11, False),
        ("exit-code", 1, False),
        ("success", 0, False),
    ],
)
def test_a_unit_of_systemd(
    install_program: Callable[[ModuleType, str], Path],
    result: str,
    signal: int,
    verdict: bool | None,
) -> None:
    systemctl = install_program(standin_systemctl, "systemctl")

    def put(**properties: object) -> None:
        raw = standin_systemctl.NEW | properties
        (systemctl.parent / "unit.json").write_text(json.dumps(raw))

    put()
    context = managers.Context(SystemClock(), dict, lambda identity: None)
    raw = {"type": "systemd", "unit": "ollama.service", "systemctl": str(systemctl)}
    one = managers.create(raw, "ollama", context)
    assert one.status().oom_killed is None, "it has never run"
    one.start(30)
    assert one.status().oom_killed is None
    ended = {"ExecMainExitTimestampMonotonic": 9, "ExecMainStatus": signal, "Result": result}
    put(ActiveState="failed", **ended)
    assert one.status().oom_killed is verdict
    if verdict:
        put(ActiveState="activating", SubState="auto-restart", **ended)
        assert one.status().oom_killed, "also while systemd is about to start it again"


@pytest.mark.parametrize(
    ("said", "code", "verdict"), [(True, 137, True), (False, 137, None), (False, 1, False)]
)
def test_a_container(said: bool, code: int, verdict: bool | None) -> None:
    engine = Engine()
    container = Container("ollama")
    engine.containers.append(container)
    with tempfile.TemporaryDirectory() as folder, serve(engine, Path(folder) / "d.sock"):
        context = managers.Context(SystemClock(), dict, lambda identity: None)
        raw = {"type": "docker", "container": "ollama", "url": f"unix://{folder}/d.sock"}
        one = managers.create(raw, "ollama", context)
        one.start(30)
        assert one.status().oom_killed is None
        container.put(OOMKilled=said)
        container.end(code)
        assert one.status().oom_killed is verdict
