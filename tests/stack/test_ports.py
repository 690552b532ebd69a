"""Ports: said before anything starts, in one line that helps."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local import ports
from deploy.local.errors import PortInUse, StackError
from deploy.local.options import Options
from deploy.local.ports import HOST, Ports
from deploy.local.settings import Settings
from deploy.local.stack import Stack
from deploy.local.supervisor import REPOSITORY


@pytest.fixture
def taken() -> int:
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_names_the_port_who_wants_it_and_what_to_do(taken: int) -> None:
    with pytest.raises(PortInUse) as caught:
        Ports(prometheus=taken).require_free(frozenset({"prometheus"}))
    message = str(caught.value)
    assert f"Port {taken}" in message
    assert "Prometheus needs it" in message
    assert "PORTS=" in message
    assert "\n" not in message


def test_a_port_that_nothing_of_this_stack_needs_may_be_taken(taken: int) -> None:
    ports = replace(Ports.free(), simulator=taken)
    ports.require_free(Options(backend="nvml").programs() - {"llm"})


def test_a_stack_starts_nothing_and_writes_nothing_when_a_port_is_in_use(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.local.binaries.find", lambda: None)
    free = vars(Ports.free()) | {"exporter": taken}
    with pytest.raises(PortInUse, match="the GPU exporter needs it"):
        Stack(tmp_path / "run", ports=Ports(**free)).start()
    assert not (tmp_path / "run").exists()


def test_free_ports_are_never_given_out_twice() -> None:
    script = "from deploy.local.ports import Ports; print(Ports.free().exporter); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        theirs = int(other.stdout.readline())
        assert not ports._claim(theirs)
        other.communicate("done")
    mine = [port for _ in range(20) for port in vars(Ports.free()).values()]
    assert len(set(mine)) == len(mine)
    assert max(mine) < 32768


def test_a_block_is_consecutive_and_must_fit() -> None:
    assert list(vars(Ports.block(20000)).values()) == list(range(20000, 20007))
    for base in (80, 65535):
        with pytest.raises(StackError, match="between 1024 and"):
            Ports.block(base)


def test_settings_come_from_the_environment() -> None:
    default = Settings.read({"MODE": "", "PORTS": "", "GPUS": "", "INCIDENTS": ""})
    assert default == Settings(mode=None, ports=Ports(), gpus=1, incidents=True)
    chosen = Settings.read({"MODE": "observe", "PORTS": "20000", "GPUS": "4", "INCIDENTS": "no"})
    assert chosen == Settings("observe", Ports.block(20000), 4, incidents=False)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MODE", "yolo", "MODE=auto, MODE=approve or MODE=observe"),
        ("PORTS", "many", "PORTS=many: this must be a whole number"),
        ("GPUS", "0", "from 1 to 16"),
        ("GPUS", "two", "GPUS=two"),
        ("INCIDENTS", "maybe", "INCIDENTS=yes or INCIDENTS=no"),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(name: str, value: str, said: str) -> None:
    with pytest.raises(StackError, match=said):
        Settings.read({name: value})
