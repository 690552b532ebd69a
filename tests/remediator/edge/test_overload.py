"""More than can be kept: who has waited for long is sent away, to come again, and never forgotten."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import pytest

from serving.channel import QUEUED_SECONDS
from tests.remediator.edge.support import InProcess, RealServer, Reply, alert, body
from tests.waiting import poll


@pytest.mark.parametrize(("waited", "status"), [(0.4, 202), (0.6, 503)])
def test_who_waited_for_long_is_sent_away_and_nothing_is_kept(
    remediator: InProcess, waited: float, status: int
) -> None:
    reply = remediator.client("webhook").post(
        "/webhook",
        data=body(alert()),
        content_type="application/json",
        environ_overrides={QUEUED_SECONDS: waited},
    )
    assert reply.status_code == status
    with remediator.store.reading() as tx:
        assert len(tx.episodes.open_all()) == (1 if status == 202 else 0)
    refused = remediator.remediator.counters.get("refused")
    assert refused["not_stored",] == (0 if status == 202 else 1)


def test_behind_a_slow_disk_each_gets_an_answer_that_is_true(server: RealServer) -> None:
    """Another process holds the database: those in line wait, and the line is cut when it moves."""
    alerts = [alert(uuid=f"GPU-overload-{number}") for number in range(40)]
    replies: dict[str, Reply] = {}

    def send(one: dict[str, str]) -> None:
        replies[one["fingerprint"]] = server.post(body(one))

    senders = [threading.Thread(target=send, args=(one,)) for one in alerts]
    with contextlib.closing(sqlite3.connect(server.database, timeout=10)) as other:
        other.execute("BEGIN IMMEDIATE")
        for sender in senders:
            sender.start()
        held = threading.Event()
        held.wait(1.5)
        other.execute("ROLLBACK")
    for sender in senders:
        sender.join()
    statuses = [reply.status for reply in replies.values()]
    assert set(statuses) == {202, 503}
    kept = {key for key, reply in replies.items() if reply.status == 202}
    rows = server.rows(
        "SELECT fingerprint FROM episodes WHERE json_extract(labels, '$.uuid') LIKE 'GPU-overload-%'"
    )
    assert {key for (key,) in rows} == kept, "202 is what is kept, and nothing else is"
    assert all("again" in reply.error for reply in replies.values() if reply.status == 503)
    poll(lambda: server.post(body(alerts[0])).status == 202, "all is well again")
