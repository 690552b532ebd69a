"""A refused delivery is counted and told of: Alertmanager forgets it, and nobody else would say so."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remediator.errors import StorageError
from tests.remediator.edge.support import (
    TOKENS,
    InProcess,
    RealServer,
    alert,
    body,
)
from tests.waiting import poll

REASONS = ("unauthorized", "forbidden", "malformed", "too_large", "not_stored")


def counted(page: str) -> dict[str, float]:
    """The counter's values by reason."""
    name = "remediator_deliveries_refused_total{reason="
    lines = [line for line in page.splitlines() if line.startswith(name)]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}


def refused(remediator: InProcess) -> dict[str, float]:
    """What was counted, without the zeros."""
    page = remediator.client().get("/metrics").get_data(as_text=True)
    return {reason: count for reason, count in counted(page).items() if count}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "remediator.web.alerts"):
        yield caplog


def test_every_reason_is_there_before_anything_was_refused(remediator: InProcess) -> None:
    page = remediator.client().get("/metrics").get_data(as_text=True)
    assert counted(page) == dict.fromkeys(REASONS, 0.0)


@pytest.mark.parametrize(
    ("role", "sent", "kind", "reason"),
    [
        (None, body(alert()), "application/json", "unauthorized"),
        ("operate", body(alert()), "application/json", "forbidden"),
        ("webhook", b"{", "application/json", "malformed"),
        ("webhook", body(alert()), "text/plain", "malformed"),
        ("webhook", b"x" * (5 << 20), "application/json", "too_large"),
    ],
)
def test_what_is_refused_is_counted_by_its_reason(
    remediator: InProcess, role: str | None, sent: bytes, kind: str, reason: str
) -> None:
    remediator.client(role).post("/api/v1/alerts", data=sent, content_type=kind)
    remediator.client(role).post("/webhook", data=sent, content_type=kind)
    assert refused(remediator) == {reason: 2.0}


def test_what_could_not_be_stored_is_counted(
    remediator: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise StorageError("the disk is full")

    monkeypatch.setattr(type(remediator.remediator.intake), "accept", full)
    assert remediator.deliver(alert()).status_code == 503
    assert refused(remediator) == {"not_stored": 1.0}


def test_what_is_taken_and_what_is_refused_elsewhere_is_not_counted(remediator: InProcess) -> None:
    assert remediator.deliver(alert()).status_code == 202
    assert remediator.client().get("/api/v1/runs").status_code == 401
    assert refused(remediator) == {}


def test_a_warning_names_the_peer_and_never_the_token(
    remediator: InProcess, warnings: pytest.LogCaptureFixture
) -> None:
    for token in ("not-a-known-token", TOKENS["read"]):
        remediator.client().post(
            "/api/v1/alerts",
            data=body(alert()),
            content_type="application/json",
            headers={"Authorization": f"Bearer {token}"},
            environ_base={"REMOTE_ADDR": "192.0.2.7"},
        )
    unknown, other_role = warnings.messages
    assert "from 192.0.2.7" in unknown
    assert "web.tokens.webhook" in unknown
    assert "another role" in other_role
    for token in ("not-a-known-token", *TOKENS.values()):
        assert token not in unknown + other_role


def test_a_sender_that_repeats_itself_does_not_fill_the_log(
    remediator: InProcess, warnings: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        remediator.client().post("/api/v1/alerts", data=body(alert()))
    assert len(warnings.messages) == 1
    remediator.clock.seconds += 61
    remediator.client().post("/api/v1/alerts", data=body(alert()))
    assert len(warnings.messages) == 2
    assert "49 more" in warnings.messages[1]
    assert refused(remediator) == {"unauthorized": 51.0}


def test_a_body_that_the_http_server_refuses_is_counted_too(tmp_path: Path) -> None:
    server = RealServer(tmp_path)
    try:
        large = b"x" * (5 << 20)
        assert server.post(large).status == 413
        assert server.call("POST", "/api/v1/pause", large, role="operate").status == 413

        def seen() -> dict[str, float]:
            return counted(server.call("GET", "/metrics").body.decode())

        assert poll(lambda: seen()["too_large"], "it is counted") == 1.0
        assert "a delivery from 127.0.0.1 was refused" in server.log.read_text()
    finally:
        server.stop()
