"""The reset itself: refused, unending, a lie, or cut off by a crash."""

from __future__ import annotations

from typing import Any

import pytest

from remediator.errors import OutcomeUnknown
from remediator.gpu_reset import Client
from tests.remediator.engine.device_scene import (
    RECOVERY,
    WHOLE,
    DeviceBench,
    end,
    refuse,
)


class Crash(BaseException):
    """The process dies here; nothing of ours may catch it."""


def die() -> None:
    raise Crash


# the reset


def test_a_refused_reset_leaves_the_services_of_an_unfit_card_down(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.reset.does = refuse("this card or driver does not support it (exit status 3)")
    bench.act()
    assert end(bench) == ("failed", "refused")
    assert "does not support it" in bench.run.sentence
    assert "the driver asks for a reset" in bench.run.sentence
    assert bench.calls() == ["stop"]
    assert bench.held() == "its GPU is to be reset"
    assert bench.release.calls == ["let go", "give back"]


def test_a_refused_reset_brings_back_what_the_card_can_still_run(bench: DeviceBench) -> None:
    bench.asks_for("drain_and_reset")
    bench.reset.does = refuse("this user may not; this needs root (exit status 4)")
    bench.act()
    assert end(bench) == ("failed", "refused")
    assert bench.calls() == ["stop", "start"]
    assert bench.drivers["ollama"].loads == ["llama"]
    assert bench.incident(RECOVERY).state == "needs_human"


def test_a_reset_that_does_not_end_is_ambiguous_and_nothing_more_is_done(
    bench: DeviceBench,
) -> None:
    def hangs(uuid: str) -> bool:
        raise OutcomeUnknown("nvidia-smi did not end within 120 s")

    bench.asks_for("drain_and_reset")
    bench.reset.does = hangs
    bench.act()
    assert end(bench) == ("ambiguous", "outcome_unknown")
    assert bench.release.calls == ["let go", "give back"], "the exporter always gets them back"
    assert bench.calls() == ["stop"], "nobody knows what state the card is in"
    bench.pass_time(900)
    assert len(bench.reset.resets) == 1
    assert bench.incident(RECOVERY).state == "needs_human"


def test_a_lie_is_seen_through(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.reset.does = lambda uuid: True
    bench.act()
    assert end(bench) == ("failed", "not_reset")
    assert "still asks for reset" in bench.run.sentence
    assert bench.calls() == ["stop"]


def test_a_card_that_is_lost_by_its_reset_is_a_persons(bench: DeviceBench) -> None:
    def breaks(uuid: str) -> bool:
        bench.card.fault = "lost"
        return True

    bench.asks_for("reset")
    bench.reset.does = breaks
    bench.act()
    assert end(bench) == ("failed", "not_reset")
    assert "lost" in bench.run.sentence
    assert bench.calls() == ["stop"]


def test_an_exporter_that_does_not_come_back_proves_no_reset(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.release.keeps = True
    bench.act()
    assert end(bench) == ("failed", "not_reset")
    assert "released" in bench.run.sentence
    assert "was not given the cards back" in bench.run.sentence


def test_a_device_fault_that_comes_back_at_once_is_ineffective(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    start = bench.managers["ollama"].start

    def starts(timeout: float) -> Any:
        bench.clock.at(bench.clock.passed, lambda: setattr(bench.card, "recovery_action", "reset"))
        return start(timeout)

    bench.managers["ollama"].start = starts
    bench.drivers["ollama"].canary = lambda model, timeout: (bench.clock.advance(1), 0.1)[1]
    bench.act()
    assert end(bench) == ("ineffective", "still_present")
    assert bench.incident(RECOVERY).state == "needs_human"


def test_the_power_cap_holds_over_the_reset_and_is_undone_as_ever(bench: DeviceBench) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire("GPUTemperatureWarning")
    bench.act()
    assert bench.card.watts == 320.0
    bench.asks_for("reset")
    bench.act()
    assert bench.runs[-1].state == "succeeded"
    assert "320 W again" in bench.steps(bench.runs[-1].id)[2].sentence
    assert bench.card.watts == 320.0
    assert len(bench.open_leases) == 1
    bench.pass_time(120)
    assert bench.card.watts == 400.0
    assert bench.open_leases == []
    assert bench.events("undone")[0]["reason"] == "restored"


def test_a_cap_that_cannot_be_set_again_ends_recorded_and_nobody_is_blamed(
    bench: DeviceBench,
) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.card.watts = 390.0
    bench.fire("GPUTemperatureWarning")
    bench.act()
    bench.asks_for("reset")
    bench.control.refusal = "NVML: Insufficient Permissions"
    bench.act()
    assert bench.runs[-1].state == "succeeded"
    assert bench.open_leases == []
    (undone,) = bench.events("undone")
    assert undone["reason"] == "already_original"
    assert "a reset of the card has undone the cap" in undone["sentence"]


# crashes


def crash_in(bench: DeviceBench, owner: object, method: str) -> None:
    original = getattr(owner, method)
    setattr(owner, method, lambda *arguments: die())
    bench.evaluate()
    with pytest.raises(Crash):
        bench.execute()
    setattr(owner, method, original)
    bench.restart()


def test_a_crash_between_stop_and_reset_goes_on(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    crash_in(bench, bench.control, "power")
    assert bench.done == WHOLE[:2]
    bench.execute()
    assert end(bench) == ("succeeded", "verified")
    assert bench.done == WHOLE
    assert bench.calls() == ["stop", "start"]


def test_after_a_crash_between_stop_and_reset_a_healthy_card_only_gets_its_service_back(
    bench: DeviceBench,
) -> None:
    bench.asks_for("reset")
    crash_in(bench, bench.control, "power")
    bench.card.recovery_action = "none"
    bench.execute()
    assert end(bench) == ("succeeded", "verified")
    assert bench.reset.resets == []
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None


@pytest.mark.parametrize("method", ["works", "give_back"])
def test_a_crash_in_or_right_after_the_reset_is_ambiguous_and_never_repeated(
    bench: DeviceBench, method: str
) -> None:
    bench.asks_for("reset")
    crash_in(bench, bench.release if method == "give_back" else bench.reset, method)
    bench.release.give_back()
    bench.execute()
    assert end(bench) == ("ambiguous", "interrupted")
    bench.pass_time(900)
    assert len(bench.reset.resets) == 1
    assert len(bench.runs) == 1
    assert bench.calls() == ["stop"]
    assert bench.incident(RECOVERY).state == "needs_human"


def test_a_crash_after_the_reset_starts_the_service_once(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    crash_in(bench, bench.managers["ollama"], "start")
    bench.execute()
    assert end(bench) == ("succeeded", "verified")
    assert len(bench.reset.resets) == 1
    assert bench.calls() == ["stop", "start"]
    with bench.store.reading() as tx:
        assert tx.inventory.service("ollama").restarts == 1


def test_a_crash_while_a_service_is_brought_back_does_not_forget_why(bench: DeviceBench) -> None:
    bench.asks_for("drain_and_reset")
    bench.reset.holders = (Client(77, "dcgm-exporter"),)
    crash_in(bench, bench.managers["ollama"], "start")
    bench.execute()
    assert end(bench) == ("failed", "in_use")
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None
    assert bench.reset.resets == []
