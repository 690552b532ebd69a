"""The `supervisord` manager over a real supervisord on a Unix socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from remediator import managers
from remediator.clock import SystemClock
from remediator.errors import ConfigError, ManagerError
from remediator.managers import ProcessIdentity
from tests.remediator.engine.processes import PYTHON, end, supervisord

_PROGRAMS = f"""
[program:good]
command={PYTHON} -c "import time; time.sleep(600)"
autostart=false
autorestart=true
startsecs=0
[program:slow]
command={PYTHON} -c "import time; time.sleep(600)"
autostart=false
startsecs=600
[program:bad]
command={PYTHON} -c "raise SystemExit(3)"
autostart=false
startsecs=1
startretries=0
[program:once]
command={PYTHON} -c "pass"
autostart=false
autorestart=false
startsecs=0
[program:stuck]
command={PYTHON} -c "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
autostart=false
startsecs=1
stopwaitsecs=600
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """One supervisord for this module."""
    with supervisord(_PROGRAMS) as url:
        yield url


@pytest.fixture
def unit(url: str) -> Callable[..., Any]:
    def make(process: str, **options: Any) -> managers.ProcessManager:
        context = managers.Context(SystemClock(), dict, lambda identity: None)
        raw = {"type": "supervisord", "url": url, "process": process}
        return managers.create(raw | options, "ollama", context)

    return make


def test_starts_stops_and_says_so(unit: Callable[..., Any]) -> None:
    good = unit("good")
    good.stop(None, 30)
    assert good.status().state == "stopped"
    identity = good.start(30)
    assert psutil.pid_exists(identity.pid)
    assert good.status().running
    assert good.start(30).same(identity), "a second start changes nothing"
    good.stop(identity, 30)
    assert good.status().state == "stopped"
    assert not psutil.pid_exists(identity.pid)
    good.stop(identity, 30)


def test_a_stop_meant_for_the_old_process_spares_the_one_that_replaced_it(
    unit: Callable[..., Any], eventually: Callable[..., object]
) -> None:
    good = unit("good")
    old = good.start(30)
    psutil.Process(old.pid).kill()
    eventually(lambda: (now := good.status().identity) is not None and now.pid != old.pid)
    good.stop(old, 30)
    new = good.status()
    assert new.running
    good.stop(new.identity, 30)


def test_a_stop_meant_for_the_old_process_spares_one_that_is_only_starting(
    unit: Callable[..., Any], eventually: Callable[..., object]
) -> None:
    slow = unit("slow")
    with pytest.raises(ManagerError, match="did not start slow within"):
        slow.start(0.3)
    assert slow.status().state == "starting"
    pid = slow.status().identity.pid
    slow.stop(ProcessIdentity(pid + 1, 1.0), 30)
    assert slow.status().state == "starting"
    slow.stop(None, 30)
    assert slow.status().state == "stopped"


def test_what_supervisord_gave_up_on_is_an_error(unit: Callable[..., Any]) -> None:
    bad = unit("bad")
    with pytest.raises(ManagerError, match="gave up on bad"):
        bad.start(10)
    assert bad.status().state == "failed"
    assert bad.status().identity is None
    bad.stop(None, 1)


def test_a_program_that_ended_by_itself_is_exited_not_stopped(
    unit: Callable[..., Any], eventually: Callable[..., object]
) -> None:
    once = unit("once")
    once.start(30)
    assert eventually(lambda: once.status().state == "exited")


def test_a_program_that_ignores_sigterm_is_reported(unit: Callable[..., Any]) -> None:
    stuck = unit("stuck")
    identity = stuck.start(30)
    with pytest.raises(ManagerError, match="could not stop stuck within"):
        stuck.stop(identity, 0.5)
    assert psutil.pid_exists(identity.pid)
    end(identity.pid)


def test_an_unknown_program_is_an_error_that_says_so(unit: Callable[..., Any]) -> None:
    with pytest.raises(ManagerError, match="BAD_NAME"):
        unit("nobody").status()


def test_a_daemon_that_is_not_there_is_an_error_that_names_it(
    unit: Callable[..., Any], tmp_path: Path
) -> None:
    absent = f"unix://{tmp_path}/none.sock"
    one = unit("good", url=absent)
    for ask in (one.status, lambda: one.start(1), lambda: one.stop(None, 1)):
        with pytest.raises(ManagerError, match=absent):
            ask()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "/run/supervisor.sock"}, "unix://"),
        ({"process": "a b; reboot"}, "program's name"),
        ({"url": "http://admin:s3cret@127.0.0.1:9001"}, "must not hold a user or password"),
        ({"url": "https://admin:s3cret@127.0.0.1:9001"}, "must not hold a user or password"),
        ({"url": "http://@127.0.0.1:9001"}, "must not hold a user or password"),
    ],
)
def test_a_wrong_block_is_told_what_is_right(
    unit: Callable[..., Any], options: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        unit(**{"process": "good", **options})
    assert "s3cret" not in str(refused.value)
