"""Who hears what, asked of the real amtool and of a running Alertmanager."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest

from tests.alertmanager import alertmanager as running
from tests.rules import shipped
from tests.waiting import poll

REMEDIATOR = "gpu-remediator"
ON_CALL = "on-call"
NOBODY = "null"

# In the order of the routes.
BY_LABELS = [
    ({"remediate": "true", "page": "never"}, [REMEDIATOR]),
    ({"remediate": "true", "page": "unfixed"}, [REMEDIATOR]),
    ({"remediate": "true", "page": "now"}, [REMEDIATOR, ON_CALL]),
    ({"remediate": "false", "page": "never"}, [NOBODY]),
    ({"remediate": "false", "page": "unfixed"}, [NOBODY]),
    ({"remediate": "false", "page": "now"}, [ON_CALL]),
    # Not ours, or not labelled as ours.
    ({"alertname": "NodeDown", "severity": "critical"}, [NOBODY]),
    ({"alertname": "SomebodyElses"}, [NOBODY]),
    ({"alertname": "NoSeverity", "remediate": "true", "page": "now"}, [REMEDIATOR, ON_CALL]),
    ({"remediate": "yes", "page": "soon"}, [NOBODY]),
    ({}, [NOBODY]),
    ({"alertname": "Watchdog", "severity": "none"}, [REMEDIATOR]),
]


def receivers_of(alert):
    if alert["alert"] == "Watchdog":
        return [REMEDIATOR]
    wanted = [REMEDIATOR] * (alert["labels"]["remediate"] == "true")
    wanted += [ON_CALL] * (alert["labels"]["page"] == "now")
    return wanted or [NOBODY]


def ask(binaries, labels, receivers):
    pairs = [f"{key}={value}" for key, value in labels.items()]
    return shipped.run(
        binaries.amtool,
        *("config", "routes", "test", f"--config.file={shipped.ALERTMANAGER}"),
        f"--verify.receivers={','.join(receivers)}",
        *pairs,
    )


def routes():
    return {
        route["matchers"][0]: route
        for route in shipped.load(shipped.ALERTMANAGER)["route"]["routes"]
    }


def test_alertmanager_accepts_the_configuration_without_secrets(binaries, tmp_path):
    alone = tmp_path / "config.yml"
    alone.write_text(shipped.ALERTMANAGER.read_text())
    done = shipped.run(binaries.amtool, "check-config", alone)
    assert done.status == 0, done.output


@pytest.mark.parametrize(("labels", "receivers"), BY_LABELS, ids=str)
def test_labels_choose_receivers(labels, receivers, binaries):
    done = ask(binaries, labels, receivers)
    assert done.status == 0, done.output


def test_every_shipped_alert_reaches_those_whom_its_labels_name(binaries):
    for alert in shipped.alerts():
        done = ask(binaries, {"alertname": alert["alert"], **alert["labels"]}, receivers_of(alert))
        assert done.status == 0, f"{alert['alert']}: {done.output}"


def test_the_table_can_fail(binaries):
    assert ask(binaries, {"page": "now"}, [NOBODY]).status != 0


def test_the_remediator_hears_at_once_and_one_alert_at_a_time():
    route = routes()['remediate="true"']
    assert route["group_by"] == ["..."]
    assert route["group_wait"] == "0s"
    assert route["group_interval"] == "15s"
    assert route["continue"] is True


def test_the_watchdog_comes_more_often_than_its_silence_is_noticed():
    assert routes()['alertname="Watchdog"']["repeat_interval"] == "1m"
    (rule,) = [r for r in shipped.alerts() if r["alert"] == "RemediatorNotReceiving"]
    assert "> 120" in rule["expr"]


def test_the_remediator_is_sent_its_token_and_nothing_elsewhere():
    config = shipped.load(shipped.ALERTMANAGER)
    (webhook,) = next(r for r in config["receivers"] if r["name"] == REMEDIATOR)["webhook_configs"]
    assert webhook["send_resolved"] is True
    assert webhook["max_alerts"] == 0
    assert webhook["http_config"]["follow_redirects"] is False
    assert set(webhook["http_config"]["authorization"]) == {"credentials_file"}


def test_nothing_that_the_remediator_needs_can_be_inhibited():
    # Inhibition is global: an alert that is muted for on-call is muted for the remediator.
    needed = {r["alert"] for r in shipped.alerts() if receivers_of(r) != [ON_CALL]}
    for rule in shipped.load(shipped.ALERTMANAGER)["inhibit_rules"]:
        (target,) = [m for m in rule["target_matchers"] if m.startswith("alertname=")]
        assert target.split('"')[1] in set(shipped.alert_names()) - needed


@pytest.fixture(scope="module")
def alertmanager(tmp_path_factory):
    """Address of a running Alertmanager with the shipped configuration."""
    with running(shipped.ALERTMANAGER, tmp_path_factory.mktemp("alertmanager")) as url:
        yield url


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read()
    except OSError:
        return None


def post_alerts(base, *labels):
    now = datetime.now(UTC)
    body = [
        {
            "labels": one,
            "startsAt": now.isoformat(),
            "endsAt": (now + timedelta(minutes=5)).isoformat(),
        }
        for one in labels
    ]
    request = urllib.request.Request(
        f"{base}/api/v2/alerts",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=5).close()


def muted(base):
    """The labels of inhibited alerts; None until every alert has been looked at."""
    found = json.loads(get(f"{base}/api/v2/alerts"))
    if any(alert["status"]["state"] == "unprocessed" for alert in found):
        return None
    return [alert["labels"] for alert in found if alert["status"]["inhibitedBy"]]


def test_an_incident_that_was_handed_to_a_person_is_not_paged_twice(alertmanager):
    ours = {"severity": "critical", "remediate": "false", "page": "now"}
    failed = {"alertname": "RemediationFailed", "instance": "r", **ours}
    unresolved = {"alertname": "IncidentUnresolved", **ours}
    hot = {"trigger": "GPUTemperatureCritical", "uuid": "GPU-1"}
    down = {"trigger": "LLMServiceDown", "llm_service": "ollama"}
    full = {"trigger": "HostMemoryCritical"}
    twice = [
        {**unresolved, "instance": "a", **hot},
        {**unresolved, "instance": "r", **down},
    ]
    other = [
        {**unresolved, "instance": "a", **hot, "uuid": "GPU-2"},
        {**unresolved, "instance": "a", **hot, "trigger": "GPUMemoryCritical"},
        {**unresolved, "instance": "s", **down},
        {**unresolved, "instance": "r", **down, "llm_service": "vllm"},
        # The rule tells hosts apart; here one would mute them all.
        {**unresolved, "instance": "a", **full},
        # What the remediator needs, on the same card.
        {
            "alertname": "GPUTemperatureCritical",
            "instance": "a",
            "uuid": "GPU-1",
            "remediate": "true",
        },
    ]
    post_alerts(alertmanager, {**failed, **hot}, {**failed, **down}, {**failed, **full})
    poll(lambda: muted(alertmanager) == [])
    post_alerts(alertmanager, *twice, *other)
    poll(lambda: muted(alertmanager))

    def by_text(labels):
        return sorted(str(sorted(one.items())) for one in labels)

    poll(lambda: muted(alertmanager) is not None)
    assert by_text(muted(alertmanager)) == by_text(twice)
