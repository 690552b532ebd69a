"""The configuration: every mistake is one sentence that says where, and nothing starts on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.config import load
from remediator.errors import ConfigError
from tests.remediator.edge.support import GPU, token_files, write_config

Cli = Callable[..., tuple[int, str, str]]

SERVICE: dict[str, Any] = {
    "name": "ollama",
    "driver": "ollama",
    "endpoint": "http://127.0.0.1:11434",
    "manager": {"type": "process", "command": ["/usr/bin/true"]},
    "gpus": [GPU],
}

# What is laid over a good configuration, and what the one line has to name.
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown key": ({"modee": "auto"}, ("'modee'", "did you mean 'mode'?")),
    "unknown nested key": ({"web": {"listen_adress": "x"}}, ("web", "'listen_address'")),
    "unknown key like none": ({"zzzzzz": 1}, ("'zzzzzz'", "known keys: alertmanager, allow")),
    "unknown service key": ({"services": [{**SERVICE, "modles": []}]}, ("services[0]", "'models'")),
    "unknown key number": ({"timing": {1: 2}}, ("timing", "'1'")),
    "mode": ({"mode": "automatic"}, ("mode", "observe", "'automatic'")),
    "mode true": ({"mode": True}, ("mode", "True")),
    "allow": ({"allow": ["service_restart", "reboot"]}, ("allow[1]", "gpu_reset")),
    "allow text": ({"allow": "service_restart"}, ("allow", "list")),
    "state_dir": ({"state_dir": 5}, ("state_dir", "path")),
    "state_dir missing": ({"state_dir": None}, ("state_dir", "path")),
    "web list": ({"web": []}, ("web", "mapping")),
    "body text": ({"web": {"max_body_bytes": "4M"}}, ("web.max_body_bytes", "whole number")),
    "body true": ({"web": {"max_body_bytes": True}}, ("web.max_body_bytes", "whole number")),
    "body zero": ({"web": {"max_body_bytes": 0}}, ("web.max_body_bytes", "1024")),
    "margin NaN": ({"timing": {"cool_margin_celsius": float("nan")}}, ("cool_margin", "nan")),
    "margin inf": ({"timing": {"cool_margin_celsius": float("inf")}}, ("cool_margin", "inf")),
    "margin negative": ({"timing": {"cool_margin_celsius": -1}}, ("cool_margin", "negative")),
    "duration number": ({"timing": {"hold_down": 300}}, ("timing.hold_down", "5m")),
    "duration unit": ({"timing": {"hold_down": "5 min"}}, ("timing.hold_down", "5m")),
    "duration sign": ({"timing": {"settling": "-5s"}}, ("timing.settling", "5m")),
    "duration huge": ({"timing": {"settling": "9" * 400 + "s"}}, ("timing.settling",)),
    "hold-down zero": ({"timing": {"hold_down": "0s"}}, ("timing.hold_down", "1s and 1d")),
    "hold-down long": ({"timing": {"hold_down": "2d"}}, ("timing.hold_down", "1s and 1d")),
    "probe interval": ({"timing": {"probe_interval": "0s"}}, ("timing.probe_interval", "0s")),
    "exporter timeout": ({"exporter": {"timeout": "0s"}}, ("exporter.timeout", "0s")),
    "limit negative": ({"limits": {"attempts_per_hour": -1}}, ("limits.attempts_per_hour",)),
    "limit float": ({"limits": {"attempts_per_hour": 1.5}}, ("limits.attempts_per_hour", "whole")),
    "exporter url": ({"exporter": {"url": "127.0.0.1:9940"}}, ("exporter.url", "http")),
    "exporter file": ({"exporter": {"url": "file:///etc/passwd"}}, ("exporter.url", "http")),
    "exporter bracket": ({"exporter": {"url": "http://[::1"}}, ("exporter.url", "http")),
    "exporter port": ({"exporter": {"url": "http://x:99999"}}, ("exporter.url", "http")),
    "exporter user": ({"exporter": {"url": "http://me:secret@x"}}, ("exporter.url", "user")),
    "gpu uuid": ({"gpus": {"inventory": ["$(reboot)"]}}, ("gpus.inventory", "uuid")),
    "gpu twice": ({"gpus": {"inventory": [GPU, GPU]}}, ("gpus.inventory", "twice")),
    "gpu word": ({"gpus": {"inventory": "all"}}, ("gpus.inventory", "'all'")),
    "control": ({"gpus": {"control": "sudo"}}, ("gpus.control", "nvml")),
    "simulated": ({"gpus": {"control": "simulated"}}, ("gpus.simulator_url",)),
    "listen": ({"web": {"listen_address": "9941"}}, ("HOST:PORT",)),
    "listen port": ({"web": {"listen_address": "127.0.0.1:99999"}}, ("HOST:PORT",)),
    "listen digits": ({"web": {"listen_address": "127.0.0.1:²"}}, ("HOST:PORT",)),
    "open without token": (
        {"web": {"listen_address": "0.0.0.0:9941"}},
        ("0.0.0.0:9941", "web.tokens.webhook", "127.0.0.1"),
    ),
    "open v6 without token": ({"web": {"listen_address": "[::]:9941"}}, ("web.tokens.webhook",)),
    "open host without token": ({"web": {"listen_address": ":9941"}}, ("web.tokens.webhook",)),
    "service name": ({"services": [{**SERVICE, "name": "a b"}]}, ("services", "'a b'")),
    "service twice": ({"services": [SERVICE, SERVICE]}, ("services", "ollama")),
    "service no driver": ({"services": [{"name": "x"}]}, ("services[0]", "'driver'")),
    "service driver": (
        {"services": [{**SERVICE, "driver": "olama"}]},
        ("services.ollama.driver must be one of ", "'olama'", "did you mean 'ollama'?"),
    ),
    "service driver like none": (
        {"services": [{**SERVICE, "driver": "zzz"}]},
        ("services.ollama.driver must be one of llamacpp, ollama, ", "vllm, not 'zzz'"),
    ),
    "service gpu number": (
        {"services": [{**SERVICE, "gpus": [0]}]},
        ("services[0].gpus must be all, or a list of GPU uuids, not [0]",),
    ),
    "gpu number": (
        {"gpus": {"inventory": [0]}},
        ("gpus.inventory must be auto, or a list of GPU uuids, not [0]",),
    ),
    "service gpus": ({"services": [{**SERVICE, "gpus": ["x y"]}]}, ("services.ollama.gpus",)),
    "manager": (
        {"services": [{**SERVICE, "manager": {"type": "procss"}}]},
        ("manager.type must be one of docker, kubernetes, process", "did you mean 'process'?"),
    ),
    "manager untyped": ({"services": [{**SERVICE, "manager": {}}]}, ("manager", "'type'")),
    "listen host": ({"web": {"listen_address": "127.0.0.1"}}, ("HOST:PORT",)),
    "manager relative": (
        {"services": [{**SERVICE, "manager": {"type": "process", "command": ["ollama"]}}]},
        ("services.ollama.manager.command", "absolute"),
    ),
    "manager shell line": (
        {"services": [{**SERVICE, "manager": {"type": "process", "command": "ollama serve"}}]},
        ("services.ollama.manager.command", "list"),
    ),
    "playbook": ({"playbooks": {"throttle-gpu": 5}}, ("playbooks.throttle-gpu", "mapping")),
    "playbook key": (
        {"playbooks": {"throttle-gpu": {"alert": []}}},
        ("playbooks.throttle-gpu", "'alerts'"),
    ),
    "playbook two": (
        {"playbooks": {"cool-down": {"alerts": ["GPUTemperatureWarning"]}}},
        ("GPUTemperatureWarning", "throttle-gpu", "cool-down"),
    ),
    "playbook misspelt": (
        {"playbooks": {"throtle-gpu": {"mode": "auto"}}},
        ("playbooks.throtle-gpu", "is shipped: did you mean 'throttle-gpu'?"),
    ),
    "playbook new": ({"playbooks": {"mine": {"alerts": ["X"]}}}, ("playbooks.mine", "target")),
}


def one_line(err: str) -> str:
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("gpu-remediator: ")
    return lines[0]


@pytest.mark.parametrize("command", ["check-config", "serve"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_is_one_line_that_names_it(
    cli: Cli, tmp_path: Path, case: str, command: str
) -> None:
    over, named = WRONG[case]
    config = write_config(tmp_path, **over)
    code, out, err = cli(command, f"--config.file={config}")
    assert code == 1
    for piece in named:
        assert piece in one_line(err)
    assert "the configuration is good" not in out


FILES: dict[str, tuple[bytes, str]] = {
    "not YAML": (b"mode: [", "not YAML"),
    "tab": (b"web:\n\tlisten_address: x", "not YAML"),
    "not UTF-8": (b"mode: \xff", "not UTF-8"),
    "a list": (b"- mode", "mapping"),
    "empty": (b"", "state_dir"),
    "a date for a path": (b"state_dir: [2026-99-99]", "state_dir"),
    "deep": (b"[" * 3_000, "not YAML"),
    "a key twice": (b"state_dir: /x\nmode: auto\nmode: observe\n", "'mode'"),
    "a nested key twice": (b"state_dir: /x\nweb: {tokens: {}, tokens: {}}", "'tokens'"),
    "python object": (b"state_dir: !!python/object/apply:os.system ['true']", "not YAML"),
    "endless alias": (b"state_dir: /x\nservices: &a [*a]", "services[0]"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_configuration_is_one_line(cli: Cli, tmp_path: Path, case: str) -> None:
    data, named = FILES[case]
    path = tmp_path / "remediator.yml"
    path.write_bytes(data)
    code, _, err = cli("check-config", f"--config.file={path}")
    assert code == 1
    assert named in one_line(err)


def test_a_password_in_an_address_is_not_told(cli: Cli, tmp_path: Path) -> None:
    path = write_config(tmp_path, exporter={"url": "http://me:hunter2hunter2@x"})
    _, out, err = cli("check-config", f"--config.file={path}")
    assert "exporter.url" in one_line(err)
    assert "hunter2" not in out + err


@pytest.mark.parametrize("name", ["missing.yml", "."])
def test_a_file_that_cannot_be_read_is_one_line(cli: Cli, tmp_path: Path, name: str) -> None:
    code, _, err = cli("serve", f"--config.file={tmp_path / name}")
    assert (code, str(tmp_path) in one_line(err)) == (1, True)
    assert "--config.file" in err


@pytest.mark.parametrize("command", ["check-config", "serve"])
@pytest.mark.parametrize(
    ("role", "content", "named"),
    [
        ("webhook", None, "put the token there, on one line"),
        ("webhook", b"", "at least 16"),
        ("webhook", b"short\n", "at least 16"),
        ("read", b"two words that are long\n", "without spaces"),
        ("operate", b"two-lines-that-are-long\nsecond\n", "one line"),
        ("operate", b"\xff" * 20, "not text"),
        ("read", b"operate-token-xxxxxxxxxxxxxxxxxxxx\n", "same token"),
        ("webhook", b"operate-token-xxxxxxxxxxxxxxxxxxxx\n", "another role"),
        ("webhook", b"read-token-xxxxxxxxxxxxxxxxxxxx\n", "another role"),
    ],
)
def test_an_unusable_secret_is_one_line_without_the_secret(
    cli: Cli, tmp_path: Path, role: str, content: bytes | None, named: str, command: str
) -> None:
    config = write_config(tmp_path)
    path = tmp_path / f"{role}.token"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    code, _, err = cli(command, f"--config.file={config}")
    assert code == 1
    line = one_line(err)
    assert named in line
    assert "xxxx" not in line
    assert not (tmp_path / "state").exists(), "nothing was started"


def test_a_short_audit_key_is_one_line(cli: Cli, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "audit.key").write_text("short")
    code, _, err = cli("serve", f"--config.file={config}")
    assert (code, "audit.key" in one_line(err)) == (1, True)


def test_a_flag_cannot_open_what_the_file_may_not(cli: Cli, tmp_path: Path) -> None:
    config = write_config(tmp_path, web={"listen_address": "127.0.0.1:0"})
    for command in ("serve", "check-config"):
        code, _, err = cli(command, f"--config.file={config}", "--web.listen-address=0.0.0.0:0")
        assert code == 1
        assert "web.tokens.webhook" in one_line(err)
    assert not (tmp_path / "state").exists()


def test_an_environment_variable_is_checked_as_a_flag_is(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    for name, value in (("LOG_LEVEL", "loud"), ("LOG_FORMAT", "xml")):
        with monkeypatch.context() as patch:
            patch.setenv(f"GPU_REMEDIATOR_{name}", value)
            with pytest.raises(SystemExit) as caught:
                cli("check-config", f"--config.file={config}")
            assert caught.value.code == 2
            assert f"GPU_REMEDIATOR_{name}" in capsys.readouterr().err
    monkeypatch.setenv("GPU_REMEDIATOR_WEB_LISTEN_ADDRESS", "0.0.0.0")
    monkeypatch.setenv("GPU_REMEDIATOR_CONFIG_FILE", str(config))
    assert "HOST:PORT" in cli("check-config")[2]


@pytest.mark.parametrize("host", ["203.0.113.1", "a..b"])
def test_an_address_that_is_not_ours_is_one_line(cli: Cli, tmp_path: Path, host: str) -> None:
    web = {"listen_address": f"{host}:9941", "tokens": token_files(tmp_path)}
    code, _, err = cli("serve", f"--config.file={write_config(tmp_path, web=web)}")
    assert (code, host in one_line(err)) == (1, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.8.8"])
def test_only_this_machine_may_come_without_a_token(tmp_path: Path, host: str) -> None:
    config = load(write_config(tmp_path, web={"listen_address": f"{host}:9941"}))
    assert config.web.tokens.webhook is None


def test_with_a_token_others_may_come(tmp_path: Path) -> None:
    web = {"listen_address": "0.0.0.0:9941", "tokens": token_files(tmp_path)}
    assert load(write_config(tmp_path, web=web)).web.listen_address == "0.0.0.0:9941"


def test_what_is_not_said_is_the_safe_choice(tmp_path: Path) -> None:
    path = tmp_path / "remediator.yml"
    path.write_text(f"state_dir: {tmp_path}\n")
    config = load(path)
    assert (config.mode, config.allow, config.services) == ("observe", (), ())
    assert config.web.listen_address == "127.0.0.1:9941"
    assert config.web.tokens.webhook is None


def test_a_bare_off_is_a_mode_and_not_a_truth_value(tmp_path: Path) -> None:
    path = tmp_path / "remediator.yml"
    path.write_text("state_dir: x\nmode: off\n")
    assert load(path).mode == "off"


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10), ("1h30m", 5400), ("1d", 86400)]
)
def test_durations_are_written_as_prometheus_writes_them(
    tmp_path: Path, text: str, seconds: float
) -> None:
    config = load(write_config(tmp_path, timing={"episode_ttl": text, "settling": 0}))
    assert (config.timing.episode_ttl, config.timing.settling) == (seconds, 0)


_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["5m", "auto", "all", "http://[", "127.0.0.1:1", GPU, "2026-01-01"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*SERVICE, "url", "timeout", "tokens", "listen_address", "inventory"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
_KEYS = [
    "state_dir",
    "mode",
    "allow",
    "exporter",
    "gpus",
    "web",
    "audit",
    "services",
    "playbooks",
    "timing",
    "limits",
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "remediator.yml"


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), _VALUE, max_size=4))
def test_any_document_is_a_configuration_or_a_config_error(
    scratch: Path, document: dict[str, Any]
) -> None:
    scratch.write_text(yaml.safe_dump({"state_dir": "x", **document}), encoding="utf-8")
    with contextlib.suppress(ConfigError):
        load(scratch)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_configuration_or_a_config_error(scratch: Path, data: bytes) -> None:
    scratch.write_bytes(b"state_dir: x\n" + data)
    with contextlib.suppress(ConfigError):
        load(scratch)


def test_a_key_whose_children_are_commented_out_is_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "remediator.yml"
    path.write_text(f"state_dir: {tmp_path}\nallow:\nservices:\nplaybooks:\n  # throttle-gpu: …\n")
    config = load(path)
    assert (config.allow, config.services, dict(config.playbooks)) == ((), (), {})
