"""The webhook of a real server process: what it answers, and what is then on its disk."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.remediator.edge.support import RealServer, Reply, alert, body, fingerprint
from tests.waiting import poll

ROUTES = ("/api/v1/alerts", "/webhook")


def kept(server: RealServer) -> list[tuple[object, ...]]:
    """Everything that a delivery may leave behind."""
    return server.rows(
        "SELECT (SELECT count(*) FROM deliveries), (SELECT count(*) FROM episodes), "
        "(SELECT coalesce(sum(heartbeats), 0) FROM episodes), "
        "(SELECT count(*) FROM audit WHERE json_extract(record, '$.event') = 'alert_received')"
    )


def episodes(server: RealServer, key: str) -> list[tuple[object, ...]]:
    return server.rows(
        "SELECT number, heartbeats, ended_at IS NULL FROM episodes WHERE fingerprint = ?", key
    )


def decision(server: RealServer, key: str) -> str:
    """The worker's decision about the newest episode of `key`; waits until there is one."""
    found = poll(
        lambda: server.rows(
            "SELECT last_reason FROM episodes WHERE fingerprint = ? AND last_reason IS NOT NULL",
            key,
        ),
        f"a decision about {key}",
    )
    return str(found[0][0])


@pytest.mark.parametrize("path", ROUTES)
def test_a_delivery_is_on_disk_when_it_is_answered(server: RealServer, path: str) -> None:
    one = alert(uuid=f"GPU-ondisk-{path.rpartition('/')[2]}")
    reply = server.call(
        "POST", path, body(one), role="webhook", headers={"Content-Type": "application/json"}
    )
    found = episodes(server, one["fingerprint"])
    assert (reply.status, reply.json()) == (202, {"accepted": 1, "episodes": 1})
    assert found == [(1, 0, 1)]


def test_a_duplicate_is_answered_the_same_and_opens_nothing(server: RealServer) -> None:
    one = alert(uuid="GPU-duplicate")
    replies = [server.post(body(one)) for _ in range(3)]
    assert [reply.status for reply in replies] == [202, 202, 202]
    assert episodes(server, one["fingerprint"]) == [(1, 2, 1)]


def test_two_peers_at_once_open_one_episode(server: RealServer) -> None:
    one = alert(uuid="GPU-two-peers")
    replies: list[Reply] = []
    peers = [
        threading.Thread(target=lambda: replies.append(server.post(body(one)))) for _ in range(6)
    ]
    for peer in peers:
        peer.start()
    for peer in peers:
        peer.join()
    assert [reply.status for reply in replies] == [202] * 6
    assert sum(reply.json()["episodes"] for reply in replies) == 1
    assert episodes(server, one["fingerprint"]) == [(1, 5, 1)]


REFUSED = {
    "not JSON": (b"{", 400, "not JSON"),
    "no body": (b"", 400, "not JSON"),
    "not v4": (body(alert(), version="3"), 400, "version"),
    "a missing essential": (body({"status": "firing"}), 400, "fingerprint"),
    "one bad alert of two": (
        body(alert(uuid="GPU-a"), {**alert(), "status": "x"}),
        400,
        "alerts[1]",
    ),
    "deep nesting": (b"[" * 100_000, 400, "nested"),
    "packed with gzip": (gzip.compress(body(alert())), 400, "UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_never_can_be_stored_is_400_and_says_why(server: RealServer, case: str) -> None:
    data, status, named = REFUSED[case]
    before = kept(server)
    reply = server.post(data)
    assert reply.status == status
    assert named in reply.error
    assert kept(server) == before


@pytest.mark.parametrize(
    ("role", "authorization", "status"),
    [
        (None, None, 401),
        (None, "Bearer wrong", 401),
        (None, "Bearer", 401),
        (None, "Bearer ", 401),
        (None, "Basic d2ViaG9vazp4", 401),
        (None, "Bearer w\xe9bhook", 401),
        ("read", None, 403),
        ("operate", None, 403),
    ],
)
def test_only_the_webhook_token_may_deliver(
    server: RealServer, role: str | None, authorization: str | None, status: int
) -> None:
    before = kept(server)
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = server.post(body(alert(uuid="GPU-token")), role=role, **headers)
    assert reply.status == status
    assert "webhook" in reply.error
    assert kept(server) == before


def test_the_scheme_of_the_token_is_not_case_sensitive(server: RealServer) -> None:
    reply = server.post(body(), role=None, Authorization=f"bEARER webhook-token-{'x' * 20}")
    assert reply.status == 202


@pytest.mark.parametrize("megabytes", [5, 10, 40])
def test_a_body_that_is_too_large_is_413_and_the_sender_hears_it(
    server: RealServer, megabytes: int
) -> None:
    before = kept(server)
    reply = server.post(b"x" * (megabytes * 1024 * 1024))
    assert reply.status == 413
    assert b"4194305" in reply.body
    assert kept(server) == before
    assert server.post(body(alert(uuid="GPU-after"))).status == 202


def test_a_chunked_body_that_is_too_large_is_413_or_cut(server: RealServer) -> None:
    before = kept(server)
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = (
        "POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        f"Authorization: Bearer webhook-token-{'x' * 20}\r\nContent-Type: application/json\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(head.encode())
        # Where such a body ends is not known before it ends, so the connection may be cut.
        with contextlib.suppress(OSError):
            for _ in range(64 + 16):
                sock.sendall(chunk)
            assert sock.recv(4096).startswith(b"HTTP/1.1 413")
    assert kept(server) == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "text/xml"])
def test_another_content_type_is_415(server: RealServer, kind: str) -> None:
    before = kept(server)
    reply = server.post(body(alert()), Content_Type=kind)
    assert reply.status == 415
    assert "application/json" in reply.error
    assert kept(server) == before


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "TRACE"])
def test_another_method_is_405_and_names_the_right_one(
    server: RealServer, method: str, path: str
) -> None:
    reply = server.call(method, path, role="webhook")
    assert reply.status == 405
    assert "POST" in reply.headers["Allow"]
    assert reply.error


@pytest.mark.parametrize(
    "path", ["/api/v1/alerts/", "/api/v1/../../etc/passwd", "/api/v1/alerts%00", "/%2e%2e/x"]
)
def test_another_path_is_404_and_never_a_redirect(server: RealServer, path: str) -> None:
    reply = server.call("POST", path, body(alert()), role="webhook")
    assert reply.status == 404


def test_a_gpu_that_is_not_ours_is_taken_in_and_ignored(server: RealServer) -> None:
    one = alert(uuid="GPU-of-somebody-else")
    assert server.post(body(one)).status == 202
    assert decision(server, one["fingerprint"]) == "ignore:not_in_inventory"
    assert server.rows("SELECT count(*) FROM runs") == [(0,)]


def test_a_service_that_is_not_ours_is_taken_in_and_ignored(server: RealServer) -> None:
    one = alert("LLMServiceDown", llm_service="somebody-elses")
    assert server.post(body(one)).status == 202
    assert decision(server, one["fingerprint"]) == "ignore:not_in_inventory"
    assert server.rows("SELECT count(*) FROM runs") == [(0,)]


def test_an_alert_without_a_playbook_is_recorded_and_nothing_else(server: RealServer) -> None:
    one = alert("SomethingNobodyKnows")
    assert server.post(body(one)).status == 202
    assert decision(server, one["fingerprint"]) == "notify:no_playbook"
    assert server.rows(
        "SELECT count(*) FROM incidents WHERE trigger = ?", one["labels"]["alertname"]
    ) == [(0,)]
    text = server.call("GET", "/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    names = {s.labels["alertname"] for s in families["remediator_alerts_received"].samples}
    assert "other" in names
    assert "SomethingNobodyKnows" not in text


def test_a_delivery_that_was_cut_is_audited_as_not_clear(server: RealServer) -> None:
    assert server.post(body(alert(uuid="GPU-cut"), truncatedAlerts=7)).status == 202
    found = server.rows(
        "SELECT json_extract(record, '$.sentence') FROM audit "
        "WHERE json_extract(record, '$.event') = 'truncated'"
    )
    assert len(found) == 1
    assert "7" in found[0][0]


def test_the_watchdog_is_seen_and_opens_no_episode(server: RealServer) -> None:
    one = alert("Watchdog")
    assert server.post(body(one)).json() == {"accepted": 1, "episodes": 0}
    text = server.call("GET", "/metrics").body.decode()
    assert "remediator_watchdog_last_received_timestamp_seconds " in text


def test_ten_thousand_alerts_in_one_body_are_one_commit(server: RealServer) -> None:
    every = []
    for number in range(3000):
        labels = {"alertname": "Storm", "n": str(number)}
        every.append(
            {
                "status": "resolved",
                "labels": labels,
                "startsAt": "2026-11-21T10:00:00Z",
                "fingerprint": fingerprint(labels),
            }
        )
    reply = server.post(body(*every))
    assert reply.json() == {"accepted": 3000, "episodes": 0}


def test_clients_that_never_finish_do_not_keep_others_waiting(server: RealServer) -> None:
    head = b"POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
    with contextlib.ExitStack() as stack:
        for number in range(20):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            # Half of them stop within the head, half within the body.
            slow.sendall(head if number % 2 else head + b"\r\n{")
        for number in range(5):
            assert server.post(body(alert(uuid=f"GPU-beside-slow-{number}"))).status == 202


def test_answers_do_not_say_what_software_answers_and_are_not_cached(server: RealServer) -> None:
    reply = server.post(body())
    assert "Server" not in reply.headers
    assert reply.headers["Cache-Control"] == "no-store"


def test_no_token_is_ever_written_to_the_log_or_the_database(server: RealServer) -> None:
    server.post(b"{", role="webhook")
    server.post(body(), role="operate")
    said = server.log.read_bytes() + server.database.read_bytes()
    assert b"-token-xxx" not in said
