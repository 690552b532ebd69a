"""The helper as a process: how it starts, ends, and is killed in the middle of a write."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from remediator.gpu_control.helper import HelperControl
from remediator.helper.client import Helper
from tests.nvml_standin import Driver
from tests.remediator.helper.support import ROOT, Process, refused
from tests.waiting import poll

SET = "nvmlDeviceSetPowerManagementLimit"
POLICY = f"user: {os.geteuid()}\nallow: [power_limit]\ntimeout: 20s\n"


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path / "driver", gpus=2)


@pytest.fixture
def helper(tmp_path: Path, driver: Driver) -> Iterator[Process]:
    one = Process(tmp_path, POLICY, driver.env())
    yield one
    one.close()


def start(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "remediator.helper", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def writing(helper: Process, driver: Driver) -> tuple[threading.Thread, list[str]]:
    """Somebody whose write has got as far as the driver, and hangs there."""
    driver.hang(SET)
    said: list[str] = []
    control = HelperControl(helper.client(20.0))
    one = threading.Thread(
        target=lambda: said.append(
            refused(lambda: control.set_power_limit(driver.uuids[0], 320_000))
        )
    )
    one.start()
    poll(lambda: driver.clients() and (helper.folder / "writes.jsonl").exists())
    return one, said


def test_killed_in_the_middle_it_leaves_an_unknown_outcome_that_the_next_one_tells(
    helper: Process, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    asking, said = writing(helper, driver)
    helper.process.send_signal(signal.SIGKILL)
    helper.process.wait(20)
    asking.join(20)
    assert said[0].startswith("OutcomeUnknown: the helper at ")
    assert "ended before it answered" in said[0]
    driver.clear()
    helper.start("remediator", "helper")
    HelperControl(helper.client()).power(driver.uuids[0])
    assert "what became of an earlier call: " in caplog.text
    assert "the helper ended before this did" in caplog.text
    assert "unknown" in caplog.text


def test_asked_to_stop_it_ends_what_it_has_begun_and_says_what_became_of_it(
    helper: Process, driver: Driver
) -> None:
    asking, said = writing(helper, driver)
    helper.process.terminate()
    poll(lambda: "is ended first" in helper.log.read_text())
    assert helper.process.poll() is None
    driver.clear()
    asking.join(20)
    assert helper.process.wait(20) == 0
    assert said == ["it was done"]
    assert driver.power_limit(0) == 320.0
    assert not helper.socket.exists()


def test_a_second_helper_does_not_take_the_socket_of_the_first(helper: Process) -> None:
    done = start(f"--socket={helper.socket}", f"--config.file={helper.file}")
    assert done.returncode == 1
    assert f"another helper listens on {helper.socket}" in done.stderr
    assert helper.answers()


def test_without_a_socket_it_says_so_and_it_takes_no_other_file_away(tmp_path: Path) -> None:
    done = start()
    assert done.returncode == 1
    assert "no socket was passed" in done.stderr
    plain = tmp_path / "plain"
    plain.write_text("mine")
    done = start(f"--socket={plain}")
    assert done.returncode == 1
    assert "it is no socket" in done.stderr
    assert plain.read_text() == "mine"


def test_it_takes_the_socket_that_systemd_passes(tmp_path: Path, driver: Driver) -> None:
    """As sd_listen_fds(3) has it: descriptor 3, for this pid."""
    (tmp_path / "helper.yml").write_text(POLICY)
    (tmp_path / "helper.yml").chmod(0o644)
    path = tmp_path / "passed.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        script = (
            "import os, sys\n"
            "os.dup2(int(sys.argv[1]), 3)\n"
            "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())}\n"
            "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])\n"
        )
        argv = [sys.executable, "-c", script, str(listener.fileno()), "-P", "-m"]
        argv += ["remediator.helper", f"--config.file={tmp_path / 'helper.yml'}"]
        process = subprocess.Popen(
            argv,
            env=os.environ | driver.env() | {"PYTHONPATH": str(ROOT)},
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        try:
            control = HelperControl(Helper(path, 20.0))
            control.set_power_limit(driver.uuids[1], 320_000)
            children = psutil.Process(process.pid).children()
        finally:
            process.terminate()
            assert process.wait(20) == 0
    assert driver.power_limit(1) == 320.0
    assert children == [], "nothing of a call stays behind"
    assert path.exists(), "the socket is systemd's"


def test_a_wrong_file_is_told_to_who_asks(tmp_path: Path) -> None:
    one = Process.__new__(Process)
    one.folder, one.socket = tmp_path, tmp_path / "helper.sock"
    one.file, one.log = tmp_path / "helper.yml", tmp_path / "helper.log"
    one.file.write_text("alow: [power_limit]\n")
    one._env = os.environ | {"PYTHONPATH": str(ROOT)}
    one.answers = lambda: "alow" in refused(one.client().about)  # type: ignore[method-assign]
    one.start()
    said = refused(one.client().about)
    one.close()
    assert "did you mean 'allow'" in said


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    def run(*words: str) -> list[str]:
        from remediator.cli.main import main

        became: list[list[str]] = []

        def become(_: str, argv: list[str]) -> None:
            became.append(argv)
            raise SystemExit(0)

        monkeypatch.setattr(os, "execv", become)
        with pytest.raises(SystemExit):
            main(["helper", *words])
        return became[0]

    return run


def test_the_command_becomes_a_program_that_loads_little(
    run_main: Callable[..., list[str]],
) -> None:
    argv = run_main("--socket=/run/x", "--config.file", "helper")
    assert argv[:4] == [sys.executable, "-P", "-m", "remediator.helper"]
    assert argv[4:] == ["--socket=/run/x", "--config.file", "helper"]
