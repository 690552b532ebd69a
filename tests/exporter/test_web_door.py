"""The exporter behind its door: what the web configuration does to its own pages."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from exporter.page import Page
from exporter.web.config_rows import config_rows
from exporter.web.release import ReleaseEndpoint
from serving.config import WebConfig
from serving.guard import Guard
from serving.live import LiveConfig
from tests.exporter.fakes import Bench, FakeClock
from tests.exporter.web_page import PASSWORD, application
from tests.serving.door import HASH, SERVER, Door, ask, basic, clients

USERS = {"alice": HASH}
MINE = "gpu_exporter_web_"


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/api/gpus", "/-/healthy", "/-/ready", "/nothing"]
)
def test_every_path_needs_the_password(path) -> None:
    guard = Guard(application(), lambda: WebConfig(users=USERS), FakeClock(), PASSWORD)
    assert ask(guard, path)[0] == 401
    assert ask(guard, path, authorization=basic("alice:secret"))[0] in {200, 404}


def test_a_scrape_tells_what_of_the_web_configuration_is_in_force(tmp_path: Path) -> None:
    def series() -> dict[str, float]:
        lines = page.render()[0].decode().splitlines()
        return {n: float(v) for n, v in (one.split() for one in lines if one.startswith(MINE))}

    path = tmp_path / "web.yml"
    path.write_text(f"tls_server_config:\n{SERVER}")
    page = Page(Bench(gpus=1).store)
    page.add("web_config", partial(config_rows, LiveConfig(path)))
    before = series()
    assert before[f"{MINE}config_last_reload_successful"] == 1
    # The certificates of the tests are good until 2120.
    assert before[f"{MINE}certificate_expiry_timestamp_seconds"] == 4_733_510_400
    path.write_text("tls_server_config: [")
    after = series()
    assert after == before | {f"{MINE}config_last_reload_successful": 0}


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
