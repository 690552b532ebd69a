"""The file of `--web.config.file`: what is understood, and what is said about the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving import tls as web_tls
from serving.config import RateLimit, parse
from serving.errors import ConfigError
from serving.live import LiveConfig
from tests.serving.door import CA, HASH, SERVER, TLS

HERE = Path("/etc/served")
BOTH = "cert_file: a, key_file: b"


def read(text: str):
    return parse(text.encode(), HERE)


@pytest.mark.parametrize("text", ["", "# nothing", "tls_server_config:", "basic_auth_users: {}"])
def test_what_says_nothing_is_open_and_plain(text) -> None:
    config = read(text)
    assert (config.tls, config.users, config.headers, config.rate_limit) == (None, {}, {}, None)


def test_paths_are_relative_to_the_file() -> None:
    tls = read("tls_server_config: {cert_file: own/cert.pem, key_file: /run/key.pem}").tls
    assert tls.files == (HERE / "own" / "cert.pem", Path("/run/key.pem"))
    assert (tls.min_version, tls.max_version, tls.client_auth_type) == (
        "TLS12",
        "TLS13",
        "NoClientCert",
    )
    assert tls.prefer_server_cipher_suites


def test_users_headers_and_limit() -> None:
    config = read(
        f"basic_auth_users: {{alice: {HASH}, 0123: {HASH}}}\n"
        "http_server_config:\n  http2: false\n  headers:\n    X-Frame-Options: deny\n"
        "    X-XSS-Protection: 1\n    Content-Security-Policy: ''\n"
        "rate_limit: {interval: 1m30.5s, burst: 3}\n"
    )
    assert set(config.users) == {"alice", "0123"}
    assert config.headers == {"X-Frame-Options": "deny", "X-XSS-Protection": "1"}
    assert config.rate_limit == RateLimit(90.5, 3)


def test_an_interval_of_nothing_is_no_limit() -> None:
    assert read("rate_limit: {interval: 0, burst: 0}").rate_limit is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls_server_confg: {}", "did you mean 'tls_server_config'"),
        ("tls_server_config: {cert_filse: server.crt}", "tls_server_config.cert_filse"),
        ("tls_server_config: {cert_filse: server.crt}", "did you mean 'cert_file'"),
        ("http_server_config: {headers: {Content-Type: foo}}", "headers.Content-Type: unknown"),
        ("http_server_config: {headers: {X-Frame-Options: foo}}", "deny or sameorigin"),
        ("http_server_config: {headers: {X-Content-Type-Options: sniff}}", "nosniff"),
        ('http_server_config: {headers: {X-XSS-Protection: "a\\r\\nb"}}', "no header can"),
        ("http_server_config: {http2: maybe}", "expected true or false"),
        ("tls_server_config: {cert_file: a}", "key_file: is missing"),
        ("tls_server_config: {cert_file: '', key_file: a}", "cert_file: is missing"),
        ("tls_server_config: {min_version: TLS13}", "cert_file: is missing"),
        ("tls_server_config: {client_auth_type: x}", "there is no 'x'"),
        (f"tls_server_config: {{{BOTH}, cert: c}}", "give this or cert_file"),
        (f"tls_server_config: {{{BOTH}, min_version: TLS111}}", "did you mean 'TLS11'"),
        (f"tls_server_config: {{{BOTH}, curve_preferences: [CurveP257]}}", "CurveP25"),
        (f"tls_server_config: {{{BOTH}, cipher_suites: [RC4]}}", "there is no 'RC4'"),
        (f"tls_server_config: {{{BOTH}, cipher_suites: RC4}}", "expected a list"),
        (f"tls_server_config: {{{BOTH}, cert_file: c}}", "cert_file: stands there twice"),
        ("basic_auth_users: {john: doe}", "basic_auth_users.john: expected a bcrypt hash"),
        (f"basic_auth_users: {{a: {HASH}, a: {HASH}}}", "a: stands there twice"),
        (f"basic_auth_users: {{'a:b': {HASH}}}", "has no colon"),
        ("basic_auth_users: [alice]", "expected a mapping"),
        ("rate_limit: {interval: 1s}", "burst: must be 1 or more"),
        ("rate_limit: {interval: 1, burst: 1}", "expected a duration"),
        ("rate_limit: {interval: 1s, burst: many}", "expected a count"),
        ("hWkNKCp3fvIx3jKnsaBI", "expected a mapping"),
        ("? [a]\n: b", "is not YAML"),
        ("a: [", "is not YAML (line 1)"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_what_is_not_understood_is_said_with_its_key(text, said) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert said in str(caught.value)


def test_no_message_repeats_a_secret() -> None:
    for text in ("basic_auth_users: {john: hunter2}", "tls_server_config: {key: hunter2, x: y}"):
        with pytest.raises(ConfigError) as caught:
            read(text)
        assert "hunter2" not in str(caught.value)
    assert HASH not in repr(read(f"basic_auth_users: {{alice: {HASH}}}"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("  client_auth_type: RequestClientCert\n", "choose NoClientCert"),
        ("  client_auth_type: RequireAnyClientCert\n", "choose RequireAndVerifyClientCert"),
        (f"  client_ca_file: {CA}\n", "no effect without client_auth_type"),
        ("  client_allowed_sans: [a]\n", "no effect without client_auth_type"),
        ("  min_version: TLS10\n", "RFC 8996"),
        ("  min_version: TLS13\n  max_version: TLS12\n", "leaves no version"),
        ("  max_version: TLS12\n  cipher_suites: [TLS_AES_128_GCM_SHA256]\n", "leaves no version"),
        ("  curve_preferences: [CurveP256, X25519]\n", "give one"),
        (
            "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: nothing.pem\n",
            "No such file",
        ),
        (
            f"  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {TLS}/make\n",
            "no certificate in PEM",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(tmp_path, more, said) -> None:
    path = tmp_path / "web.yml"
    path.write_text(f"tls_server_config:\n{SERVER}{more}")
    with pytest.raises(ConfigError) as caught:
        LiveConfig(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("server.pem", "renewed.key", "mismatch"),
        ("server.key", "server.key", "PEM"),
        ("server.pem", "server.pem", "PEM"),
        ("nothing", "server.key", "cannot read"),
        ("server.pem", "nothing", "cannot read"),
    ],
)
def test_a_certificate_that_is_none_is_refused(tmp_path, cert, key, said) -> None:
    path = tmp_path / "web.yml"
    path.write_text(f"tls_server_config: {{cert_file: {TLS}/{cert}, key_file: {TLS}/{key}}}")
    with pytest.raises(ConfigError, match=said):
        LiveConfig(path)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path) -> None:
    locked = tmp_path / "locked.key"
    locked.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
        "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhT\n"
        "-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    path = tmp_path / "web.yml"
    path.write_text(f"tls_server_config: {{cert_file: {TLS}/server.pem, key_file: {locked}}}")
    with pytest.raises(ConfigError, match="no password"):
        LiveConfig(path)


def test_protection_is_not_switched_off_by_a_change_of_the_file(tmp_path, caplog) -> None:
    path = tmp_path / "web.yml"
    path.write_text(f"basic_auth_users: {{alice: {HASH}, bob: {HASH}}}")
    live = LiveConfig(path)
    path.write_text("")
    assert set(live.current().config.users) == {"alice", "bob"}
    assert set(live.current().config.users) == {"alice", "bob"}
    assert caplog.text.count("by a restart only") == 1
    path.write_text(f"basic_auth_users: {{bob: {HASH}}}")
    assert set(live.current().config.users) == {"bob"}


def test_a_file_that_goes_away_while_it_is_read_changes_nothing(tmp_path, monkeypatch) -> None:
    def gone(_settings):
        raise FileNotFoundError(2, "No such file or directory")

    path = tmp_path / "web.yml"
    path.write_text(f"tls_server_config:\n{SERVER}")
    live = LiveConfig(path)
    first = live.current()
    with monkeypatch.context() as patched:
        patched.setattr(web_tls, "build", gone)
        path.write_text(f"tls_server_config:\n{SERVER}  min_version: TLS13\n")
        assert live.current() is first
    assert live.current().config.tls.min_version == "TLS13"


def test_files_that_do_not_answer_leave_in_force_what_was_read(
    tmp_path, monkeypatch, caplog, eventually
) -> None:
    path, pipe = tmp_path / "web.yml", tmp_path / "pipe"
    path.write_text(f"basic_auth_users: {{alice: {HASH}}}")
    live = LiveConfig(path)
    assert live.state().is_current
    monkeypatch.setattr("serving.live._PATIENCE_SECONDS", 0.01)
    # Reading it waits for somebody who writes, as one of a server that is gone would.
    os.mkfifo(pipe)
    pipe.replace(path)
    for _ in range(3):
        assert set(live.current().config.users) == {"alice"}
    assert not live.state().is_current
    assert caplog.text.count("does not answer") == 1
    monkeypatch.undo()
    path.rename(pipe)
    path.write_text(f"basic_auth_users: {{bob: {HASH}}}")
    # Once the old look is over, a new one finds what there is now.
    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
    eventually(lambda: set(live.current().config.users) == {"bob"})
    assert live.state().is_current
