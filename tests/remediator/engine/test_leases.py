"""The undo of a cap: on fresh evidence only, once, and never over somebody else's value."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.engine.gathering import PAUSED
from remediator.engine.leases import forget
from remediator.errors import RemediatorError
from remediator.gpu_control import NoControl, base
from tests.remediator.engine.bench import Bench

WARNING = "GPUTemperatureWarning"
Make = Callable[..., Bench]


@pytest.fixture
def capped(bench: Bench) -> Bench:
    """A card that was capped from 400 W to 320 W, has cooled, and whose alert is over."""
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire(WARNING)
    bench.act()
    bench.resolve(WARNING)
    bench.card.celsius = 70.0
    return bench


def ending(bench: Bench) -> str:
    (record,) = bench.events("undone")
    return record["reason"]


@pytest.mark.parametrize("blind", ["silent", "lost", "old"])
def test_absent_is_not_cool(capped: Bench, blind: str) -> None:
    capped.gpus.silent = blind == "silent"
    capped.card.fault = "lost" if blind == "lost" else None
    capped.card.age = 60.0 if blind == "old" else 0.4
    capped.pass_time(1000)
    assert capped.written_watts == [320.0]
    assert len(capped.open_leases) == 1


def test_a_card_that_is_not_cool_enough_keeps_its_cap(capped: Bench) -> None:
    capped.card.celsius = 81.0  # below the warning of 83 °C, but not by the margin
    capped.pass_time(1000)
    assert capped.written_watts == [320.0]


@pytest.mark.parametrize("break_", ["hot", "blind"])
def test_the_hold_down_starts_anew_after_a_break(capped: Bench, break_: str) -> None:
    capped.pass_time(50)
    if break_ == "hot":
        capped.card.celsius = 82.0
    capped.gpus.silent = break_ == "blind"
    capped.pass_time(2)
    capped.card.celsius, capped.gpus.silent = 70.0, False
    capped.pass_time(55)
    assert capped.written_watts == [320.0]
    capped.pass_time(10)
    assert capped.written_watts == [320.0, 400.0]


def test_the_hold_down_starts_anew_after_a_restart(capped: Bench) -> None:
    capped.pass_time(50)
    capped.restart()
    capped.pass_time(50)
    assert capped.written_watts == [320.0]
    capped.pass_time(15)
    assert capped.written_watts == [320.0, 400.0]


def test_a_value_of_somebody_else_is_left_alone(capped: Bench) -> None:
    capped.card.watts = 250.0
    capped.pass_time(90)
    assert capped.written_watts == [320.0]
    assert ending(capped) == "foreign"
    assert capped.open_leases == []


def test_an_original_that_is_back_is_not_written_again(capped: Bench) -> None:
    capped.card.watts = 400.0
    capped.pass_time(90)
    assert capped.written_watts == [320.0]
    assert ending(capped) == "already_original"


def test_an_operator_need_not_wait_for_the_hold_down(capped: Bench) -> None:
    (lease,) = capped.open_leases
    with capped.store.transaction() as tx:
        tx.leases.request_undo(lease.id)
    capped.leases.tick()
    assert capped.written_watts == [320.0, 400.0]


def test_a_run_that_takes_the_card_at_the_last_moment_keeps_its_cap(
    capped: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped.pass_time(55)
    knob = capped.world.knobs.of(capped.uuids[0])

    class Contended:
        """The lock of the card, which a run has for a moment longer."""

        def acquire(self, timeout: float) -> bool:
            with capped.store.transaction() as tx:
                run = tx.runs.latest(1)[0]
                tx.runs.set_state(run.id, "running", capped.clock.now())
                tx.runs.acquire(run.id, (run.target,))
            return knob.acquire(timeout=timeout)

        def release(self) -> None:
            knob.release()

    monkeypatch.setattr(capped.world.knobs, "of", lambda _: Contended())
    for _ in range(30):
        capped.clock.advance(1)
        capped.tick_leases()
    assert capped.written_watts == [320.0]


def test_not_even_an_operator_gets_a_hot_card_uncapped(capped: Bench) -> None:
    (lease,) = capped.open_leases
    with capped.store.transaction() as tx:
        tx.leases.request_undo(lease.id)
    capped.card.celsius = 84.0
    capped.pass_time(30)
    assert capped.written_watts == [320.0]


def test_a_refused_undo_is_complained_of_once_and_tried_again(capped: Bench) -> None:
    capped.control.refusal = "NVML: Insufficient Permissions"
    capped.pass_time(100)
    assert len(capped.events("undo_failed")) == 1
    assert len(capped.open_leases) == 1
    capped.control.refusal = None
    capped.pass_time(3)
    assert capped.card.watts == 400.0
    assert ending(capped) == "restored"


def test_an_undo_that_the_driver_ignores_stays_open(capped: Bench) -> None:
    capped.control.ignores = True
    capped.pass_time(100)
    assert len(capped.open_leases) == 1
    assert "after it was set back" in capped.events("undo_failed")[0]["sentence"]


def test_a_complaint_that_could_not_be_kept_is_kept_later(capped: Bench) -> None:
    capped.control.refusal = "no"
    capped.disk.fail_at = set(range(capped.disk.transactions, capped.disk.transactions + 20))
    capped.pass_time(120)
    assert len(capped.events("undo_failed")) == 1


def test_a_cap_of_another_control_is_not_undone_by_this_one(capped: Bench) -> None:
    none = NoControl()
    capped.world = type(capped.world)(**{**vars(capped.world), "control": none})
    capped.leases = type(capped.leases)(capped.world, capped.counters)
    capped.pass_time(100)
    assert capped.written_watts == [320.0]
    assert "'fake'" in capped.events("undo_failed")[0]["sentence"]


@pytest.mark.parametrize(("now", "undone"), [("helper", True), ("simulated", False)])
def test_a_cap_from_before_there_was_a_helper_is_undone_through_it(
    capped: Bench, monkeypatch: pytest.MonkeyPatch, now: str, undone: bool
) -> None:
    monkeypatch.setattr(base, "_REAL", base._REAL | {"fake"})
    capped.control.name = now
    capped.pass_time(100)
    assert capped.written_watts == ([320.0, 400.0] if undone else [320.0])


def test_the_controls_of_one_driver_reach_the_same_cards() -> None:
    assert base.reach_the_same("nvml", "helper")
    assert base.reach_the_same("jetson", "jetson")
    assert not base.reach_the_same("jetson", "helper")
    assert not base.reach_the_same("nvml", "simulated")


def heat_up_again(bench: Bench, alertname: str = WARNING) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire(alertname)
    bench.act()
    bench.resolve(alertname)
    bench.card.celsius = 70.0
    bench.pass_time(90)


def test_a_card_that_keeps_heating_up_keeps_its_cap_and_needs_a_person(bench: Bench) -> None:
    for _ in range(3):
        heat_up_again(bench)
    assert bench.written_watts == [320.0, 400.0] * 2 + [320.0]
    assert bench.incident(WARNING).state == "needs_human"
    assert len(bench.events("cap_kept")) == 1
    bench.pass_time(600)
    assert bench.written_watts[-1] == 320.0
    assert bench.incident(WARNING) is not None, "it is good only because it is capped"
    bench.clock.advance(3600)
    bench.pass_time(70)
    assert bench.written_watts[-1] == 400.0
    assert bench.incident(WARNING) is None


def test_one_excursion_through_all_levels_is_one_episode(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    for alertname, celsius in (
        (WARNING, 84.0),
        ("GPUTemperatureCritical", 86.0),
        ("GPUTemperatureShutdown", 91.0),
    ):
        bench.card.celsius = celsius
        bench.fire(alertname)
        bench.evaluate()
        bench.clock.at(bench.clock.passed + 5, lambda: setattr(bench.card, "celsius", 70.0))
        bench.execute()
    for alertname in (WARNING, "GPUTemperatureCritical", "GPUTemperatureShutdown"):
        bench.resolve(alertname)
    bench.pass_time(90)
    assert len(bench.runs) == 3
    assert bench.written_watts[-1] == 400.0


def test_one_card_that_cannot_be_undone_does_not_hold_up_another(make_bench: Make) -> None:
    bench = make_bench(gpus=2)
    for uuid in bench.uuids:
        bench.cards[uuid].heat_by_power(full=84.0, capped=76.0)
        bench.fire(WARNING, uuid=uuid)
    bench.act()
    for uuid in bench.uuids:
        bench.resolve(WARNING, uuid=uuid)
    first, second = bench.uuids
    write = bench.control.set_power_limit

    def refuse_first(uuid: str, milliwatts: int) -> None:
        bench.control.refusal = "no" if uuid == first else None
        write(uuid, milliwatts)

    bench.control.set_power_limit = refuse_first
    bench.disk.fail_at = set(range(bench.disk.transactions, bench.disk.transactions + 10_000))
    bench.pass_time(90)
    assert bench.cards[second].watts == 400.0


# A card that was removed


def removed(bench: Bench) -> None:
    """Its exporter answers, and knows it no more."""
    bench.gpus.cards = {}


def test_a_card_that_is_gone_needs_a_person_once_and_keeps_its_lease(capped: Bench) -> None:
    removed(capped)
    capped.pass_time(60)
    assert capped.incident(WARNING) is None, "it may be back in a moment"
    capped.clock.advance(3600)
    capped.pass_time(60)
    assert capped.incident(WARNING).reason == "card_gone"
    (record,) = capped.events("undo_card_gone")
    assert "undo --forget" in record["sentence"]
    assert len(capped.open_leases) == 1


@pytest.mark.parametrize("why", ["lost", "silent"])
def test_a_card_that_is_lost_or_unseen_is_not_gone(capped: Bench, why: str) -> None:
    capped.card.fault = "lost" if why == "lost" else None
    capped.gpus.silent = why == "silent"
    capped.clock.advance(7200)
    capped.pass_time(60)
    assert capped.events("undo_card_gone") == []
    with pytest.raises(RemediatorError, match="still knows it, or does not answer"):
        forget(capped.world, capped.uuids[0])
    assert len(capped.open_leases) == 1


def test_a_removed_card_is_forgotten_by_a_person_and_nothing_is_written(capped: Bench) -> None:
    removed(capped)
    capped.clock.advance(7200)
    capped.pass_time(60)
    (lease,) = forget(capped.world, capped.uuids[0])
    assert capped.written_watts == [320.0]
    assert capped.open_leases == []
    assert ending(capped) == "forgotten"
    assert capped.events("undone")[0]["data"]["original"] == lease.original
    assert capped.incident(WARNING) is None


def test_a_removed_card_that_is_back_is_undone_after_all(capped: Bench) -> None:
    removed(capped)
    capped.clock.advance(7200)
    capped.pass_time(60)
    capped.gpus.cards = capped.cards
    capped.pass_time(70)
    assert ending(capped) == "restored"


def test_a_pause_and_a_crash_keep_no_undo_back(capped: Bench) -> None:
    with capped.store.transaction() as tx:
        tx.set_meta(PAUSED, "a person")
    capped.restart()
    capped.pass_time(70)
    assert capped.written_watts == [320.0, 400.0]


def test_a_reboot_that_took_the_cap_away_ends_the_lease(
    capped: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remediator.store.transaction.boot_id", lambda: "another boot")
    capped.card.watts = 400.0
    capped.restart()
    capped.pass_time(70)
    assert ending(capped) == "already_original"
    assert capped.written_watts == [320.0]


def test_stacked_caps_go_back_to_what_was_before_the_first(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.heat_by_power(full=86.0, capped=84.0)
    bench.fire(WARNING)
    bench.evaluate()
    bench.card.celsius = 86.0
    bench.fire("GPUTemperatureCritical")
    bench.pass_time(5)
    bench.card.celsius = 70.0
    bench.resolve(WARNING)
    bench.resolve("GPUTemperatureCritical")
    bench.pass_time(400)
    assert bench.written_watts[-1] == 400.0
    assert set(bench.written_watts) <= {320.0, 100.0, 400.0}
    assert bench.written_watts.count(400.0) == 1
