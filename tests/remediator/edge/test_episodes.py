"""Episodes: one for each firing of one fingerprint, however often and late it is told."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator import alertmanager
from remediator.intake import DRIFT_SECONDS, LATE_SECONDS
from remediator.store import Episode
from remediator.targets import Target
from tests.remediator.edge.support import GPU, InProcess, alert, body, in_process

NAME = "GPUTemperatureWarning"
KEY = alert()["fingerprint"]


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def every(remediator: InProcess, key: str = KEY) -> list[tuple[int, int, bool]]:
    """(number, heartbeats, open) of each episode of `key`, oldest first."""
    rows = remediator.store._db.execute(
        "SELECT number, heartbeats, ended_at IS NULL FROM episodes WHERE fingerprint = ? "
        "ORDER BY id",
        (key,),
    )
    return [(number, beats, bool(is_open)) for number, beats, is_open in rows]


def latest(remediator: InProcess) -> Episode:
    with remediator.store.reading() as tx:
        found = tx.episodes.last_for(KEY)
    assert found is not None
    return found


def firing(remediator: InProcess, started: float) -> int:
    reply = remediator.deliver(alert(starts=iso(started)))
    assert reply.status_code == 202
    return int(reply.json["episodes"])


def resolved(remediator: InProcess, started: float, ended: float) -> int:
    reply = remediator.deliver(alert(status="resolved", starts=iso(started), ends=iso(ended)))
    assert reply.status_code == 202
    return int(reply.json["episodes"])


def test_a_repeat_is_a_heartbeat(remediator: InProcess) -> None:
    started = remediator.clock.now()
    assert firing(remediator, started) == 1
    remediator.clock.seconds += 300
    assert firing(remediator, started) == 0
    assert every(remediator) == [(1, 1, True)]
    assert latest(remediator).last_seen == remediator.clock.now()
    assert latest(remediator).first_seen == started


def test_a_start_that_drifts_between_two_prometheus_is_the_same_episode(
    remediator: InProcess,
) -> None:
    started = remediator.clock.now()
    for drift in (0, 3, -3, 0.001, 60, -600):
        firing(remediator, started + drift)
    assert every(remediator) == [(1, 5, True)]
    assert latest(remediator).starts_at == pytest.approx(started)


def test_the_same_alert_under_two_receivers_is_one_episode(remediator: InProcess) -> None:
    for receiver in ("gpu-remediator", "gpu\\.remediator/team"):
        remediator.deliver(alert(), receiver=receiver, groupKey=receiver)
    assert every(remediator) == [(1, 1, True)]


def test_resolved_ends_it_and_a_late_firing_does_not_open_it_again(remediator: InProcess) -> None:
    started = remediator.clock.now()
    firing(remediator, started)
    remediator.clock.seconds += 30
    resolved(remediator, started, started + 20)
    assert every(remediator) == [(1, 0, False)]
    assert latest(remediator).ended_at == pytest.approx(started + 20)
    remediator.clock.seconds += LATE_SECONDS - 1
    assert firing(remediator, started) == 0
    assert every(remediator) == [(1, 0, False)]


def test_a_late_firing_counts_from_when_the_end_was_heard(remediator: InProcess) -> None:
    """After an outage of ours both come late, and in any order."""
    started = remediator.clock.now()
    firing(remediator, started)
    remediator.clock.seconds += 600
    resolved(remediator, started, started + 20)
    remediator.clock.seconds += 1
    assert firing(remediator, started) == 0
    assert every(remediator) == [(1, 0, False)]


def test_the_same_start_long_after_the_end_is_the_same_firing_that_goes_on(
    remediator: InProcess,
) -> None:
    """Alertmanager lost it and found it again, or somebody repeats what was said once."""
    started = remediator.clock.now()
    firing(remediator, started)
    only = latest(remediator).id
    with remediator.store.transaction() as tx:
        tx.episodes.decided(only, "run:accepted", None, acted=True)
    resolved(remediator, started, started + 20)
    remediator.clock.seconds += LATE_SECONDS + 21
    assert firing(remediator, started) == 1
    assert every(remediator) == [(1, 1, True)]
    assert latest(remediator).acted, "what was done about it is done"
    with remediator.store.reading() as tx:
        assert tx.episodes.due(remediator.clock.now()) == (only,)
        assert tx.audit_records()[-1].record["event"] == "alert_found_again"


def test_a_start_after_the_end_is_a_new_episode_at_once(remediator: InProcess) -> None:
    started = remediator.clock.now()
    firing(remediator, started)
    remediator.clock.seconds += 30
    resolved(remediator, started, started + 20)
    assert firing(remediator, started + 25) == 1
    assert every(remediator) == [(1, 0, False), (2, 0, True)]


def test_an_end_in_the_future_does_not_silence_what_fires_next(remediator: InProcess) -> None:
    started = remediator.clock.now()
    firing(remediator, started)
    remediator.clock.seconds += 30
    remediator.deliver(alert(status="resolved", starts=iso(started), ends="9999-01-01T00:00:00Z"))
    assert latest(remediator).ended_at == remediator.clock.now()
    remediator.clock.seconds += LATE_SECONDS + 1
    assert firing(remediator, remediator.clock.now()) == 1


def test_after_silence_a_repeat_is_a_new_episode_at_once(remediator: InProcess) -> None:
    started = remediator.clock.now()
    firing(remediator, started)
    remediator.clock.seconds += 2000
    episode = latest(remediator)
    with remediator.store.transaction() as tx:
        tx.episodes.end(episode.id, remediator.clock.now(), "silent")
    assert firing(remediator, started) == 1


def test_a_later_start_is_a_firing_whose_end_was_never_delivered(remediator: InProcess) -> None:
    started = remediator.clock.now()
    firing(remediator, started)
    remediator.clock.seconds += 300
    assert firing(remediator, started + 61) == 1
    assert every(remediator) == [(1, 0, False), (2, 0, True)]
    assert firing(remediator, started + 61) == 0, "and that is its own start from now on"
    assert firing(remediator, started) == 0
    assert every(remediator) == [(1, 0, False), (2, 2, True)]
    with remediator.store.reading() as tx:
        records = [record.record for record in tx.audit_records()]
    assert [(r["event"], r["reason"]) for r in records] == [
        ("alert_received", ""),
        ("alert_refired", "refired"),
        ("alert_received", ""),
    ]
    assert "never delivered" in records[1]["sentence"]


def test_a_start_ahead_of_our_clock_ends_the_old_firing_now(remediator: InProcess) -> None:
    started = remediator.clock.now()
    firing(remediator, started)
    episode = latest(remediator)
    remediator.clock.seconds += 30
    firing(remediator, started + 7200)
    with remediator.store.reading() as tx:
        assert tx.episodes.get(episode.id).ended_at == remediator.clock.now()
    resolved(remediator, started + 7200, started + 7300)
    assert every(remediator) == [(1, 0, False), (2, 0, False)]


def test_what_waits_for_a_person_does_not_outlive_its_firing(remediator: InProcess) -> None:
    firing(remediator, remediator.clock.now())
    episode = latest(remediator)
    with remediator.store.transaction() as tx:
        run = _waiting_run(tx, episode.id, remediator.clock.now())
    remediator.clock.seconds += 120
    firing(remediator, remediator.clock.now())
    with remediator.store.reading() as tx:
        found = tx.runs.get(run.id)
        assert (found.state, found.reason) == ("cancelled", "refired")
        assert tx.runs.active() == ()


def test_resolved_first_opens_nothing(remediator: InProcess) -> None:
    started = remediator.clock.now()
    assert resolved(remediator, started, started + 1) == 0
    assert every(remediator) == []
    assert firing(remediator, started + 2) == 1
    assert every(remediator) == [(1, 0, True)]


def test_a_resolved_twice_is_audited_once(remediator: InProcess) -> None:
    started = remediator.clock.now()
    firing(remediator, started)
    for _ in range(3):
        resolved(remediator, started, started + 1)
    with remediator.store.reading() as tx:
        events = [record.record["event"] for record in tx.audit_records()]
    assert events == ["alert_received", "alert_resolved"]


def test_one_bad_alert_keeps_the_whole_batch_out(remediator: InProcess) -> None:
    reply = remediator.deliver(alert(), alert(uuid="GPU-other"), {**alert(), "startsAt": "never"})
    assert (reply.status_code, "alerts[2].startsAt" in reply.json["error"]) == (400, True)
    with remediator.store.reading() as tx:
        assert (tx.episodes.open_all(), tx.audit_count()) == ((), 0)
        assert tx.episodes.last_delivery() is None


def test_each_alert_of_a_batch_has_its_own_episode(remediator: InProcess) -> None:
    cards = [alert(uuid=f"GPU-{number}") for number in range(8)]
    reply = remediator.deliver(*cards, alert(status="resolved", uuid="GPU-9"))
    assert reply.json == {"accepted": 9, "episodes": 8}
    with remediator.store.reading() as tx:
        assert [one.labels["uuid"] for one in tx.episodes.open_all()] == [
            f"GPU-{number}" for number in range(8)
        ]


def test_what_is_known_survives_a_restart(tmp_path: Path) -> None:
    with in_process(tmp_path) as before:
        before.deliver(alert())
        before.deliver(alert("Watchdog"))
        heard = before.clock.now()
    with in_process(tmp_path) as after:
        assert after.remediator.intake.last_delivery == heard
        assert after.remediator.intake.last_watchdog == heard
        after.deliver(alert())
        assert every(after) == [(1, 1, True)]


def test_the_watchdog_alone_keeps_the_dead_mans_switch_and_its_end_does_not(
    remediator: InProcess,
) -> None:
    """Alertmanager says that it is over when Prometheus has been silent for minutes."""
    intake = remediator.remediator.intake
    assert (intake.last_delivery, intake.last_watchdog) == (None, None)
    remediator.deliver(alert("Watchdog"))
    heard = remediator.clock.now()
    assert (intake.last_delivery, intake.last_watchdog) == (heard, heard)
    remediator.clock.seconds += 300
    remediator.deliver(alert("Watchdog", status="resolved"))
    assert intake.last_watchdog == heard
    remediator.deliver(alert())
    assert intake.last_watchdog == heard, "only it proves the whole way from Prometheus"
    with remediator.store.reading() as tx:
        assert tx.get_meta("watchdog_last_received") == str(heard)
    lines = remediator.client().get("/metrics").text.splitlines()
    name = "remediator_watchdog_last_received_timestamp_seconds"
    (shown,) = [line for line in lines if line.startswith(name)]
    assert float(shown.split()[1]) == heard


def test_a_resolved_alert_cancels_what_waits_for_a_person(remediator: InProcess) -> None:
    remediator.deliver(alert())
    episode = latest(remediator)
    with remediator.store.transaction() as tx:
        run = _waiting_run(tx, episode.id, remediator.clock.now())
    remediator.deliver(alert(status="resolved"))
    with remediator.store.reading() as tx:
        found = tx.runs.get(run.id)
        assert (found.state, found.reason) == ("cancelled", "resolved")
        assert tx.runs.active() == ()


def _waiting_run(tx: Any, episode_id: int, now: float) -> Any:
    target = Target("gpu", GPU)
    return tx.runs.create(
        episode_id=episode_id,
        playbook="throttle-gpu",
        weight=10,
        trigger=NAME,
        target=target,
        locks=(target,),
        state="awaiting_approval",
        plan=[],
        now=now,
        expires_at=now + 900,
        boot_id="boot",
    )


_FRESH = itertools.count(1)
_STEP = st.tuples(
    st.integers(0, 1),  # which fingerprint
    st.sampled_from(["firing", "firing", "resolved"]),
    st.integers(-100, 40),  # start, relative to now
    st.integers(-60, 400),  # end, relative to now
    st.integers(0, 90),  # seconds until the next delivery
)


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with in_process(tmp_path_factory.mktemp("episodes")) as made:
        yield made


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(_STEP, min_size=1, max_size=12))
def test_any_schedule_keeps_one_open_episode_and_growing_numbers(
    long_lived: InProcess, steps: list[Any]
) -> None:
    keys = [f"{next(_FRESH):x}" for _ in range(2)]
    for which, status, start, end, pause in steps:
        now = long_lived.clock.now()
        one = alert(status=status, starts=iso(now + start), ends=iso(now + end), key=keys[which])
        opened = long_lived.remediator.intake.accept(alertmanager.parse(body(one)))
        found = every(long_lived, keys[which])
        assert [number for number, _, _ in found] == list(range(1, len(found) + 1))
        assert all(not is_open for _, _, is_open in found[:-1]), "only the newest may be open"
        assert status == "firing" or opened == 0
        if status == "resolved" and any(is_open for _, _, is_open in found):
            with long_lived.store.reading() as tx:
                still = tx.episodes.open_for(keys[which])
            assert still is not None
            earlier = now + start < still.starts_at - DRIFT_SECONDS or now + end < still.starts_at
            assert earlier, "only the end of an earlier firing leaves an episode open"
        long_lived.clock.seconds += pause


@settings(max_examples=100, deadline=None)
@given(
    order=st.lists(st.sampled_from(["firing", "resolved"]), max_size=8),
    late=st.integers(0, 3),
    pause=st.integers(0, 4),
)
def test_one_true_firing_is_one_episode_in_whatever_order_it_is_told(
    long_lived: InProcess, order: list[str], late: int, pause: int
) -> None:
    key, started = f"{next(_FRESH):x}", long_lived.clock.now()
    for status in ["firing", *order, "resolved", *["firing"] * late]:
        one = alert(status=status, starts=iso(started), ends=iso(started + 1), key=key)
        long_lived.remediator.intake.accept(alertmanager.parse(body(one)))
        long_lived.clock.seconds += pause
    found = every(long_lived, key)
    assert [(number, is_open) for number, _, is_open in found] == [(1, False)]


def test_a_delivery_that_lies_ahead_of_the_clock_keeps_no_dead_mans_switch(
    remediator: InProcess,
) -> None:
    """A clock that was ahead and is set right: what it noted would be fresh until then."""

    def told() -> list[str]:
        lines = remediator.client().get("/metrics").text.splitlines()
        names = ("remediator_last_delivery_", "remediator_watchdog_last_received_")
        return [line for line in lines if line.startswith(names)]

    remediator.deliver(alert("Watchdog"))
    assert len(told()) == 2
    remediator.clock.seconds -= 86_400
    assert told() == []
    remediator.deliver(alert("Watchdog"))
    assert len(told()) == 2
