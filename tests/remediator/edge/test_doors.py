"""Three roles, each by token, by user and password, or by certificate; and how the commands come in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remediator.cli.server import ask
from remediator.config import load
from remediator.config.doors import ClientConfig
from remediator.errors import ConfigError, RemediatorError
from remediator.web import auth as web_auth
from remediator.web.auth import load_identities
from serving.auth import BasicAuth
from serving.channel import CLIENT_NAMES
from tests.remediator.edge.support import (
    TOKENS,
    InProcess,
    alert,
    body,
    in_process,
    token_files,
    write_config,
)
from tests.serving.door import CA, HASH, SERVER, TLS, Door, basic, trusting

USERS = "basic_auth_users: {" + ", ".join(f"{n}: {HASH}" for n in ("am", "grafana", "ann", "eve"))
USERS += "}\n"
VERIFIED = f"tls_server_config:\n{SERVER}  client_auth_type: VerifyClientCertIfGiven\n"
VERIFIED += f"  client_ca_file: {CA}\n"
ROLES = {
    "webhook": {"users": ["am"], "certificates": ["am.example"]},
    "read": {"users": ["grafana"], "certificates": ["scraper.example"]},
    "operate": {"users": ["ann"], "certificates": ["ann@example.org"]},
}
USER_OF = {"webhook": "am", "read": "grafana", "operate": "ann"}
NAME_OF = {role: members["certificates"][0] for role, members in ROLES.items()}


def web(folder: Path, text: str = USERS + VERIFIED, **over: Any) -> dict[str, Any]:
    path = folder / "web.yml"
    path.write_text(text)
    return {
        "listen_address": "127.0.0.1:0",
        "tokens": token_files(folder),
        "config_file": str(path),
        "roles": ROLES,
        **over,
    }


@pytest.fixture
def running(tmp_path: Path) -> Iterator[InProcess]:
    with in_process(tmp_path, web=web(tmp_path)) as found:
        yield found


def shown(way: str, role: str) -> dict[str, Any]:
    """A request's environment with what somebody of that role shows."""
    if way == "token":
        return {"HTTP_AUTHORIZATION": f"Bearer {TOKENS[role]}"}
    if way == "user":
        return {"HTTP_AUTHORIZATION": basic(f"{USER_OF[role]}:secret")}
    return {CLIENT_NAMES: ("other.example", NAME_OF[role])}


def status(running: InProcess, path: str, environ: dict[str, Any]) -> int:
    client = running.app.test_client()
    if path == "/api/v1/alerts":
        data = body(alert())
        return client.post(
            path, data=data, content_type="application/json", environ_overrides=environ
        ).status_code
    method = "POST" if path.endswith(("pause", "resume")) else "GET"
    return client.open(path, method=method, environ_overrides=environ).status_code


ASKED = {"webhook": "/api/v1/alerts", "read": "/api/v1/runs", "operate": "/api/v1/resume"}


@pytest.mark.parametrize("way", ["token", "user", "certificate"])
def test_each_role_may_do_its_own_whichever_way_it_comes(running, way) -> None:
    may = {
        asked: {role: status(running, path, shown(way, role)) for role in ROLES}
        for asked, path in ASKED.items()
    }
    assert may == {
        "webhook": {"webhook": 202, "read": 403, "operate": 403},
        "read": {"webhook": 403, "read": 200, "operate": 200},
        "operate": {"webhook": 403, "read": 403, "operate": 200},
    }


@pytest.mark.parametrize("path", ASKED.values())
def test_who_is_unknown_is_told_what_to_show_and_who_has_no_role_is_refused(running, path) -> None:
    for wrong in ("am:wrong", "nobody:secret", ":", "am"):
        assert status(running, path, {"HTTP_AUTHORIZATION": basic(wrong)}) == 401
    assert status(running, path, {}) == 401
    assert status(running, path, {"HTTP_AUTHORIZATION": "Bearer "}) == 401
    assert status(running, path, {"HTTP_AUTHORIZATION": basic("eve:secret")}) == 403
    assert status(running, path, {CLIENT_NAMES: ("eve.example",)}) == 403
    answer = running.app.test_client().get("/api/v1/runs")
    challenges = answer.headers.getlist("WWW-Authenticate")
    assert [one.partition(" ")[0] for one in challenges] == ["Bearer", "Basic"]


def test_what_a_request_says_outranks_the_certificate_it_came_with(running) -> None:
    both = {**shown("certificate", "webhook"), **shown("token", "read")}
    assert status(running, "/api/v1/runs", both) == 200
    assert status(running, "/api/v1/alerts", both) == 403
    wrong = {**shown("certificate", "operate"), "HTTP_AUTHORIZATION": "Bearer x"}
    assert status(running, "/api/v1/runs", wrong) == 401


def test_no_header_of_a_request_names_a_certificate(running) -> None:
    client = running.app.test_client()
    for name in (CLIENT_NAMES, "serving-client-names", "HTTP_SERVING_CLIENT_NAMES"):
        answer = client.get("/api/v1/runs", headers={name: NAME_OF["operate"]})
        assert answer.status_code == 401


def test_prometheus_and_the_probes_need_to_show_nothing(running) -> None:
    for path in ("/metrics", "/-/healthy", "/-/ready", "/"):
        assert status(running, path, {}) == 200


def test_a_scrape_tells_what_of_the_file_is_in_force(running, tmp_path) -> None:
    def series() -> dict[str, float]:
        lines = running.app.test_client().get("/metrics").text.splitlines()
        return {n: float(v) for n, v in (one.split() for one in lines if one.startswith(mine))}

    mine = "remediator_web_"
    before = series()
    assert before[f"{mine}config_last_reload_successful"] == 1
    (tmp_path / "web.yml").write_text(USERS + "rate_limit: {interval: 1s, burst: 1}\n")
    assert series() == before | {f"{mine}config_last_reload_successful": 0}
    assert set(before) == {
        f"{mine}config_last_reload_successful",
        f"{mine}config_last_reload_success_timestamp_seconds",
        f"{mine}certificate_expiry_timestamp_seconds",
    }


def test_while_too_many_passwords_are_checked_alertmanager_is_to_try_again(
    running, monkeypatch
) -> None:
    monkeypatch.setattr(BasicAuth, "check", lambda *_: web_auth.Verdict.BUSY)
    assert status(running, "/api/v1/alerts", shown("user", "webhook")) == 503


def test_a_user_who_is_taken_out_of_the_file_has_no_role_any_more(running, tmp_path) -> None:
    assert status(running, "/api/v1/runs", shown("user", "read")) == 200
    (tmp_path / "web.yml").write_text(USERS.replace("grafana", "other") + VERIFIED)
    assert status(running, "/api/v1/runs", shown("user", "read")) == 401


def test_a_real_certificate_gives_its_role_and_nothing_else_does(running, tmp_path) -> None:
    door = Door(tmp_path / "web.yml", running.app, password=None)
    try:
        assert door.get("/api/v1/runs", client=trusting("client"))[0] == 200
        assert door.get("/api/v1/runs")[0] == 401
        assert door.get("/api/v1/runs", user="ann:secret")[0] == 200
        assert door.get("/metrics")[0] == 200
    finally:
        door.close()


@pytest.mark.parametrize(
    ("over", "text", "said"),
    [
        ({"config_file": None}, USERS, "no effect without web.config_file"),
        ({}, USERS + VERIFIED + "rate_limit: {interval: 1s, burst: 1}\n", "lose the alerts"),
        ({}, VERIFIED, "am is not in basic_auth_users"),
        ({}, USERS, "no certificate is asked for"),
        ({}, USERS + f"tls_server_config:\n{SERVER}", "no certificate is asked for"),
        ({}, "basic_auth_user: {}", "did you mean 'basic_auth_users'"),
        ({"config_file": "/nothing.yml"}, USERS, "/nothing.yml"),
        (
            {"roles": {"webhook": {"users": ["am"]}, "operate": {"users": ["am"]}}},
            USERS,
            "stands under users of webhook and of operate",
        ),
        ({"client": {"url": "ftp://x"}}, USERS + VERIFIED, "web.client.url"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(tmp_path, over, text, said) -> None:
    with pytest.raises(ConfigError, match=said):
        load_identities(load(write_config(tmp_path, web=web(tmp_path, text, **over))).web)


@pytest.mark.parametrize(
    "roles", [{"webhook": {"users": ["am"]}}, {"webhook": {"certificates": ["am.example"]}}]
)
def test_others_may_come_where_a_user_or_a_certificate_delivers(tmp_path, roles) -> None:
    open_to_all = {"listen_address": "0.0.0.0:9941", "tokens": {}}
    config = load(write_config(tmp_path, web=web(tmp_path, roles=roles, **open_to_all)))
    assert load_identities(config.web).has_anybody("webhook")
    for nobody in ({}, {"read": {"users": ["am"]}}):
        with pytest.raises(ConfigError, match=r"web\.roles\.webhook"):
            load(write_config(tmp_path, web=web(tmp_path, roles=nobody, **open_to_all)))


@pytest.fixture
def https(running, tmp_path) -> Iterator[Any]:
    """A configuration whose listen address is that of a server with TLS."""
    door = Door(tmp_path / "web.yml", running.app, password=None)
    address = f"127.0.0.1:{door.port}"
    yield replace(running.config, web=replace(running.config.web, listen_address=address))
    door.close()


def as_client(config: Any, *, token: bool = False, **client: Any) -> Any:
    tokens = config.web.tokens if token else replace(config.web.tokens, operate=None)
    return replace(config.web, tokens=tokens, client=ClientConfig(**client))


def test_a_command_comes_in_over_tls_by_token_user_or_certificate(https, tmp_path) -> None:
    (tmp_path / "password").write_text("secret\n")
    user = {"username": "ann", "password_file": tmp_path / "password"}
    for web in (
        as_client(https, token=True, ca_file=CA),
        as_client(https, ca_file=CA, **user),
        as_client(https, token=True, ca_file=CA, **user),
    ):
        assert ask(web, "POST", "/api/v1/resume") == {"paused": None}
    certificate = {"cert_file": TLS / "client.pem", "key_file": TLS / "client.key"}
    # This one may only read.
    assert ask(as_client(https, ca_file=CA, **certificate), "GET", "/api/v1/runs") == {"runs": []}
    with pytest.raises(RemediatorError, match=r"role operate; the certificate .*client\.pem"):
        ask(as_client(https, ca_file=CA, **certificate), "POST", "/api/v1/resume")


def test_a_command_that_cannot_come_in_says_why(https, tmp_path) -> None:
    with pytest.raises(RemediatorError, match=r"no TLS with it: .*see web\.client\.ca_file"):
        ask(as_client(https, token=True), "POST", "/api/v1/resume")
    with pytest.raises(ConfigError, match=r"nor a user or a certificate in web\.client"):
        ask(as_client(https, ca_file=CA), "POST", "/api/v1/resume")
    plain = https.web.listen_address
    with pytest.raises(ConfigError, match=r"has no effect unless web\.client\.url is https"):
        ask(
            as_client(https, token=True, url=f"http://{plain}", ca_file=CA),
            "POST",
            "/api/v1/resume",
        )
    (tmp_path / "web.yml").unlink()
    with pytest.raises(ConfigError, match=r"say in web\.client\.url where"):
        ask(as_client(https, token=True, ca_file=CA), "POST", "/api/v1/resume")


def test_no_password_or_hash_is_in_what_is_shown_of_it(running) -> None:
    told = json.dumps(repr(running.config)) + repr(vars(running.app.extensions["identities"]))
    assert "secret" not in told.replace("client_secret", "")
    assert HASH not in told
