"""A reload takes in all of a good configuration and nothing of a bad one, and says so."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from remediator.app import prepare, web_application
from remediator.cli import main
from remediator.config import load
from remediator.config.changes import between
from remediator.errors import ConfigError, RemediatorError
from remediator.reload import Reloader, ReloadState
from remediator.store import Store
from remediator.web.auth import load_identities
from tests.remediator.edge.support import (
    GPU,
    SERVICE,
    TOKENS,
    ExporterStandIn,
    InProcess,
    RealServer,
    alert,
    in_process,
    write_config,
)
from tests.waiting import poll


@dataclass
class Reloadable:
    """A remediator in this process, and how its file is changed and read again."""

    made: InProcess
    folder: Path
    reloader: Reloader
    state: ReloadState
    over: dict[str, Any]

    def write(self, **over: Any) -> None:
        write_config(self.folder, **{**self.over, **over})

    def reload(self, **over: Any) -> list[str]:
        self.write(**over)
        return self.reloader.reload("a test")

    def records(self, event: str) -> list[dict[str, Any]]:
        with self.made.store.reading() as tx:
            return [dict(r.record) for r in tx.audit_records() if r.record["event"] == event]

    def call(self, method: str, path: str, role: str | None = "operate") -> Any:
        return getattr(self.made.client(role), method)(path)


@pytest.fixture
def running(tmp_path: Path, exporter: ExporterStandIn) -> Iterator[Reloadable]:
    over: dict[str, Any] = {"exporter": {"url": exporter.url}, "services": [SERVICE]}
    with in_process(tmp_path, **over) as made:
        state = ReloadState(True, made.clock.now())
        identities = load_identities(made.config.web)
        holder: list[Reloader] = []

        def reload(by: str) -> list[str]:
            return holder[0].reload(by)

        app = web_application(made.remediator, identities, reload, state)
        object.__setattr__(made, "app", app)
        reloader = Reloader(
            made.config,
            lambda: load(tmp_path / "remediator.yml"),
            lambda new: prepare(made.remediator, app, identities, new),
            made.store,
            state,
            made.clock.now,
        )
        holder.append(reloader)
        yield Reloadable(made, tmp_path, reloader, state, over)
        made.remediator.worker.stop()


def test_another_mode_other_limits_and_windows_hold_at_once(
    running: Reloadable, exporter: ExporterStandIn
) -> None:
    made = running.made
    exporter.gpu |= {"temperature": 84.0, "timestamp": made.clock.now()}
    made.deliver(alert(starts=_rfc3339(made.clock.now() - 5)))
    made.decide_all()
    assert [r["reason"] for r in running.records("decision")] == ["mode_observe"]
    window = {"name": "now", "start": "00:00", "end": "24:00"}
    changes = running.reload(mode="auto", windows=[window], limits={"cooldown": "2m"})
    assert set(changes) == {
        "limits.cooldown: 60.0 -> 120.0",
        "mode: observe -> auto",
        "windows.now: none -> there",
    }
    with made.store.reading() as tx:
        assert tx.episodes.due(made.clock.now()), "what waits is decided anew"
    made.decide_all()
    assert [r["reason"] for r in running.records("decision")][1:] == ["maintenance_window"]
    (record,) = running.records("config_reloaded")
    assert record["data"] == {"by": "a test", "changes": changes}


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"mode": "automatic"}, "must be one of"),
        ({"modes": "auto"}, "unknown key"),
        ({"playbooks": {"cool-down": {"alerts": ["GPUHang"]}}}, "both answer"),
        ({"services": [{**SERVICE, "driver": "olama"}]}, "olama"),
        ({"windows": [{"name": "w", "start": "22:00", "end": "06:00", "playbooks": ["x"]}]}, "x"),
        ({"state_dir": "/var/lib/elsewhere"}, "state_dir cannot change"),
        ({"audit": {"key_file": "/elsewhere"}}, "cannot change while"),
        ({"alertmanager": {"urls": ["http://127.0.0.1:9093"]}}, "alertmanager.urls cannot"),
    ],
)
def test_what_cannot_be_taken_in_changes_nothing(
    running: Reloadable, over: dict[str, Any], said: str
) -> None:
    before = running.made.remediator.world.snapshot()
    running.made.clock.seconds += 100
    with pytest.raises(RemediatorError, match=said):
        running.reload(**{"mode": "auto", **over})
    world = running.made.remediator.world
    assert (world.config, world.services) == (before.config, before.services)
    assert len(running.records("config_rejected")) == 1
    assert (running.state.successful, running.made.clock.now() - running.state.succeeded_at) == (
        False,
        100,
    )
    text = running.call("get", "/metrics", None).text
    assert "remediator_config_last_reload_successful 0.0" in text
    running.reload()
    assert "remediator_config_last_reload_successful 1.0" in (
        running.call("get", "/metrics", None).text
    )


def test_the_listen_address_cannot_change(running: Reloadable) -> None:
    web = {"listen_address": "127.0.0.1:9", "tokens": _tokens(running.folder)}
    with pytest.raises(ConfigError, match=r"web\.listen_address cannot change"):
        running.reload(web=web)


def test_a_store_that_cannot_be_written_keeps_the_old_one(
    running: Reloadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RemediatorError("disk full")

    monkeypatch.setattr(running.made.store, "transaction", full)
    with pytest.raises(RemediatorError):
        running.reload(mode="auto")
    assert running.made.remediator.world.config.mode == "observe"


def test_services_come_go_and_stay_what_they_were(running: Reloadable) -> None:
    world = running.made.remediator.world
    before = world.services["ollama"]
    second = {**SERVICE, "name": "second", "endpoint": "http://127.0.0.1:8"}
    running.reload(services=[SERVICE, second])
    assert set(world.services) == {"ollama", "second"}
    assert world.services["ollama"] is before, "what it has learnt stays"
    names = [one["name"] for one in running.call("get", "/api/v1/services").json["services"]]
    assert names == ["ollama", "second"]
    running.reload(services=[{**SERVICE, "endpoint": "http://127.0.0.1:7"}])
    assert set(world.services) == {"ollama"}
    assert world.services["ollama"].config.endpoint == "http://127.0.0.1:7"


def test_a_token_may_be_exchanged(running: Reloadable) -> None:
    assert running.call("get", "/api/v1/runs", "read").status_code == 200
    other = running.folder / "other.token"
    other.write_text("another-token-" + "y" * 20 + "\n")
    web = {
        "listen_address": "127.0.0.1:0",
        "tokens": {**_tokens(running.folder), "read": str(other)},
    }
    running.reload(web=web)
    assert running.call("get", "/api/v1/runs", "read").status_code == 401
    reply = running.made.app.test_client().get(
        "/api/v1/runs", headers={"Authorization": "Bearer another-token-" + "y" * 20}
    )
    assert reply.status_code == 200


def test_another_token_in_the_same_file_is_taken_in_and_told_without_it(
    running: Reloadable,
) -> None:
    Path(_tokens(running.folder)["operate"]).write_text("another-token-" + "z" * 20 + "\n")
    reload = running.reloader.reload
    assert reload("a test") == ["web.tokens.operate: another token"]
    assert running.call("get", "/api/v1/runs").status_code == 401
    (record,) = running.records("config_reloaded")
    assert record["severity"] == "warning"
    assert "zzz" not in json.dumps(record)
    assert reload("a test") == []


def test_who_operates_may_reload_over_http(running: Reloadable) -> None:
    running.write(mode="auto")
    for role, status in ((None, 401), ("webhook", 403), ("read", 403)):
        assert running.call("post", "/-/reload", role).status_code == status
    assert running.call("post", "/-/reload").json == {
        "reloaded": True,
        "changes": ["mode: observe -> auto"],
    }
    assert running.records("config_reloaded")[0]["data"]["by"] == "the operate token"
    running.write(mode="nonsense")
    reply = running.call("post", "/-/reload")
    assert (reply.status_code, "stays as it was" in reply.json["error"]) == (409, True)


def test_no_secret_is_in_what_is_said(running: Reloadable) -> None:
    secret = "hunter2-hunter2"
    manager = {**SERVICE["manager"], "environment": {"API_KEY": secret}}
    with_secret = {**SERVICE, "manager": manager, "options": {}}
    changes = running.reload(services=[with_secret])
    assert any("manager" in line for line in changes)
    with pytest.raises(RemediatorError):
        running.reload(services=[{**with_secret, "start_grace": secret}])
    everything = json.dumps([running.records(e) for e in ("config_reloaded", "config_rejected")])
    assert secret not in everything + "".join(changes)


def test_the_difference_names_each_value(tmp_path: Path) -> None:
    old = load(write_config(tmp_path, services=[SERVICE]))
    new = load(
        write_config(tmp_path, services=[], gpus={"control": "none", "inventory": [GPU, "GPU-2"]})
    )
    assert between(old, old) == []
    assert between(old, new) == [
        f"gpus.inventory: {GPU} -> {GPU}, GPU-2",
        "services.ollama: there -> none",
    ]


def test_what_keeps_it_back_is_on_the_page_in_the_api_and_in_the_metrics(
    running: Reloadable,
) -> None:
    window = {"name": "always on", "start": "00:00", "end": "24:00"}
    assert "nothing keeps it back" in running.call("get", "/", None).text
    running.reload(
        windows=[window], gpus={"control": "none", "inventory": [GPU], "opted_out": [GPU]}
    )
    running.made.config.kill_switch.touch()
    running.made.client("operate").post("/api/v1/pause", json={"why": "<b>a secret reason</b>"})
    page = running.call("get", "/", None).text
    for said in ("kill switch is pulled", "paused", "a maintenance window is open"):
        assert said in page
    assert "secret reason" not in page, "the page is open to everybody"
    status = running.call("get", "/api/v1/status", "read").json
    assert (status["mode"], status["paused"]) == ("observe", "<b>a secret reason</b>")
    assert "KILL" in status["kill_switch"]
    assert [one["name"] for one in status["windows"]] == ["always on"]
    assert status["opted_out"] == [f"gpu:{GPU}"]
    assert running.call("get", "/api/v1/status", None).status_code == 401
    metrics = running.call("get", "/metrics", None).text
    assert "remediator_kill_switch 1.0" in metrics
    assert 'remediator_maintenance_window_open{window="always on"} 1.0' in metrics


def test_check_says_what_keeps_it_back(
    cli: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    store: Store,
    exporter: ExporterStandIn,
) -> None:
    window = {"name": "always", "start": "00:00", "end": "24:00"}
    path = write_config(
        tmp_path,
        exporter={"url": exporter.url},
        windows=[window],
        gpus={"control": "none", "inventory": [GPU], "opted_out": [GPU]},
    )
    (tmp_path / "state" / "KILL").touch()
    code, out, _ = cli("check", f"--config.file={path}")
    assert code == 1
    first, second, *_ = out.splitlines()
    assert first.startswith("mode observe; KILL SWITCH pulled (")
    assert "window always OPEN for another" in first
    assert second == f"opted out: gpu:{GPU}"
    assert store


def test_a_real_server_reloads_on_sighup_and_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = RealServer(tmp_path)
    try:
        raw = yaml.safe_load(server.config.read_text())
        server.config.write_text(yaml.safe_dump({**raw, "mode": "auto"}))
        server.process.send_signal(signal.SIGHUP)
        poll(lambda: _mode(server) == "auto", "the file was read again")
        server.config.write_text(yaml.safe_dump({**raw, "mode": "wrong"}))
        server.process.send_signal(signal.SIGHUP)
        failed = b"remediator_config_last_reload_successful 0.0"
        poll(lambda: failed in server.call("GET", "/metrics").body, "it is said")
        assert _mode(server) == "auto"
        server.config.write_text(yaml.safe_dump({**raw, "mode": "approve"}))
        assert main(["reload", f"--config.file={server.config}"]) == 0
        assert "mode: auto -> approve" in capsys.readouterr().out
    finally:
        server.stop()


def _mode(server: RealServer) -> str:
    return str(json.loads(server.call("GET", "/api/v1/status", role="read").body)["mode"])


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _tokens(folder: Path) -> dict[str, str]:
    return {role: str(folder / f"{role}.token") for role in TOKENS}
