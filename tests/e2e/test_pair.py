"""A pair of Alertmanagers and a pair of Prometheus: each fault is acted on once, and none is lost."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import pair
from tests.remediator.edge.support import GPU, ExporterStandIn, RealServer
from tests.waiting import poll

SKEW_SECONDS = 40.0
# Longer than a peer waits for the other: both deliver the same notification.
SLOW_ANSWER_SECONDS = 1.0
NAME = "GPUTemperatureWarning"
HOT, COOL = 84.0, 60.0


@dataclass(frozen=True)
class Pair:
    """The remediator, what it reads, what stands before it, and the cluster."""

    server: RealServer
    card: ExporterStandIn
    receiver: pair.Receiver
    cluster: tuple[str, str]
    folder: Path

    def records(self, event: str) -> list[tuple[Any, ...]]:
        """(episode, run, source) of each audit record of one kind."""
        return self.server.rows(
            "SELECT json_extract(record, '$.episode'), run, "
            "json_extract(record, '$.data.source') FROM audit "
            "WHERE json_extract(record, '$.event') = ? ORDER BY seq",
            event,
        )

    def writes(self) -> int:
        """How often the card was written to."""
        return sum(1 for one in self.card.asked if one.startswith("PUT"))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        card = stack.enter_context(contextlib.closing(ExporterStandIn()))
        card.gpu["temperature"] = COOL
        relay = pair.Receiver(SLOW_ANSWER_SECONDS)
        stack.callback(relay.server.close)
        (tmp_path / "webhook.token").write_text("replaced by the server's own\n")
        cluster = stack.enter_context(
            pair.alertmanagers(tmp_path, relay.server.address, tmp_path / "webhook.token")
        )
        server = RealServer(
            tmp_path,
            mode="auto",
            exporter={"url": card.url, "timeout": "2s"},
            gpus={"control": "simulated", "simulator_url": card.url, "inventory": [GPU]},
            alertmanager={"urls": [f"http://{one}" for one in cluster], "interval": "1s"},
            timing={"hold_down": "1s"},
        )
        stack.callback(server.stop)
        relay.passes_on_to(server.port)
        yield Pair(server, card, relay, cluster, tmp_path)


def test_one_fault_told_by_two_skewed_prometheus_and_two_alertmanagers_is_acted_on_once(
    running: Pair,
) -> None:
    card, receiver = running.card, running.receiver
    with contextlib.ExitStack() as stack:
        page = stack.enter_context(
            contextlib.closing(pair.card_page(lambda: card.gpu["temperature"]))
        )
        ahead = [
            stack.enter_context(contextlib.closing(pair.skewed(one, SKEW_SECONDS)))
            for one in running.cluster
        ]
        replicas = [
            stack.enter_context(pair.prometheus(running.folder, name, page.address, targets))
            for name, targets in (("a", running.cluster), ("b", [one.address for one in ahead]))
        ]
        poll(lambda: all(pair.is_under_way(one, 2) for one in replicas), "both are at work")
        both = {"http://am0.invalid", "http://am1.invalid"}
        poll(lambda: receiver.senders("Watchdog"), "Prometheus and Alertmanager work", 60)
        card.gpu["temperature"] = HOT
        poll(lambda: receiver.senders(NAME) == both, "both deliver it", 60)
        poll(lambda: card.limit_watts < 400, "the card is capped", 60)
        poll(lambda: len(receiver.starts(NAME)) > 1 or heartbeats(running) > 3, "more of it", 60)
        card.gpu["temperature"] = COOL
        poll(lambda: card.limit_watts == 400, "the cap is undone", 60)
    assert len(running.records("run_reserved")) == 1
    episodes = running.server.rows("SELECT number FROM episodes WHERE alertname = ?", NAME)
    assert episodes == [(1,)]
    assert running.writes() == 2, "one cap and its undo"


def heartbeats(running: Pair) -> int:
    query = "SELECT coalesce(sum(heartbeats), 0) FROM episodes WHERE alertname = ?"
    return int(running.server.rows(query, NAME)[0][0])


def test_what_they_could_not_deliver_is_found_and_what_is_silenced_is_not(running: Pair) -> None:
    running.receiver.refusing = True
    now = dt.datetime.now(dt.UTC)
    silence = {
        "matchers": [{"name": "uuid", "value": "GPU-silenced", "isRegex": False, "isEqual": True}],
        "startsAt": now.isoformat(),
        "endsAt": (now + dt.timedelta(hours=1)).isoformat(),
        "createdBy": "a test",
        "comment": "hands off",
    }
    pair.call(running.cluster[0], "POST", "/api/v2/silences", silence)
    # A peer that has not heard of a silence yet shows what the other hides: both must know.
    for one in running.cluster:
        poll(lambda one=one: pair.call(one, "GET", "/api/v2/silences"), "the silence is shared")
    for uuid, remediate in ((GPU, "true"), ("GPU-silenced", "true"), ("GPU-manual", "false")):
        labels = {"alertname": NAME, "uuid": uuid, "remediate": remediate}
        for one in running.cluster:
            pair.call(one, "POST", "/api/v2/alerts", [{"labels": labels}])
    running.card.gpu["temperature"] = HOT
    poll(lambda: running.records("alert_received"), "it is found")
    poll(lambda: running.card.limit_watts < 400, "and acted on")
    found = running.server.rows("SELECT json_extract(labels, '$.uuid') FROM episodes")
    assert found == [(GPU,)]
    assert [source for _, _, source in running.records("alert_received")] == ["reconciled"]
    text = running.server.call("GET", "/metrics").body.decode()
    assert "remediator_reconcile_alerts_taken_total 1.0" in text
    assert "\nremediator_last_delivery_timestamp_seconds " not in text
    running.receiver.refusing = False
    poll(lambda: running.receiver.senders(NAME), "it is delivered in the end")
    poll(lambda: heartbeats(running) > 0, "which is a heartbeat")
    assert len(running.records("run_reserved")) == 1
