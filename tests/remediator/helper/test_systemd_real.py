"""The helper's units under a real systemd: started by the socket, within their limits, for one user.

Needs what `tests/remediator/drivers/test_systemd_real.py` needs, and gcc for the stand-in driver. Boots
it with this Python, changes nothing in it that outlives the test.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.nvml_standin import Driver
from tests.remediator.drivers.test_systemd_real import ROOT, _forget_cgroups, _leader
from tests.remediator.helper.support import ROOT as CHECKOUT
from tests.waiting import poll

pytestmark = pytest.mark.skipif(
    not (ROOT and shutil.which("systemd-nspawn") and os.geteuid() == 0),
    reason="the helper's units NOT tested: needs root, systemd-nspawn and SYSTEMD_TEST_ROOT",
)

LIBRARIES = "/usr/lib/x86_64-linux-gnu"
UNIT = "gpu-remediator-helper"
# What the remediator does with the helper, within the remediator's own unit.
CLIENT = """
import json, os, pathlib
from remediator.errors import ControlError
from remediator.gpu_control.helper import HelperControl
from remediator.gpu_reset.helper import HelperReset
from remediator.helper.client import Helper
helper = Helper(None, 20.0)
asked = json.loads(pathlib.Path("/asked/asked.json").read_text())
said = {"uid": os.geteuid()}
try:
    if asked["what"] == "cap":
        HelperControl(helper).set_power_limit(asked["uuid"], asked["milliwatts"])
        said["limit"] = HelperControl(helper).power(asked["uuid"]).limit
    elif asked["what"] == "reset":
        said["confirmed"] = HelperReset(helper).reset(asked["uuid"], 20.0)
    elif asked["what"] == "checks":
        said["checks"] = [one.to_json() for one in HelperReset(helper).checks(asked["uuid"])]
        said["clients"] = [str(one) for one in HelperReset(helper).clients(asked["uuid"])]
    else:
        said["about"] = helper.about()
except ControlError as error:
    said["error"] = str(error)
print(json.dumps(said))
"""


SMI = """#!/bin/sh
case "$*" in
"-i $2 --gpu-reset") echo "GPU 00000000:3B:00.0 was successfully reset." ;;
*) echo "$2, NVIDIA A100-SXM4-40GB, Disabled, Disabled" ;;
esac
"""


def environment_of(folder: Path) -> Path:
    """What `pip install` into /opt/gpu-remediator gives, as far as the helper needs it."""
    packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to("/opt/python/bin/python3")
    (folder / "pyvenv.cfg").write_text(
        "home = /opt/python/bin\ninclude-system-site-packages = false\n"
    )
    for name in ("remediator", "serving", "yaml", "pynvml"):
        found = importlib.util.find_spec(name)
        assert found is not None, name
        assert found.origin is not None, name
        origin = Path(found.origin)
        if origin.name == "__init__.py":
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin.parent, packages / name, ignore=ignored)
        else:
            shutil.copy(origin, packages)
    return folder


class Container:
    """A machine with our units, on which the stand-in driver has two cards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.driver = Driver(folder / "driver", gpus=2)
        (folder / "asked").mkdir()
        (folder / "client.py").write_text(CLIENT)
        (folder / "nvidia-smi").write_text(SMI)
        (folder / "nvidia-smi").chmod(0o755)
        self.policy("allow: [power_limit, reset]\n")
        units = folder / "units"
        ignored = shutil.ignore_patterns("gpu-exporter*")
        shutil.copytree(CHECKOUT / "deploy/systemd", units, ignore=ignored)
        for name, text in {
            f"{UNIT}.service": "Environment=NVML_STANDIN_DIR=/standin\nReadWritePaths=/standin\n",
            "gpu-remediator.service": (
                "ExecStart=\nExecStart=/opt/gpu-remediator/bin/python -P /client.py\n"
                "Type=oneshot\nRestart=no\nStandardOutput=truncate:/asked/said.json\n"
            ),
        }.items():
            (units / f"{name}.d").mkdir()
            (units / f"{name}.d/test.conf").write_text(f"[Service]\n{text}")
        binds = {
            units: "/run/systemd/system",
            environment_of(folder / "opt"): "/opt/gpu-remediator",
            self.driver.library / "libnvidia-ml.so.1": f"{LIBRARIES}/libnvidia-ml.so.1",
            Path(sys.base_prefix): "/opt/python",
            folder / "client.py": "/client.py",
            folder / "nvidia-smi": "/usr/bin/nvidia-smi",
        }
        for one in Path(sys.base_prefix, "lib").glob("libpython3.*.so.*"):
            binds[one] = f"{LIBRARIES}/{one.name}"
        argv = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--volatile=overlay"]
        argv += [
            "--private-network",
            *(f"--bind-ro={here}:{there}" for here, there in binds.items()),
        ]
        argv += [f"--bind={folder / 'driver'}:/standin", f"--bind={folder / 'asked'}:/asked"]
        argv += [f"--bind={folder / 'etc'}:/etc/gpu-remediator", "-b", "-D", ROOT]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.leader = _leader(self.process)

    def policy(self, text: str) -> None:
        (self.folder / "etc").mkdir(exist_ok=True)
        (self.folder / "etc/helper.yml").write_text(text)
        (self.folder / "etc/helper.yml").chmod(0o644)

    def run(self, *argv: str, check: bool = True) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-p", "-C", "-n", *argv],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout.strip()

    def ask(self, **what: Any) -> dict[str, Any]:
        (self.folder / "asked/asked.json").write_text(json.dumps(what))
        tell = "{ journalctl -n 9 -o cat; cat /asked/said.json; false; }"
        self.run("sh", "-c", f"systemctl start gpu-remediator.service || {tell}")
        return json.loads((self.folder / "asked/said.json").read_text())

    def state(self, unit: str = f"{UNIT}.service") -> str:
        return self.run("systemctl", "is-active", unit, check=False)

    def close(self) -> None:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                child.send_signal(signal.SIGKILL)
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    _forget_cgroups()
    one = Container(tmp_path_factory.mktemp("machine"))
    try:
        poll(lambda: one.run("systemctl", "is-system-running", check=False) in
             ("running", "degraded"), seconds=60)  # fmt: skip
        one.run("systemd-sysusers", "/run/systemd/system/gpu-remediator.sysusers")
        one.run("systemctl", "start", f"{UNIT}.socket")
        yield one
    finally:
        one.close()
        _forget_cgroups()


def test_its_socket_starts_it_for_the_remediator_and_a_card_is_capped(machine: Container) -> None:
    assert (machine.state(), machine.state(f"{UNIT}.socket")) == ("inactive", "active")
    uuid = machine.driver.uuids[1]
    said = machine.ask(what="cap", uuid=uuid, milliwatts=320_000)
    assert said["limit"] == 320_000
    assert said["uid"] != 0
    assert machine.driver.power_limit(1) == 320.0
    assert machine.state() == "active"
    journal = machine.run("journalctl", "-u", UNIT, "-o", "cat")
    assert (
        f"uid={said['uid']} verb=set_power_limit uuid={uuid} number=320000 outcome=done" in journal
    )


@pytest.mark.parametrize(
    ("user", "words"), [("nobody", "this user may not connect"), ("root", "uid 0 may not ask")]
)
def test_nobody_else_gets_in_not_even_root(machine: Container, user: str, words: str) -> None:
    script = "from remediator.helper.client import Helper; Helper(None, 20.0).about()"
    argv = f"runuser -u {user} -- /opt/gpu-remediator/bin/python -P -c '{script}' 2>&1"
    assert words in machine.run("sh", "-c", argv, check=False)


def test_it_runs_within_its_limits(machine: Container) -> None:
    machine.ask(what="about")
    pid = machine.run("systemctl", "show", "-P", "MainPID", UNIT)
    status = machine.run("cat", f"/proc/{pid}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    # CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN
    assert int(fields["CapBnd"], 16) == 1 << 2 | 1 << 19 | 1 << 21
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert machine.run("systemctl", "show", "-P", "NRestarts", UNIT) == "0"


def test_a_card_is_reset_when_no_process_of_any_user_holds_it_open(machine: Container) -> None:
    uuid = machine.driver.uuids[0]
    machine.run("touch", "/dev/nvidia0")
    hold = "exec sleep 600 3</dev/nvidia0"
    machine.run("systemd-run", "--unit=holder", "--uid=nobody", "sh", "-c", hold)
    poll(lambda: machine.ask(what="checks", uuid=uuid)["clients"])
    said = machine.ask(what="checks", uuid=uuid)
    assert all(one["passed"] for one in said["checks"])
    assert all(one.startswith("sleep (pid ") for one in said["clients"])
    said = machine.ask(what="reset", uuid=uuid)
    assert said["error"].startswith("the helper: held open by sleep (pid ")
    machine.run("systemctl", "stop", "holder")
    poll(lambda: not machine.ask(what="checks", uuid=uuid)["clients"])
    assert machine.ask(what="reset", uuid=uuid)["confirmed"] is True
    ledger = machine.run("cat", f"/var/lib/{UNIT}/writes.jsonl")
    assert json.loads(ledger.splitlines()[-1])["outcome"] == "done"


def test_stopped_it_is_started_again_and_a_new_file_holds(machine: Container) -> None:
    machine.policy("allow: []\n")
    machine.run("systemctl", "stop", f"{UNIT}.service")
    uuid = machine.driver.uuids[0]
    said = machine.ask(what="cap", uuid=uuid, milliwatts=320_000)
    assert said["error"] == "the helper: helper.yml does not allow power_limit"
    machine.policy("alow: [power_limit]\n")
    machine.run("systemctl", "restart", f"{UNIT}.service")
    assert "did you mean 'allow'" in machine.ask(what="about")["error"]
    (machine.folder / "etc/helper.yml").chmod(0o666)
    machine.run("systemctl", "restart", f"{UNIT}.service")
    assert "nobody else may write to it" in machine.ask(what="about")["error"]
    assert machine.driver.power_limit(0) == 400.0
