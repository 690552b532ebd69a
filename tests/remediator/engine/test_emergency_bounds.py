"""What a stop for heat without the store is bounded by, and how its doubtful ends are told."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from remediator.alertmanager import Alert, Notification
from remediator.errors import OutcomeUnknown
from remediator.store.inventory import HOLDER
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.emergency_scene import SHUTDOWN, fail, heal, refused

Make = Callable[..., Bench]


def test_stops_that_the_store_knows_and_those_of_the_journal_are_one_storm(
    make_bench: Make,
) -> None:
    limits = {"breaker_targets": 2, "breaker_window": "1h"}
    bench = make_bench(services=("ollama",), gpus=4, limits=limits)
    for card in bench.cards.values():
        card.celsius = 91.0
    bench.fire(SHUTDOWN, uuid=bench.uuids[0])
    bench.pass_time(5)
    assert [(run.target.name, run.destructive) for run in bench.runs] == [(bench.uuids[0], True)]
    fail(bench)
    for uuid in bench.uuids[1:]:
        refused(bench, uuid=uuid)
    bench.pass_time(10)
    began = {entry["target"][1] for entry in bench.store.emergency.of("began")}
    assert began - {bench.uuids[0]} == {bench.uuids[1]}


def told(bench: Bench, count: int, *, uuid: str | None = None) -> None:
    for number in range(count):
        card = uuid or f"GPU-of-another-{number}"
        labels = {"alertname": SHUTDOWN, "uuid": card}
        alert = Alert(f"{card}", "firing", labels, {}, bench.clock.now(), None)
        bench.emergency.told(Notification("remediator", "", 0, (alert,), ""))


def test_a_flood_of_alerts_is_kept_no_further_than_so_many_and_drops_no_card_of_ours(
    make_bench: Make, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(services=("ollama",))
    with bench.store.transaction() as tx:
        tx.inventory.remember_gpu(bench.uuids[0], "", bench.clock.now())
    with caplog.at_level(logging.WARNING):
        told(bench, 1, uuid=bench.uuids[0])
        told(bench, 1000)
    assert len(bench.emergency._told) <= 256
    assert bench.uuids[0] in bench.emergency._told
    assert "GPU-of-another-999" in bench.emergency._told
    assert len([one for one in caplog.records if "are dropped" in one.getMessage()]) == 1


def test_a_stop_of_which_nobody_knows_whether_it_took_effect_is_told_as_that(
    make_bench: Make,
) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.celsius = 91.0

    def hangs(identity: object, timeout: float) -> None:
        raise OutcomeUnknown("systemctl did not end within 60 s")

    bench.managers["ollama"].stop = hangs
    fail(bench)
    refused(bench)
    bench.pass_time(5)
    (ended,) = bench.store.emergency.of("ended")
    assert (ended["state"], ended["reason"]) == ("unknown", "outcome_unknown")
    heal(bench)
    bench.pass_time(30)
    assert [step.state for step in bench.steps()][:1] == ["unknown"]
    assert bench.run.state == "ambiguous"


@pytest.mark.parametrize("returns", [True, False])
def test_a_hold_that_was_to_end_is_ours_after_the_outage_and_another_stays(
    make_bench: Make, returns: bool
) -> None:
    bench = make_bench(services=("ollama",))
    with bench.store.transaction() as tx:
        tx.inventory.hold("ollama", HOLDER, "before", bench.clock.now())
    journal, now = bench.store.emergency, bench.clock.now()
    about = {"time": now, "boot_id": "x", "target": ["gpu", bench.uuids[0]]}
    journal.append(
        "began",
        **about,
        run=None,
        episode=None,
        alertname=SHUTDOWN,
        playbook="emergency-stop",
        weight=90,
        plan=[],
        sentence="hot",
        evidence={},
    )
    step = {**about, "seq": 0, "service": "ollama"}
    intent = {"before": {}, "was_to_return": returns}
    journal.append("intended", **step, intent=intent, sentence="stop")
    journal.append(
        "ended", **step, state="done", reason="stopped", sentence="down", because="too hot"
    )
    with bench.store.transaction() as tx:
        tx.set_meta("x", "y")
    with bench.store.reading() as tx:
        assert tx.inventory.service("ollama").held_reason == ("too hot" if returns else "before")
