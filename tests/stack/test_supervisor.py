"""supervisord under its keeper: what ends when the launcher ends, in whatever way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy.local.errors import NotReady, StackError
from deploy.local.http import answers
from deploy.local.ports import HOST, Ports
from deploy.local.supervisor import REPOSITORY, Program, Supervisor, configuration
from deploy.local.waiting import poll

SLEEPER = [sys.executable, "-c", "import signal; signal.pause()"]

# Leaves an orphan of its own session behind, writes its pid, then waits.
ORPHANER = """
import os, signal, sys
from pathlib import Path
if os.fork() == 0:
    os.setsid()
    if sys.argv[2] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(sys.argv[1]).write_text(str(os.getpid()))
signal.pause()
"""

LAUNCHER = """
import signal, sys
from pathlib import Path
from deploy.local.supervisor import Program, Supervisor
supervisor = Supervisor(Path(sys.argv[1]))
supervisor.start()
supervisor.add([Program("orphaner", sys.argv[2:])])
print(supervisor.keeper_pid, supervisor.state("orphaner").pid, flush=True)
signal.pause()
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def receiver(port: int, file: Path) -> Program:
    return Program(
        "receiver",
        [
            *(sys.executable, "-m", "deploy.local.on_call"),
            *("--listen", f"{HOST}:{port}", "--file", str(file)),
        ],
        f"http://{HOST}:{port}/",
    )


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_program_runs_until_stop_and_not_longer(run: Path) -> None:
    program = receiver(Ports.free().on_call, run / "notifications")
    supervisor = Supervisor(run)
    supervisor.start()
    try:
        supervisor.add([program])
        assert poll(lambda: answers(program.ready_url), timeout=60)
        pid = supervisor.state("receiver").pid
        assert pid is not None
    finally:
        supervisor.stop()
    assert gone(pid)
    assert not answers(program.ready_url)


def test_programs_can_be_added_while_others_run(run: Path) -> None:
    supervisor = Supervisor(run)
    supervisor.start()
    try:
        supervisor.add([Program("first", SLEEPER)])
        pid = supervisor.state("first").pid
        supervisor.add([Program("second", SLEEPER, starts=False)])
        assert supervisor.state("first").pid == pid
        assert supervisor.state("second").pid is None
        supervisor.start_program("second")
        assert poll(lambda: supervisor.state("second").pid, timeout=60)
    finally:
        supervisor.stop()


def orphaner(run: Path, kind: str) -> list[str]:
    script = run / "orphaner.py"
    script.write_text(ORPHANER)
    return [sys.executable, str(script), str(run / "orphan.pid"), kind]


def orphan_pid(run: Path) -> int:
    file = run / "orphan.pid"
    assert poll(lambda: file.exists() and file.read_text(), timeout=60)
    return int(file.read_text())


@pytest.mark.parametrize("victim", ["launcher", "supervisord", "keeper"])
def test_nothing_outlives_a_killed_launcher_supervisord_or_keeper(run: Path, victim: str) -> None:
    command = [sys.executable, "-c", LAUNCHER, str(run), *orphaner(run, "polite")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as launcher:
        try:
            assert launcher.stdout is not None
            keeper, program = (int(word) for word in launcher.stdout.readline().split())
            orphan = orphan_pid(run)
            supervisord = int((run / "supervisord.pid").read_text())
            pids = {"launcher": launcher.pid, "supervisord": supervisord, "keeper": keeper}
            os.kill(pids[victim], signal.SIGKILL)
            for pid in (keeper, supervisord, program):
                assert poll(lambda pid=pid: gone(pid), timeout=60), pid
            if victim == "keeper":
                # Nobody is left to find what a program itself left behind.
                os.kill(orphan, signal.SIGKILL)
            assert poll(lambda: gone(orphan), timeout=60)
        finally:
            launcher.kill()


def test_an_orphan_that_ignores_sigterm_is_killed(run: Path) -> None:
    supervisor = Supervisor(run)
    supervisor.start()
    try:
        supervisor.add([Program("p", orphaner(run, "stubborn"))])
        orphan = orphan_pid(run)
    finally:
        supervisor.stop()
    assert gone(orphan)


def test_a_long_run_path_still_gets_a_control_socket(tmp_path: Path) -> None:
    run = tmp_path / ("long" * 30)
    (run / "logs").mkdir(parents=True)
    supervisor = Supervisor(run)
    supervisor.start()
    try:
        supervisor.add([Program("p", SLEEPER, starts=False)])
        folder = supervisor.control_socket.parent
        assert folder != run
    finally:
        supervisor.stop()
    assert not folder.exists()


def test_arguments_and_environment_reach_a_program_unchanged(run: Path) -> None:
    script = "import os, sys; print(sys.argv[1:], os.environ['X'], flush=True)"
    awkward = ["100%", "a b", "it's", "%(here)s", '"q"']
    program = Program(
        "p", [sys.executable, "-c", script, *awkward], environment={"X": "1,2 50%"}, restarts=False
    )
    supervisor = Supervisor(run)
    supervisor.start()
    try:
        supervisor.add([program])
        log = run / "logs" / "p.log"
        expected = f"{awkward} 1,2 50%\n"
        assert poll(lambda: log.exists() and log.read_text() == expected, timeout=60), (
            log.read_text()
        )
    finally:
        supervisor.stop()


def test_a_value_that_the_format_would_cut_is_refused(run: Path) -> None:
    program = Program("p", ["echo", "a #b"])
    with pytest.raises(StackError, match="choose a folder"):
        configuration([program], run=run, control_socket=run / "s")


def test_a_supervisord_that_cannot_start_is_reported_with_its_log(run: Path) -> None:
    (run / "logs" / "supervisord.log").mkdir()
    with pytest.raises(NotReady, match=r"supervisord did not start. Its log .*keeper\.log"):
        Supervisor(run).start()


def test_settings_of_other_instances_do_not_reach_the_programs(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_EXPORTER_BACKEND", "nvml")
    script = "import os; print([n for n in os.environ if n.startswith('GPU_')], flush=True)"
    supervisor = Supervisor(run)
    supervisor.start()
    try:
        supervisor.add([Program("p", [sys.executable, "-c", script], restarts=False)])
        log = run / "logs" / "p.log"
        assert poll(lambda: log.exists() and log.read_text(), timeout=60) == "[]\n"
    finally:
        supervisor.stop()
