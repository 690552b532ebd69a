"""The exporter behind its door: what the web configuration does to its own pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from exporter.web.release import ReleaseEndpoint
from serving.config import WebConfig
from serving.guard import Guard
from tests.exporter.fakes import FakeClock
from tests.exporter.web_page import PASSWORD, application
from tests.serving.door import HASH, Door, ask, basic, clients

USERS = {"alice": HASH}


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/api/gpus", "/-/healthy", "/-/ready", "/nothing"]
)
def test_every_path_needs_the_password(path) -> None:
    guard = Guard(application(), lambda: WebConfig(users=USERS), FakeClock(), PASSWORD)
    assert ask(guard, path)[0] == 401
    assert ask(guard, path, authorization=basic("alice:secret"))[0] in {200, 404}


def test_the_release_has_a_token_of_its_own() -> None:
    class NeverAsked:
        def grant(self) -> None:
            return None

    app = application()
    app._routes["/-/release"] = ReleaseEndpoint(NeverAsked(), "t" * 20)
    guard = Guard(app, lambda: WebConfig(users=USERS), FakeClock(), PASSWORD)
    assert ask(guard, "/-/release", authorization="Bearer " + "t" * 20)[0] == 200
    status, headers, _ = ask(guard, "/-/release", authorization=basic("alice:secret"))
    assert (status, dict(headers)["WWW-Authenticate"]) == (401, "Bearer")


def test_the_command_says_what_is_wrong_with_the_file(tmp_path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("basic_auth_user: {}")
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "serve", f"--web.config.file={path}"],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"{path}: basic_auth_user: unknown key; did you mean 'basic_auth_users'" in done.stderr


def test_more_connections_than_the_soft_limit_has_descriptors() -> None:
    """A shell or systemd often gives 1,024: to accept would fail there, again and again."""
    process = subprocess.Popen(
        [
            *("prlimit", "--nofile=64:4096", sys.executable, "-m", "exporter", "serve"),
            *("--web.listen-address=127.0.0.1:0", "--backend=simulated"),
            "--simulator.url=http://127.0.0.1:1",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = next(line for line in process.stderr if "listening on" in line)
        door = Door.__new__(Door)
        door.port, door.scheme = int(said.rpartition(":")[2]), "http"
        with clients(door, 200):
            assert door.get("/-/healthy")[0] == 200
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0
