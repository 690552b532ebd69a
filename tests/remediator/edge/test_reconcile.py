"""What Alertmanager's API says and no delivery brought, and what is never concluded from it."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from remediator import alertmanager
from remediator.config import load
from remediator.errors import ConfigError, PayloadError
from tests.remediator.edge.support import GPU, InProcess, alert, in_process, write_config
from tests.remediator.edge.test_episodes import every, iso

OURS = "gpu-remediator"


class AlertmanagerStandIn:
    """Answers what it is told to; remembers the requests."""

    def __init__(self) -> None:
        self.groups: Any = []
        self.status = 200
        self.asked: list[tuple[str, str | None]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.asked.append((self.path, self.headers["Authorization"]))
                body = json.dumps(stand_in.groups).encode()
                self.send_response(stand_in.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.name = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.name}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def lists(self, *alerts: dict[str, Any], receiver: str = OURS) -> None:
        self.groups = [{"labels": {}, "receiver": {"name": receiver}, "alerts": [*alerts]}]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def listed(started: float, *, updated: float | None = None, **over: Any) -> dict[str, Any]:
    one = alert(starts=iso(started), uuid=GPU, remediate="true")
    moment = started if updated is None else updated
    quiet = {"state": "active", "silencedBy": [], "inhibitedBy": []}
    one |= {
        "status": quiet,
        "updatedAt": iso(moment),
        "endsAt": iso(moment + 240),
        "receivers": [],
    }
    return one | over


KEY = listed(0)["fingerprint"]


@pytest.fixture
def peers() -> Iterator[list[AlertmanagerStandIn]]:
    made = [AlertmanagerStandIn(), AlertmanagerStandIn()]
    yield made
    for one in made:
        one.close()


@pytest.fixture
def asking(tmp_path: Path, peers: list[AlertmanagerStandIn]) -> Iterator[InProcess]:
    with in_process(tmp_path, alertmanager={"urls": [one.url for one in peers]}) as made:
        yield made


def firing(made: InProcess, started: float) -> None:
    assert made.deliver(alert(starts=iso(started), uuid=GPU, remediate="true")).status_code == 202


def resolved(made: InProcess, started: float, ended: float) -> None:
    one = alert(status="resolved", starts=iso(started), ends=iso(ended), uuid=GPU, remediate="true")
    assert made.deliver(one).status_code == 202


def metric(made: InProcess, name: str) -> str | None:
    lines = made.client().get("/metrics").text.splitlines()
    return next((line.rpartition(" ")[2] for line in lines if line.startswith(name)), None)


def events(made: InProcess) -> list[dict[str, Any]]:
    with made.store.reading() as tx:
        return [dict(one.record) for one in tx.audit_records()]


def test_a_delivery_that_was_lost_is_found_and_marked(
    asking: InProcess, peers: list[AlertmanagerStandIn]
) -> None:
    peers[0].lists(listed(asking.clock.now() - 100))
    asking.remediator.reconciler.round()
    assert every(asking, KEY) == [(1, 0, True)]
    (told,) = events(asking)
    assert (told["event"], told["data"]["source"]) == ("alert_received", "reconciled")
    assert "no delivery" in told["sentence"]
    assert metric(asking, "remediator_reconcile_alerts_taken_total") == "1.0"
    success = metric(asking, "remediator_reconcile_last_success_timestamp_seconds")
    assert float(success or 0) == asking.clock.now()
    asking.decide_all()
    assert [one["event"] for one in events(asking)] == ["alert_received", "decision"]


def test_it_is_no_delivery_so_the_way_of_deliveries_is_not_taken_for_open(
    asking: InProcess, peers: list[AlertmanagerStandIn]
) -> None:
    watchdog = listed(1.0, labels={"alertname": "Watchdog", "remediate": "true"})
    peers[0].lists(listed(asking.clock.now()), watchdog)
    asking.remediator.reconciler.round()
    assert metric(asking, "remediator_last_delivery_timestamp_seconds") is None
    assert metric(asking, "remediator_watchdog_last_received_timestamp_seconds ") is None
    assert len(events(asking)) == 1


def test_what_is_delivered_and_listed_is_one_episode_in_either_order(
    asking: InProcess, peers: list[AlertmanagerStandIn]
) -> None:
    started = asking.clock.now()
    peers[0].lists(listed(started))
    peers[1].lists(listed(started))
    for _ in range(2):
        asking.remediator.reconciler.round()
        firing(asking, started)
    assert every(asking, KEY) == [(1, 3, True)]
    assert metric(asking, "remediator_reconcile_alerts_taken_total") == "1.0"


@pytest.mark.parametrize(
    "hidden",
    [
        {"state": "suppressed", "silencedBy": ["a"], "inhibitedBy": []},
        {"state": "suppressed", "silencedBy": [], "inhibitedBy": ["b"]},
        {"state": "active", "silencedBy": [], "inhibitedBy": [], "mutedBy": ["night"]},
        {"state": "unprocessed", "silencedBy": [], "inhibitedBy": []},
        {},
    ],
)
def test_what_one_of_them_hides_is_not_acted_on_though_another_shows_it(
    asking: InProcess, peers: list[AlertmanagerStandIn], hidden: dict[str, Any]
) -> None:
    started = asking.clock.now()
    peers[0].lists(listed(started, updated=started + 30))
    peers[1].lists(listed(started, status=hidden) if hidden else listed(started, status="active"))
    asking.remediator.reconciler.round()
    assert every(asking, KEY) == ([] if hidden else [(1, 0, True)])


def test_what_is_routed_to_others_is_not_ours_and_a_wrong_name_is_told_once(
    asking: InProcess, peers: list[AlertmanagerStandIn], caplog: pytest.LogCaptureFixture
) -> None:
    peers[0].lists(listed(asking.clock.now()), receiver="another-host")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            asking.remediator.reconciler.round()
    assert every(asking, KEY) == []
    (said,) = [one.getMessage() for one in caplog.records]
    assert "alertmanager.receiver" in said
    assert "another-host" in said


def test_an_end_that_we_heard_is_believed_before_a_peer_that_did_not_hear_it(
    asking: InProcess, peers: list[AlertmanagerStandIn]
) -> None:
    started = asking.clock.now()
    firing(asking, started)
    asking.clock.seconds += 30
    resolved(asking, started, started + 20)
    peers[0].lists(listed(started, updated=started + 15))
    asking.clock.seconds += 200
    asking.remediator.reconciler.round()
    assert every(asking, KEY) == [(1, 0, False)]
    peers[0].lists(listed(started, updated=started + 120))
    asking.remediator.reconciler.round()
    assert every(asking, KEY) == [(1, 1, True)], "it was told of it again since"


def test_a_firing_whose_end_and_beginning_were_lost_is_a_new_one(
    asking: InProcess, peers: list[AlertmanagerStandIn]
) -> None:
    started = asking.clock.now()
    firing(asking, started)
    asking.clock.seconds += 600
    peers[0].lists(listed(started + 500))
    asking.remediator.reconciler.round()
    assert every(asking, KEY) == [(1, 0, False), (2, 0, True)]


def test_what_none_lists_any_more_stays_open_and_is_said_once(
    asking: InProcess, peers: list[AlertmanagerStandIn]
) -> None:
    firing(asking, asking.clock.now())
    asking.deliver(alert(uuid=GPU))
    asking.remediator.reconciler.round()
    assert metric(asking, "remediator_reconcile_unlisted_episodes") == "0.0", "it came just now"
    asking.clock.seconds += 90
    for _ in range(2):
        asking.remediator.reconciler.round()
    assert metric(asking, "remediator_reconcile_unlisted_episodes") == "1.0"
    told = [one for one in events(asking) if one["event"] == "episode_unlisted"]
    assert [one["reason"] for one in told] == ["unlisted"]
    assert every(asking, KEY) == [(1, 0, True)]
    peers[1].status = 500
    asking.remediator.reconciler.round()
    unlisted = metric(asking, "remediator_reconcile_unlisted_episodes ")
    assert unlisted is None, "who does not answer may list it"


def test_one_of_them_suffices_and_none_is_counted_and_told_once(
    asking: InProcess, peers: list[AlertmanagerStandIn], caplog: pytest.LogCaptureFixture
) -> None:
    peers[0].status = 503
    peers[1].lists(listed(asking.clock.now()))
    with caplog.at_level(logging.INFO, logger="remediator.reconcile"):
        asking.remediator.reconciler.round()
        assert every(asking, KEY) == [(1, 0, True)]
        assert (
            metric(asking, f'remediator_reconcile_alertmanager_up{{alertmanager="{peers[0].name}"')
            == "0.0"
        )
        assert metric(asking, "remediator_reconcile_failures_total") == "0.0"
        peers[1].groups = "nonsense"
        before = asking.remediator.reconciler.outlook.succeeded_at
        asking.clock.seconds += 30
        for _ in range(2):
            asking.remediator.reconciler.round()
        assert metric(asking, "remediator_reconcile_failures_total") == "2.0"
        assert asking.remediator.reconciler.outlook.succeeded_at == before
        peers[0].status = 200
        asking.remediator.reconciler.round()
    said = [one.getMessage() for one in caplog.records]
    assert [("cannot" in one, "again" in one) for one in said] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert asking.client().get("/-/ready").status_code == 200, "that is not our readiness"


def test_what_a_delivery_lacks_is_asked_for_at_once(tmp_path: Path) -> None:
    with contextlib.closing(AlertmanagerStandIn()) as peer:
        over = {"urls": [peer.url], "interval": "1h"}
        with in_process(tmp_path, alertmanager=over) as made:
            peer.lists(listed(made.clock.now()))
            asked = threading.Event()
            made.remediator.reconciler._wake = asked
            made.deliver(alert(uuid="GPU-other"))
            assert not asked.is_set()
            made.deliver(alert(uuid="GPU-another"), truncatedAlerts=3)
            assert asked.is_set()
            assert peer.asked == [], "never in the request"


def test_an_alert_that_cannot_be_read_keeps_no_other_out(
    asking: InProcess, peers: list[AlertmanagerStandIn]
) -> None:
    now = asking.clock.now()
    wide = {"alertname": "X", "remediate": "true", **{f"l{i}": "" for i in range(70)}}
    peers[0].lists(listed(now, labels=wide), {"status": {}}, listed(now))
    asking.remediator.reconciler.round()
    assert every(asking, KEY) == [(1, 0, True)]


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b'[{"alerts": 1}]', b"[" * 100_000, b"\xff"])
def test_what_is_no_list_of_groups_is_an_error(raw: bytes) -> None:
    with pytest.raises(PayloadError):
        alertmanager.parse_groups(raw)


def test_without_an_alertmanager_nothing_is_asked(tmp_path: Path) -> None:
    with in_process(tmp_path) as made:
        made.remediator.reconciler.start()
        made.remediator.reconciler.stop()
        assert made.remediator.reconciler.outlook.succeeded_at is None
        assert metric(made, "remediator_reconcile_failures_total") == "0.0"


def test_it_asks_only_for_what_a_machine_may_mend_and_shows_its_token(tmp_path: Path) -> None:
    token = tmp_path / "am.token"
    token.write_text("to-alertmanager\n")
    with contextlib.closing(AlertmanagerStandIn()) as peer:
        over = {"urls": [peer.url + "/"], "token_file": str(token)}
        with in_process(tmp_path, alertmanager=over) as made:
            made.remediator.reconciler.round()
    assert peer.asked == [
        ("/api/v2/alerts/groups?filter=remediate%3D%22true%22", "Bearer to-alertmanager")
    ]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"urls": ["ftp://x"]}, "alertmanager.urls[0]"),
        ({"urls": ["http://me@x"]}, "alertmanager.urls[0]"),
        ({"interval": "0s"}, "alertmanager.interval"),
        ({"url": "http://x"}, "urls"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write_config(tmp_path, alertmanager=wrong))
    assert named in str(caught.value)


def test_files_are_read_at_the_start(tmp_path: Path) -> None:
    over = {"urls": ["http://127.0.0.1:9"], "ca_file": "/nowhere"}
    with (
        pytest.raises(ConfigError, match=r"alertmanager\.ca_file.*alertmanager\.urls\[0\]"),
        in_process(tmp_path, alertmanager=over),
    ):
        pass
