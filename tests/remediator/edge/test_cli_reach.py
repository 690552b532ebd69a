"""Who operates at night reaches the server with a configuration that cannot be used, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from remediator.cli import reach
from remediator.config import WebConfig
from remediator.errors import ConfigError
from tests.remediator.edge.support import GPU, RealServer, add_lease, in_process, token_files

Cli = Callable[..., tuple[int, str, str]]

# One that says something wrong, and some that are no YAML at all.
BROKEN = [
    "mode: automatic\n{web}",
    "{web}modes: [auto\n",
    "services:\n- name: a\n   driver: b\n{web}",
    "limits: {{}}\nlimits: {{}}\n{web}",
    "\tmode: auto\n{web}",
]


def web_of(server: RealServer) -> str:
    web = {"listen_address": f"127.0.0.1:{server.port}", "tokens": token_files(server.folder)}
    return str(yaml.safe_dump({"web": web}))


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPU_REMEDIATOR_WEB_OPERATE_TOKEN_FILE", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """One for this module, with a cap on its card."""
    folder = tmp_path_factory.mktemp("server")
    with in_process(folder) as before:
        add_lease(before.store)
    # Made with another key than the server would make.
    (folder / "state" / "audit.key").write_bytes(b"k" * 64)
    running = RealServer(folder)
    yield running
    running.stop()


@pytest.fixture
def broken(server: RealServer, tmp_path: Path) -> Path:
    path = tmp_path / "broken.yml"
    path.write_text(server.config.read_text().replace("mode: observe", "mode: automatic"))
    return path


@pytest.mark.parametrize("text", BROKEN)
def test_the_server_is_reached_by_what_web_says(
    cli: Cli, server: RealServer, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "broken.yml"
    path.write_text(text.format(web=web_of(server)))
    code, out, err = cli("pause", "at night", f"--config.file={path}")
    assert (code, out.startswith("paused"), err.count("\n")) == (0, True, 1)
    assert err.startswith("gpu-remediator: warning: ")
    assert err.endswith(f"running server on 127.0.0.1:{server.port}, as its `web` says\n")
    assert b"remediator_paused 1.0" in server.call("GET", "/metrics").body
    assert cli("resume", f"--config.file={path}")[0] == 0
    assert b"remediator_paused 0.0" in server.call("GET", "/metrics").body


@pytest.mark.parametrize("text", [None, "", "web: [\n", "web: {client: {url: nowhere}}\n"])
def test_where_the_file_is_no_help_the_flags_are(
    cli: Cli, server: RealServer, tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "remediator.yml"
    if text is not None:
        path.write_text(text)
    code, out, err = cli("pause", f"--config.file={path}")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "give --web.operate-token-file=FILE, and --web.listen-address=HOST:PORT" in err
    assert "127.0.0.1:9941" in err
    flags = (
        f"--web.operate-token-file={server.folder / 'operate.token'}",
        f"--web.listen-address=127.0.0.1:{server.port}",
    )
    code, _, err = cli("resume", f"--config.file={path}", *flags)
    assert (code, err.endswith(f"asks the running server on 127.0.0.1:{server.port}\n")) == (
        0,
        True,
    )


def test_the_flag_replaces_the_token_of_a_good_file_and_its_user(
    cli: Cli, server: RealServer, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.token"
    wrong.write_text("another-token-that-is-long")
    flags = ("resume", f"--config.file={server.config}")
    assert cli(*flags, f"--web.operate-token-file={wrong}")[0] == 1
    assert cli(*flags)[0] == 0
    web = yaml.safe_load(web_of(server))["web"]
    user = {"username": "ann", "password_file": str(tmp_path / "none")}
    path = tmp_path / "broken.yml"
    path.write_text(yaml.safe_dump({"mode": "automatic", "web": {**web, "client": user}}))
    flags = ("resume", f"--config.file={path}")
    code, _, err = cli(*flags)
    assert (code, "cannot read the token file" in err) == (1, True)
    assert cli(*flags, f"--web.operate-token-file={web['tokens']['operate']}")[0] == 0


def test_the_commands_that_need_the_file_still_end(cli: Cli, broken: Path) -> None:
    for command in (("check",), ("check-config",), ("runs",), ("audit", "tail"), ("serve",)):
        code, out, err = cli(*command, f"--config.file={broken}")
        assert (code, out, "mode must be one of" in err, "warning" in err) == (1, "", True, False)


def test_a_broken_file_is_refused_by_the_server_which_keeps_the_old_one(
    cli: Cli, server: RealServer
) -> None:
    good = server.config.read_text()
    flag = f"--config.file={server.config}"
    server.config.write_text(good.replace("mode: observe", "mode: automatic"))
    try:
        code, out, err = cli("reload", flag)
    finally:
        server.config.write_text(good)
    assert (code, out) == (1, "")
    warning, refused = err.splitlines()
    assert warning.startswith("gpu-remediator: warning: ")
    assert "mode must be one of" in refused
    assert refused.endswith("the configuration stays as it was")
    page = server.call("GET", "/metrics").body
    assert b"remediator_config_last_reload_successful 0.0" in page
    ((events,),) = server.rows(
        "SELECT COUNT(*) FROM audit WHERE json_extract(record, '$.event') = 'config_rejected'"
    )
    assert events == 1
    assert cli("reload", flag)[:2] == (0, "reloaded: 0 change(s)\n")


def test_an_undo_is_asked_of_the_server_and_not_done_here(
    cli: Cli, server: RealServer, broken: Path
) -> None:
    code, out, _ = cli("undo", GPU[:10], f"--config.file={broken}")
    assert (code, out.startswith(f"{GPU}: asked for")) == (0, True)
    flags = (f"--config.file={broken}", "--web.listen-address=127.0.0.1:9")
    code, out, err = cli("undo", "--all", *flags)
    assert (code, out, "no gpu-remediator listens on 127.0.0.1:9" in err) == (1, "", True)
    assert "an undo without one needs the configuration" in err


@pytest.mark.parametrize(
    "text",
    [
        "web: {listen_address: '127.0.0.1:1'}\nweb: {listen_address: '127.0.0.1:2'}\n",
        "services:\n  web: {listen_address: '127.0.0.1:1'}\n",
        "web: {listen_address: 7}\n",
        "web: {client: {url: 'https://ann:secret@127.0.0.1:1'}}\n",
    ],
)
def test_what_is_not_clear_is_not_guessed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "remediator.yml"
    path.write_text(text)
    web, warning = reach.without_configuration(path, ConfigError("no"), None, tmp_path / "token")
    assert web.listen_address == WebConfig().listen_address
    assert "127.0.0.1:9941" in warning
    assert "secret" not in warning
