"""The units, asked of systemd's own tools; what they start, asked of our programs."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter import options as exporter_options
from remediator.cli.main import _parser as remediator_parser
from remediator.helper.client import DEFAULT_SOCKET
from remediator.helper.policy import Policy
from remediator.helper.policy import load as load_policy
from tests.nvml_standin import Driver

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
INSTALLED = "/opt/gpu-remediator/bin"
# Tenths of systemd's exposure level. A bare Python service has 96.
PLAIN, HELPER = 20, 22
WITH_KERNEL_LOG = 21
MDWE = 65

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not here: the units are neither verified nor scored (Debian: systemd)",
)
needs_sysusers = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None,
    reason="systemd-sysusers is not here: the user's file is not tried (Debian: systemd)",
)
needs_node = pytest.mark.skipif(
    shutil.which("node") is None,
    reason="node is not here: the polkit rule is not tried (Debian: nodejs)",
)


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as an administrator installs them, in a root of their own."""
    system = tmp_path / "etc" / "systemd" / "system"
    system.mkdir(parents=True)
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        shutil.copy(unit, system)
    programs = tmp_path / INSTALLED.lstrip("/")
    programs.mkdir(parents=True)
    for name in ("gpu-exporter", "gpu-remediator", "python"):
        (programs / name).symlink_to("/bin/true")
    return tmp_path


def add(installed: Path, drop_in: str, service: str) -> None:
    folder = installed / "etc/systemd/system" / f"{service}.d"
    folder.mkdir()
    shutil.copy(UNITS / drop_in, folder)


def unit(name: str) -> configparser.RawConfigParser:
    """The unit; of keys that stand twice the last."""
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[assignment]
    parsed.read(UNITS / name)
    return parsed


@needs_systemd
@pytest.mark.parametrize(
    ("name", "drop_in"),
    [
        ("gpu-exporter.service", None),
        ("gpu-exporter.service", "release.conf"),
        ("gpu-exporter.service", "kernel-log.conf"),
        ("gpu-remediator.service", None),
        ("gpu-remediator-helper.service", None),
        ("gpu-remediator-helper.service", "helper-jetson.conf"),
        ("gpu-remediator-helper.socket", None),
    ],
)
def test_systemd_understands_every_line(name, drop_in, installed, tmp_path):
    # Its socket stands beside a service, and the other way round.
    for one in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        text = one.read_text().replace(INSTALLED, str(tmp_path / INSTALLED.lstrip("/")))
        (tmp_path / one.name).write_text(text)
    file = tmp_path / name
    if drop_in:
        (tmp_path / f"{name}.d").mkdir()
        shutil.copy(UNITS / drop_in, tmp_path / f"{name}.d")
    done = run("systemd-analyze", "verify", "--man=no", file)
    said = [line for line in done.stderr.splitlines() if name in line]
    assert (done.returncode, said) == (0, [])


@needs_systemd
def test_a_line_of_a_drop_in_that_is_not_understood_is_noticed(installed):
    system = installed / "etc/systemd/system"
    (system / "gpu-exporter.service.d").mkdir()
    (system / "gpu-exporter.service.d/wrong.conf").write_text("[Service]\nLoadCredentail=x:/y\n")
    done = run("systemd-analyze", "verify", "--man=no", system / "gpu-exporter.service")
    assert "LoadCredentail" in done.stderr


@needs_systemd
@pytest.mark.parametrize(
    ("name", "drop_in", "threshold"),
    [
        ("gpu-exporter.service", None, PLAIN),
        ("gpu-exporter.service", "release.conf", PLAIN),
        ("gpu-exporter.service", "kernel-log.conf", WITH_KERNEL_LOG),
        ("gpu-remediator.service", None, PLAIN),
        ("gpu-remediator-helper.service", None, HELPER),
        ("gpu-remediator-helper.service", "helper-jetson.conf", PLAIN),
    ],
)
def test_exposure(name, drop_in, threshold, installed):
    if drop_in:
        add(installed, drop_in, name)
    score = ("systemd-analyze", "security", "--offline=yes", f"--root={installed}")
    done = run(*score, f"--threshold={threshold}", name)
    assert done.returncode == 0, done.stdout[-2000:]
    assert run(*score, "--threshold=10", name).returncode == 1, "the unit is really read"


@needs_systemd
def test_a_bare_unit_is_noticed(tmp_path):
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    done = run("systemd-analyze", "security", "--offline=yes", f"--threshold={PLAIN}", bare)
    assert done.returncode != 0


def test_the_units_start_what_our_programs_understand():
    words = shlex.split(unit("gpu-exporter.service")["Service"]["ExecStart"])
    assert words[0] == f"{INSTALLED}/gpu-exporter"
    flags = exporter_options.parse(words[1:], {})
    assert flags.storage_path == Path("/var/lib/gpu-exporter")
    words = shlex.split(unit("gpu-remediator.service")["Service"]["ExecStart"])
    assert words[0] == f"{INSTALLED}/gpu-remediator"
    arguments = remediator_parser().parse_args(words[1:])
    assert arguments.command == "serve"
    assert arguments.config_file == "/etc/gpu-remediator/remediator.yml"
    words = shlex.split(unit("gpu-remediator-helper.service")["Service"]["ExecStart"])
    # Isolated: nothing of the environment chooses what root loads.
    assert words[:4] == [f"{INSTALLED}/python", "-I", "-m", "remediator.helper"]
    arguments = remediator_parser().parse_args(["helper", *words[4:]])
    assert arguments.state_dir == Path("/var/lib/gpu-remediator-helper")
    assert arguments.config_file == Path("/etc/gpu-remediator/helper.yml")
    assert arguments.socket is None


SERVICES = ["gpu-exporter.service", "gpu-remediator.service", "gpu-remediator-helper.service"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_they_write_is_in_a_folder_that_systemd_makes(name):
    service = unit(name)["Service"]
    assert service["ProtectSystem"] == "strict"
    assert service["StateDirectory"] == name.removesuffix(".service")
    assert service["StateDirectoryMode"] == "0700"


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_that_may_be_in_the_driver_is_killed(name):
    assert unit(name)["Service"]["KillMode"] == "process"


def test_the_remediator_has_no_privilege_and_no_device_and_its_helper_no_network() -> None:
    service = unit("gpu-remediator.service")["Service"]
    assert service["User"] == "gpu-remediator"
    assert (service["CapabilityBoundingSet"], service["PrivateDevices"]) == ("", "yes")
    assert not [name for name in service if name in ("AmbientCapabilities", "DeviceAllow")]
    helper = unit("gpu-remediator-helper.service")["Service"]
    assert helper["CapabilityBoundingSet"] == "CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_DAC_READ_SEARCH"
    assert (helper["RestrictAddressFamilies"], helper["PrivateNetwork"]) == ("AF_UNIX", "yes")


def test_on_a_jetson_the_helper_has_no_capability_and_writes_below_sys_devices_only() -> None:
    assert dict(unit("helper-jetson.conf")["Service"]) == {
        "CapabilityBoundingSet": "",
        "ReadWritePaths": "/sys/devices",
    }


def test_the_helpers_door_is_the_remediators_alone_and_where_it_looks_for_it() -> None:
    door = unit("gpu-remediator-helper.socket")["Socket"]
    assert Path(door["ListenStream"]) == DEFAULT_SOCKET
    assert (door["SocketUser"], door["SocketMode"]) == ("gpu-remediator", "0600")
    assert door["SocketUser"] == Policy().user == unit("gpu-remediator.service")["Service"]["User"]


def test_the_shipped_helper_yml_allows_caps_and_offers_the_rest(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "helper.yml").read_text()
    for raw, allowed in (
        (text, {"power_limit"}),
        (re.sub(r"(?m)^( *)#- ", r"\1- ", text), {"power_limit", "reset", "jetson"}),
    ):
        file = tmp_path / "helper.yml"
        file.write_text(raw)
        file.chmod(0o644)
        policy = load_policy(file)
        assert (set(policy.allow), policy.cards) == (allowed, "all")


def test_the_kernel_log_takes_one_capability_and_only_by_the_drop_in():
    assert unit("gpu-exporter.service")["Service"]["CapabilityBoundingSet"] == ""
    assert dict(unit("kernel-log.conf")["Service"]) == {
        "CapabilityBoundingSet": "CAP_SYSLOG",
        "AmbientCapabilities": "CAP_SYSLOG",
        "ProtectKernelLogs": "no",
        "DeviceAllow": f"{exporter_options.parse(['serve'], {}).kmsg} r",
    }


def test_the_exporter_is_shown_the_token_that_the_remediators_file_names():
    service = unit("release.conf")["Service"]
    name, _, file = service["LoadCredential"].partition(":")
    variable = exporter_options.variable("--web.release-token-file")
    assert service["Environment"] == f"{variable}=%d/{name}"
    example = (ROOT / "deploy" / "remediator.yml").read_text()
    assert f"#release_token_file: {file}\n" in example


def test_the_shipped_configuration_fits_the_unit():
    text = (ROOT / "deploy" / "remediator.yml").read_text()
    assert "state_dir: /var/lib/gpu-remediator\n" in text
    assert set(re.findall(r"/etc/gpu-remediator/(\w+)\.token", text)) >= {"webhook", "read"}


@pytest.mark.parametrize(
    ("of_the_unit", "expected"),
    [("gpu-remediator", "gpu-remediator"), ("root", "root"), ("", "gpu-remediator")],
    ids=["plain", "a drop-in says root", "no unit"],
)
def test_commands_run_as_the_services_user_with_its_file(tmp_path, of_the_unit, expected):
    for name, text in (
        ("systemctl", f"echo {of_the_unit}"),
        ("runuser", 'printf "%s\\n" "$GPU_REMEDIATOR_CONFIG_FILE" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", UNITS / "gpu-remediator.sh", "pause", "two words; and $more"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    started = shlex.split(unit("gpu-remediator.service")["Service"]["ExecStart"])
    file = started[-1].removeprefix("--config.file=")
    called = ["-u", expected, "--", started[0], "pause", "two words; and $more"]
    assert done.stdout.splitlines() == [file, *called], done.stderr


@needs_sysusers
def test_the_user_is_made(tmp_path):
    (tmp_path / "etc").mkdir()
    done = run("systemd-sysusers", f"--root={tmp_path}", UNITS / "gpu-remediator.sysusers")
    assert done.returncode == 0, done.stderr
    user = unit("gpu-remediator.service")["Service"]["User"]
    assert re.search(
        rf"^{user}:.*:/usr/sbin/nologin$", (tmp_path / "etc/passwd").read_text(), re.MULTILINE
    )


@needs_node
@pytest.mark.parametrize(
    ("user", "action", "unit_name", "verb", "allowed"),
    [
        ("gpu-remediator", "manage-units", "ollama.service", "stop", True),
        ("gpu-remediator", "manage-units", "ollama.service", "start", True),
        ("gpu-remediator", "manage-units", "ollama.service", "kill", False),
        ("gpu-remediator", "manage-units", "sshd.service", "stop", False),
        ("gpu-remediator", "manage-units", "ollama.service.evil.service", "stop", False),
        ("gpu-remediator", "manage-unit-files", "ollama.service", "stop", False),
        ("gpu-remediator", "reload-daemon", None, None, False),
        ("nobody", "manage-units", "ollama.service", "stop", False),
    ],
)
def test_polkit_lets_the_remediator_do_just_that(user, action, unit_name, verb, allowed):
    rule = (UNITS / "50-gpu-remediator.rules").read_text()
    asked = {"unit": unit_name, "verb": verb}
    script = f"""
let rule; const polkit = {{addRule: f => rule = f, Result: {{YES: "yes", NOT_HANDLED: "asks on"}}}};
{rule}
const asked = {json.dumps(asked)};
const action = {{id: "org.freedesktop.systemd1.{action}", lookup: key => asked[key] ?? undefined}};
console.log(rule(action, {{user: {json.dumps(user)}}}));
"""
    done = run("node", "-e", script)
    assert done.stdout.strip() == ("yes" if allowed else "asks on"), done.stderr


def test_the_driver_library_is_read_without_memory_that_is_writable_and_executable(tmp_path):
    """`MemoryDenyWriteExecute`, as the kernel itself offers it; the library is the stand-in."""
    driver = Driver(tmp_path / "driver", gpus=1)
    script = (
        "import ctypes, os, sys\n"
        f"if ctypes.CDLL(None).prctl({MDWE}, 1, 0, 0, 0): sys.exit(77)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "-m", "exporter", "dump", "--backend=nvml"],
        env=os.environ | driver.env(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (6.3 and later): not tried")
    assert done.returncode == 0, done.stderr
    assert "gpu_temperature_celsius{" in done.stdout
