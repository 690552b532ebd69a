"""What goes into the images: the Dockerfile, and the programs that only containers use."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import stat
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from deploy.docker import healthcheck, make_tokens
from deploy.local.http import answers, get_json, request
from deploy.local.ports import Ports
from deploy.local.waiting import poll
from remediator.clock import SystemClock
from remediator.managers.base import Context
from remediator.managers.supervisord import Options, create
from tests.serving.door import CA, HASH, SERVER, Door

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def instructions(word):
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{word} (.+)$", joined, re.MULTILINE)


def test_the_base_is_pinned_and_has_glibc():
    (base,) = [arg.removeprefix("BASE=") for arg in instructions("ARG")]
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-[a-z]+", base)
    assert {one.split()[0] for one in instructions("FROM")} <= {"${BASE}", "runtime"}


def test_no_image_runs_as_root():
    assert instructions("USER") == ["65534:65534"]
    # Of the stage that the three images are made from.
    runtime = DOCKERFILE[DOCKERFILE.index("AS runtime") : DOCKERFILE.index("AS exporter")]
    assert "USER 65534:65534" in runtime


def test_time_zones_of_windows_are_in_the_images():
    runtime = DOCKERFILE[DOCKERFILE.index("AS runtime") : DOCKERFILE.index("AS exporter")]
    assert "tzdata" in runtime[: runtime.index("USER ")]


def test_what_is_copied_is_there_and_is_not_ignored():
    rules = [
        line
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    kept = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        source
        for one in instructions("COPY")
        if not one.startswith("--from")
        for source in one.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)


def test_the_wheel_needs_nothing_that_is_not_copied():
    text = (ROOT / "pyproject.toml").read_text()
    (packages,) = re.findall(r"^packages = (\[.+\])\n\n\[tool\.ruff\]", text, re.MULTILINE)
    copied = " ".join(instructions("COPY"))
    assert all(package in copied for package in re.findall(r'"(\w+)"', packages))
    files = re.findall(r'^(?:readme = |license-files = \[)"(\w+(?:\.md)?)"', text, re.MULTILINE)
    assert files
    assert all(file in copied for file in files)


def test_no_secret_is_built_in():
    assert not re.search(r"token=|password|secret", DOCKERFILE, re.IGNORECASE)
    assert not fnmatch.filter(instructions("COPY"), "*.token*")


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/-/ready" else 503)
        self.end_headers()
        self.wfile.write(b"so it is\n")

    def log_message(self, *args):
        pass


@pytest.fixture
def port():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_the_health_check_tells_ready_from_not_ready(port, capsys):
    assert healthcheck.main([str(port), "/-/ready"]) == 0
    assert healthcheck.main([str(port), "/-/else"]) == 1
    assert "503 so it is" in capsys.readouterr().out


def test_the_health_check_fails_where_nobody_listens(capsys):
    assert healthcheck.main([str(Ports.free().llm), "/-/ready"]) == 1
    assert "no answer" in capsys.readouterr().out


CLIENTS = f"  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {CA}\n"


@pytest.mark.parametrize(
    ("path", "more", "status", "said"),
    [
        ("/-/healthy", "", 0, "200 healthy"),
        ("/-/else", "", 1, "404"),
        ("/-/healthy", CLIENTS, 0, "wants a client certificate"),
        ("/-/ready", f"basic_auth_users:\n  ann: {HASH}\n", 0, "401"),
    ],
)
def test_the_health_check_finds_out_by_itself_that_tls_is_on(
    path, more, status, said, tmp_path, capsys
):
    (config := tmp_path / "web.yml").write_text(f"tls_server_config:\n{SERVER}{more}")
    door = Door(config)
    try:
        assert healthcheck.main([str(door.port), path]) == status
    finally:
        door.close()
    assert said in capsys.readouterr().out


def test_the_health_check_needs_neither_our_packages_nor_a_proxy(port):
    done = subprocess.run(
        [sys.executable, "-I", DOCKER / "healthcheck.py", str(port), "/-/ready"],
        env={"http_proxy": "http://127.0.0.1:1"},
        timeout=30,
        check=False,
    )
    assert done.returncode == 0


def test_tokens_are_made_once_and_are_private(tmp_path):
    files = [tmp_path / "webhook.token", tmp_path / "read.token"]
    assert make_tokens.main([str(file) for file in files]) == 0
    first = [file.read_text() for file in files]
    assert first[0] != first[1]
    assert all(len(text.strip()) >= 32 and text.count("\n") == 1 for text in first)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o400}
    assert make_tokens.main([str(file) for file in files]) == 0
    assert [file.read_text() for file in files] == first
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_a_start_that_was_cut_off_leaves_no_empty_token(tmp_path):
    draft = tmp_path / ".webhook.token.draft"
    draft.touch(0o400)
    assert make_tokens.main([str(tmp_path / "webhook.token")]) == 0
    assert len((tmp_path / "webhook.token").read_text()) > 32
    assert not draft.exists()


def test_a_folder_that_is_not_there_is_said(tmp_path, capsys):
    assert make_tokens.main([str(tmp_path / "none" / "webhook.token")]) == 1
    assert "cannot write" in capsys.readouterr().out


@pytest.fixture
def simulator(tmp_path):
    """The simulator's image as a process: its own configuration, with other ports and folders."""
    ports = Ports.free()
    text = (DOCKER / "simulator.conf").read_text()
    for shipped, ours in (
        # First, because the test's own folder may lie there.
        ("/tmp", str(tmp_path)),
        ("0.0.0.0:9950", f"127.0.0.1:{ports.simulator}"),
        ("127.0.0.1:9950", f"127.0.0.1:{ports.simulator}"),
        ("0.0.0.0:11434", f"127.0.0.1:{ports.llm}"),
        ("127.0.0.1:11434", f"127.0.0.1:{ports.llm}"),
        ("/run/llm", str(tmp_path)),
        ("python3 -m", f"{shlex.quote(sys.executable)} -m"),
        ("/dev/stdout", "/dev/null"),
    ):
        assert shipped in text
        text = text.replace(shipped, ours)
    file = tmp_path / "simulator.conf"
    file.write_text(text)
    entrypoint = re.search(r"^ENTRYPOINT \[\"supervisord\", (.+)\]$", DOCKERFILE, re.MULTILINE)[1]
    flags = [flag for flag in re.findall(r'"([^"]+)"', entrypoint) if "configuration" not in flag]
    manager = create(
        Options(f"unix://{tmp_path}/supervisor.sock", "ollama"),
        "ollama",
        Context(SystemClock(), dict, lambda _: None),
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", *flags, f"--configuration={file}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield ports, manager
    process.terminate()
    process.wait(30)


def test_the_simulator_serves_what_the_remediators_file_says(simulator):
    ports, _ = simulator
    url = f"http://127.0.0.1:{ports.llm}"
    # Two programs that start beside each other: either may be first.
    assert poll(lambda: answers(f"{url}/api/version"), timeout=30)
    assert poll(lambda: answers(f"http://127.0.0.1:{ports.simulator}/api/v1/gpus"), timeout=30)
    (uuid,) = re.findall(r"gpus: \[(GPU-[\w-]+)\]", (DOCKER / "remediator.yml").read_text())
    gpus = get_json(f"http://127.0.0.1:{ports.simulator}/api/v1/gpus")["gpus"]
    assert gpus[0]["uuid"] == uuid
    (model,) = re.findall(r"models: \[(\S+)\]", (DOCKER / "remediator.yml").read_text())
    request("POST", f"{url}/api/generate", body={"model": model, "stream": False}, timeout=30)
    assert [one["name"] for one in get_json(f"{url}/api/ps")["models"]] == [model]


def test_the_remediator_can_stop_and_start_the_simulated_service(simulator):
    ports, manager = simulator
    assert poll(lambda: answers(f"http://127.0.0.1:{ports.llm}/api/version"), timeout=30)
    assert poll(lambda: manager.status().running, timeout=30)
    first = manager.status().identity
    manager.stop(first, 20.0)
    assert not answers(f"http://127.0.0.1:{ports.llm}/api/version")
    assert manager.start(20.0) != first
