"""The store cannot be written: a stop for heat and an undo go on, are told later, and done once."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from remediator.engine.emergency import EmergencyStop
from remediator.engine.gathering import PAUSED
from remediator.store.inventory import HOLDER
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.emergency_scene import SHUTDOWN, calls, fail, heal, hot, refused

WARNING = "GPUTemperatureWarning"
Make = Callable[..., Bench]


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    """A service that heats its card to 91 °C while it runs."""
    return hot(make_bench(services=("ollama",)))


def told_once(bench: Bench) -> None:
    """The store is well again: the whole story is there, and nothing is done a second time."""
    heal(bench)
    bench.pass_time(30)
    assert calls(bench) == ["stop 1001"]
    (run,) = bench.runs
    assert (run.playbook, run.state, run.safe) == ("emergency-stop", "succeeded", True)
    (step,) = bench.steps()
    assert (step.action, step.state, step.intent["before"]["pid"]) == ("stop_service", "done", 1001)
    assert [len(bench.events(name)) for name in ("emergency", "emergency_stop")] == [1, 1]
    assert bench.events("step_finished")[0]["data"]["emergency"] is True
    with bench.store.reading() as tx:
        assert tx.inventory.service("ollama").held_by == HOLDER
    assert bench.audit_holds()
    assert not bench.store.emergency.path.exists()
    bench.fire(SHUTDOWN)
    bench.pass_time(40)
    assert calls(bench) == ["stop 1001"]
    assert len(bench.runs) == 1
    assert len(bench.events("emergency")) == 1


def outage(bench: Bench) -> bytes:
    """The service is stopped while the store fails; what the journal holds then."""
    fail(bench)
    refused(bench)
    bench.pass_time(5)
    return bench.store.emergency.path.read_bytes()


def there_again(bench: Bench, journal: Path, kept: bytes) -> None:
    """The journal of an outage that was over is there when the remediator starts: no new run."""
    journal.write_bytes(kept)
    bench.restart()
    bench.pass_time(5)
    assert len(bench.runs) == 1
    assert not journal.exists()


def test_an_alert_that_could_not_be_stored_still_stops_the_service(bench: Bench) -> None:
    fail(bench)
    refused(bench)
    bench.pass_time(5)
    assert calls(bench) == ["stop 1001"]
    assert bench.runs == []
    told_once(bench)


def test_an_alert_that_was_stored_before_the_store_failed_stops_the_service(bench: Bench) -> None:
    bench.fire(SHUTDOWN)
    fail(bench)
    bench.pass_time(5)
    assert calls(bench) == ["stop 1001"]
    told_once(bench)


def test_a_run_that_cannot_be_seen_for_a_moment_is_not_left_for_a_minute(bench: Bench) -> None:
    bench.fire(SHUTDOWN)
    bench.evaluate()
    fail(bench)
    bench.gpus.silent = True
    bench.pass_time(3)
    assert calls(bench) == []
    bench.gpus.silent = False
    bench.pass_time(6)
    assert calls(bench) == ["stop 1001"]


@pytest.mark.parametrize("commits", [1, 2, 3, 4, 5])
def test_a_run_whose_journal_fails_under_way_is_carried_on(bench: Bench, commits: int) -> None:
    bench.fire(SHUTDOWN)
    now = bench.disk.transactions
    bench.disk.fail_at = set(range(now + commits, now + 100_000))
    bench.pass_time(5)
    assert calls(bench) == ["stop 1001"]
    heal(bench)
    bench.pass_time(30)
    assert calls(bench) == ["stop 1001"]
    assert bench.run.state == "succeeded"
    assert [step.state for step in bench.steps()] == ["done"]
    assert bench.audit_holds()


def test_a_crash_during_the_outage_forgets_nothing_and_repeats_nothing(bench: Bench) -> None:
    fail(bench)
    refused(bench)
    bench.pass_time(5)
    bench.restart()
    bench.pass_time(5)
    refused(bench)
    bench.pass_time(5)
    assert calls(bench) == ["stop 1001"]
    told_once(bench)


def test_what_was_taken_over_is_not_taken_over_again(bench: Bench) -> None:
    journal, kept = bench.store.emergency.path, outage(bench)
    heal(bench)
    bench.pass_time(5)
    # A crash between the commit and the removal of the file.
    there_again(bench, journal, kept)
    assert len(bench.events("emergency")) == 1


def test_what_was_taken_over_long_ago_is_not_taken_over_again(bench: Bench) -> None:
    journal, kept = bench.store.emergency.path, outage(bench)
    told_once(bench)
    # Another outage, taken over as well; then somebody puts the file of the first one back.
    bench.store.emergency.append("undone", lease=7, target=["gpu", "x"], time=bench.clock.now())
    bench.pass_time(5)
    there_again(bench, journal, kept)
    assert len(bench.events("emergency")) == 2


def test_entries_of_which_the_file_has_only_the_first_are_taken_over_once(bench: Bench) -> None:
    fail(bench)
    refused(bench)
    journal = bench.store.emergency
    append, kept = journal.append, []

    def then_the_disk_is_full(what: str, **more: object) -> None:
        append(what, **more)
        kept.append(journal.path.read_bytes())
        journal.path.write_bytes(kept[0])

    journal.append = then_the_disk_is_full
    bench.pass_time(5)
    assert len(kept) == 3
    heal(bench)
    bench.pass_time(5)
    # A crash between the commit and the removal of the file.
    journal.path.write_bytes(kept[0])
    bench.restart()
    bench.pass_time(5)
    assert len(bench.runs) == 1
    assert len(bench.events("emergency")) == 1


@pytest.mark.parametrize("why", ["cool", "blind", "observe", "approve", "not allowed", "paused"])
def test_every_gate_and_the_evidence_still_count(make_bench: Make, why: str) -> None:
    mode = why if why in ("observe", "approve") else "auto"
    allow = [] if why == "not allowed" else None
    bench = hot(make_bench(services=("ollama",), mode=mode, allow=allow))
    if why == "cool":
        bench.card.celsius = 70.0
    bench.gpus.silent = why == "blind"
    if why == "paused":
        with bench.store.transaction() as tx:
            tx.set_meta(PAUSED, "a person")
    fail(bench)
    refused(bench)
    bench.pass_time(10)
    assert calls(bench) == []


def test_more_hot_cards_than_the_breaker_allows_are_a_broken_sensor(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), gpus=4, limits={"breaker_targets": 2})
    for card in bench.cards.values():
        card.celsius = 91.0
    fail(bench)
    for uuid in bench.uuids:
        refused(bench, uuid=uuid)
    bench.pass_time(10)
    began = [entry["target"][1] for entry in bench.store.emergency.of("began")]
    assert began == bench.uuids[:2]


def test_hot_cards_that_are_looked_at_at_the_same_moment_are_counted(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",), gpus=4, limits={"breaker_targets": 2})
    for card in bench.cards.values():
        card.celsius = 91.0
    fail(bench)
    for uuid in bench.uuids:
        refused(bench, uuid=uuid)
    journal, at_once = bench.store.emergency, threading.Barrier(4)
    append, threads = journal.append, []

    def slow_disk(what: str, **more: object) -> None:
        if what == "began":
            with contextlib.suppress(threading.BrokenBarrierError):
                at_once.wait(0.3)
        append(what, **more)

    journal.append = slow_disk

    def submit(_: str, work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work))

    emergency = EmergencyStop(bench.world, bench.evaluator, submit)
    emergency._told = bench.emergency._told
    emergency.tick()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(threads) == 4
    assert len(journal.of("began")) == 2


def test_silence_after_an_alert_that_was_not_stored_ends_it(bench: Bench) -> None:
    hot_now, bench.card.celsius = bench.card.celsius, 70.0
    fail(bench)
    refused(bench)
    bench.pass_time(130)
    bench.card.celsius = hot_now
    bench.pass_time(30)
    assert calls(bench) == []


def test_a_service_that_would_not_stop_is_asked_again_more_rarely(bench: Bench) -> None:
    manager = bench.managers["ollama"]
    manager.stop = lambda identity, timeout: manager.calls.append("asked")
    fail(bench)
    refused(bench)
    for _ in range(4):
        bench.pass_time(30)
        refused(bench)
    asked = calls(bench).count("asked") / 2
    assert 2 <= asked <= 3
    del manager.stop
    heal(bench)
    bench.pass_time(5)
    assert bench.events("step_finished")[0]["reason"] == "still_answers"


def test_nothing_else_that_is_destructive_is_begun(bench: Bench) -> None:
    bench.card.celsius = 70.0
    bench.managers["ollama"].die()
    bench.fire("LLMServiceDown", service="ollama")
    fail(bench)
    bench.pass_time(30)
    assert calls(bench) == []


def test_a_line_without_the_key_is_told_and_not_believed(bench: Bench) -> None:
    entry = {"id": "x", "what": "began", "target": ["gpu", bench.uuids[0]]}
    forged = {"entry": json.dumps(entry), "mac": "0" * 64}
    bench.store.emergency.path.write_text(json.dumps(forged) + "\n")
    bench.card.celsius = 70.0
    bench.restart()
    bench.pass_time(5)
    with bench.store.transaction():
        pass
    assert bench.runs == []
    assert bench.events("emergency")[0]["data"]["unreadable"] == 1


def test_an_entry_that_cannot_be_taken_over_keeps_nobody_from_writing(bench: Bench) -> None:
    bench.card.celsius = 70.0
    bench.store.emergency.append("nonsense", time=bench.clock.now())
    bench.fire(WARNING)
    (record,) = bench.events("emergency")
    assert "could not be taken over" in record["sentence"]
    assert record["data"]["entries"][0]["what"] == "nonsense"
    assert bench.audit_holds()


def test_a_journal_that_cannot_be_written_either_does_not_keep_a_card_hot(bench: Bench) -> None:
    bench.store.emergency.path.mkdir()
    fail(bench)
    refused(bench)
    bench.pass_time(5)
    assert calls(bench) == ["stop 1001"]
    bench.store.emergency.path.rmdir()
    told_once(bench)


def test_an_undo_without_the_store_is_told_as_what_it_was(make_bench: Make) -> None:
    bench = make_bench()
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire(WARNING)
    bench.act()
    bench.resolve(WARNING)
    bench.card.celsius = 70.0
    fail(bench)
    bench.pass_time(90)
    assert bench.written_watts == [320.0, 400.0]
    bench.restart()
    # Somebody sets another limit meanwhile: the undo is over, and does not look again.
    bench.card.watts = 250.0
    bench.pass_time(90)
    heal(bench)
    bench.pass_time(5)
    (record,) = bench.events("undone")
    assert record["data"]["state"] == "restored"
    assert bench.open_leases == []
    assert bench.written_watts == [320.0, 400.0]
