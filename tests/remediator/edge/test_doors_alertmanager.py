"""The real Alertmanager delivers over TLS by token, by user and by certificate; without one it does not."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.crowd import Capacity
from tests.alertmanager import alertmanager as started
from tests.remediator.edge.support import InProcess, in_process, token_files
from tests.serving.door import CA, HASH, SERVER, TLS, Door
from tests.waiting import poll

WAYS = ("token", "user", "certificate", "nothing")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[InProcess]:
    (tmp_path / "web.yml").write_text(
        f"basic_auth_users: {{alertmanager: {HASH}}}\ntls_server_config:\n{SERVER}"
        f"  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: {CA}\n"
    )
    (tmp_path / "password").write_text("secret")
    members = {"users": ["alertmanager"], "certificates": ["scraper.example"]}
    web = {
        "listen_address": "127.0.0.1:0",
        "tokens": token_files(tmp_path),
        "config_file": str(tmp_path / "web.yml"),
        "roles": {"webhook": members},
    }
    with in_process(tmp_path, web=web) as found:
        yield found


@pytest.fixture
def door(running, tmp_path) -> Iterator[Door]:
    opened = Door(tmp_path / "web.yml", running.app, password=None, capacity=Capacity(6, 2**20))
    yield opened
    opened.close()


@pytest.fixture
def alertmanager(door, tmp_path) -> Iterator[str]:
    trust = {"ca_file": str(CA)}
    pair = {"cert_file": str(TLS / "client.pem"), "key_file": str(TLS / "client.key")}
    basic = {"username": "alertmanager", "password_file": str(tmp_path / "password")}
    shown = {
        "token": {"authorization": {"credentials_file": str(tmp_path / "webhook.token")}},
        "user": {"basic_auth": basic},
        "certificate": {"tls_config": {**trust, **pair}},
        "nothing": {},
    }
    url = f"https://127.0.0.1:{door.port}/api/v1/alerts"
    config = {
        "route": {
            "receiver": "nothing",
            "group_by": ["..."],
            "group_wait": "0s",
            "routes": [{"receiver": way, "matchers": [f'way="{way}"']} for way in WAYS],
        },
        "receivers": [
            {
                "name": way,
                "webhook_configs": [
                    {"url": url, "http_config": {"tls_config": trust, **shown[way]}}
                ],
            }
            for way in WAYS
        ],
    }
    (tmp_path / "alertmanager.yml").write_text(json.dumps(config))
    with started(tmp_path / "alertmanager.yml", tmp_path) as url:
        yield url


def test_alertmanager_comes_in_by_each_way_and_by_none_without_one(
    alertmanager, running, tmp_path
) -> None:
    ends = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    alerts = [{"labels": {"alertname": f"By-{way}", "way": way}, "endsAt": ends} for way in WAYS]
    request = urllib.request.Request(
        f"{alertmanager}/api/v2/alerts",
        data=json.dumps(alerts).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()

    def delivered() -> set[str]:
        records = running.client("read").get("/api/v1/audit").json["records"]
        return {one["alertname"] for one in records if one["event"] == "alert_received"}

    wanted = {"By-token", "By-user", "By-certificate"}
    poll(lambda: delivered() >= wanted, "each was delivered")
    log = tmp_path / "alertmanager.log"
    poll(lambda: "401" in log.read_text(), "Alertmanager was told of the refusal")
    assert delivered() == wanted
