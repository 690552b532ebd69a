"""What is asked before a card is reset, and again between the stop of its services and the reset."""

from __future__ import annotations

from typing import Any

from remediator.engine.gathering import PAUSED
from remediator.gpu_reset import Check, Client
from tests.remediator.engine.device_scene import (
    RECOVERY,
    DeviceBench,
    end,
)

# preconditions


def test_what_is_in_the_way_is_known_before_anything_is_stopped(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.release.missing = "exporter.release_token_file is not set"
    bench.reset.refuses = Check("mig", passed=False, answer="on: its MIG instances would be lost")
    bench.act()
    assert end(bench) == ("failed", "may_not_reset")
    assert "release_token_file" in bench.run.sentence
    assert "MIG" in bench.run.sentence
    assert bench.done == [("preflight_reset", "failed")]
    assert bench.calls() == []
    assert not bench.run.destructive
    assert bench.incident(RECOVERY).state == "needs_human"


def test_somebody_elses_process_on_the_card_is_neither_stopped_nor_reset_away(
    bench: DeviceBench,
) -> None:
    bench.asks_for("reset")
    bench.card.strangers = {4242: "train.py"}
    bench.act()
    assert end(bench) == ("failed", "may_not_reset")
    assert "train.py (pid 4242)" in bench.run.sentence
    assert bench.calls() == []


def test_a_hot_neighbour_is_not_left_unseen(make: Any) -> None:
    bench = make(gpus=2)
    bench.asks_for("reset")
    bench.cards[bench.uuids[1]].celsius = 88.0
    bench.act()
    assert end(bench) == ("failed", "may_not_reset")
    assert "88.0 °C" in bench.run.sentence
    assert bench.calls() == []


class Taken:
    """The lock of the reset, which another card's run has."""

    def acquire(self, timeout: float) -> bool:
        return False


def test_while_another_card_is_reset_this_one_is_not(make: Any) -> None:
    bench = make(gpus=2)
    bench.asks_for("drain_and_reset")
    locks = bench.world.knobs.of
    bench.world.knobs.of = lambda key: Taken() if key == "reset" else locks(key)
    bench.act()
    assert end(bench) == ("failed", "in_use")
    assert "another card is being reset" in bench.run.sentence
    assert bench.release.calls == [], "what the other has let go is not taken back"
    assert bench.reset.resets == []


def test_no_neighbour_is_written_to_while_the_driver_must_be_left_alone(make: Any) -> None:
    bench = make(gpus=2)
    other = bench.world.knobs.of(bench.uuids[1])

    def resets(uuid: str) -> bool:
        assert other.locked(), "a write holds the driver open"
        return bench.reset.works(uuid)

    bench.reset.does = resets
    bench.asks_for("reset")
    bench.act()
    assert end(bench) == ("succeeded", "verified")
    assert not other.locked()


def test_an_exporter_that_is_gone_by_then_ends_it_and_leaves_no_lock(make: Any) -> None:
    bench = make(gpus=2)
    bench.asks_for("drain_and_reset")
    looks = bench.gpus.all

    def gone() -> Any:
        if bench.runs and ("reset_gpu", "intended") in bench.done:
            bench.gpus.silent = True
        return looks()

    bench.gpus.all = gone
    bench.act()
    assert bench.run.state == "failed"
    assert bench.reset.resets == []
    assert not bench.world.knobs.of("reset").locked()


def test_a_neighbour_that_is_seen_a_little_later_does_not_keep_the_service_down(
    make: Any,
) -> None:
    bench = make(gpus=2)
    other = bench.cards[bench.uuids[1]]
    bench.asks_for("reset")

    def resets(uuid: str) -> bool:
        other.age = 60.0
        bench.clock.at(bench.clock.passed + 10, lambda: setattr(other, "age", 0.4))
        return bench.reset.works(uuid)

    bench.reset.does = resets
    bench.act()
    assert end(bench) == ("succeeded", "verified")
    assert bench.calls() == ["stop", "start"]


def test_what_cannot_be_told_is_in_nobodys_way(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.reset.refuses = Check("mig", passed=None, answer="[N/A]")
    bench.act()
    assert end(bench) == ("succeeded", "verified")


# between the stop and the reset


def test_a_process_that_came_meanwhile_ends_it_and_the_service_is_back(
    bench: DeviceBench,
) -> None:
    bench.asks_for("drain_and_reset")
    stop = bench.managers["ollama"].stop

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        bench.card.strangers = {4242: "train.py"}

    bench.managers["ollama"].stop = stops
    bench.act()
    assert end(bench) == ("failed", "in_use")
    assert "train.py (pid 4242)" in bench.run.sentence
    assert bench.release.calls == [], "the exporter was not even asked to let go"
    assert bench.reset.resets == []
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None
    assert "is up again" in bench.run.sentence
    assert bench.incident(RECOVERY).state == "needs_human"


def test_who_holds_the_device_file_ends_it(bench: DeviceBench) -> None:
    bench.asks_for("drain_and_reset")
    bench.reset.holders = (Client(77, "dcgm-exporter"),)
    bench.act()
    assert end(bench) == ("failed", "in_use")
    assert "dcgm-exporter (pid 77)" in bench.run.sentence
    assert bench.release.calls == ["let go", "give back"]
    assert bench.reset.resets == []
    assert bench.calls() == ["stop", "start"]


def test_an_exporter_that_cannot_let_go_ends_it(bench: DeviceBench) -> None:
    bench.asks_for("drain_and_reset")
    bench.release.refusal = "HTTP 409: the driver process hangs in a call"
    bench.act()
    assert end(bench) == ("failed", "not_released")
    assert "409" in bench.run.sentence
    assert bench.reset.resets == []
    assert bench.release.calls == ["let go", "give back"]
    assert bench.calls() == ["stop", "start"]


def test_a_card_that_healed_during_the_stop_is_not_reset_and_the_service_is_back(
    bench: DeviceBench,
) -> None:
    bench.asks_for("reset")
    stop = bench.managers["ollama"].stop

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        bench.card.recovery_action = "none"

    bench.managers["ollama"].stop = stops
    bench.act()
    assert end(bench) == ("failed", "impossible")
    assert bench.reset.resets == []
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None


def test_a_pause_between_stop_and_reset_brings_the_service_back(bench: DeviceBench) -> None:
    bench.asks_for("drain_and_reset")
    stop = bench.managers["ollama"].stop

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        with bench.store.transaction() as tx:
            tx.set_meta(PAUSED, "maintenance")

    bench.managers["ollama"].stop = stops
    bench.act()
    assert end(bench) == ("cancelled", "paused")
    assert bench.reset.resets == []
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None
