"""Device faults: reset only where the driver or NVIDIA's catalogue says so, and both keys are given."""

from __future__ import annotations

from typing import Any

import pytest

from tests.remediator.engine.device_scene import (
    ALL_CHECKS,
    LOST,
    RECOVERY,
    WHOLE,
    DeviceBench,
    end,
    refuse,
)

# what is reset, and what is not


@pytest.mark.parametrize("action", ["reset", "drain_and_reset"])
def test_a_card_that_asks_for_a_reset_is_reset_and_its_service_is_back(
    bench: DeviceBench, action: str
) -> None:
    bench.asks_for(action)
    bench.act()
    assert end(bench) == ("succeeded", "verified")
    assert bench.done == WHOLE
    assert bench.reset.resets == [bench.uuids[0]]
    assert bench.release.calls == ["let go", "give back"]
    assert bench.calls() == ["stop", "start"]
    assert bench.held() is None
    assert bench.drivers["ollama"].loads == ["llama"]
    assert bench.audit_holds()


def test_every_precondition_is_recorded_with_its_answer(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.act()
    preflight, *_ = bench.steps()
    assert [one["check"] for one in preflight.result["checks"]] == ALL_CHECKS
    assert all(one["passed"] and one["answer"] for one in preflight.result["checks"])


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("reboot", "reboot"),
        ("system_reboot", "reboot"),
        ("drain_p2p", "not_ours"),
        ("bus_reset", "not_ours"),
        ("recover_imex_domain", "not_ours"),
        ("unknown", "not_ours"),
    ],
)
def test_what_a_machine_may_not_do_is_a_persons_at_once(
    bench: DeviceBench, action: str, reason: str
) -> None:
    bench.asks_for(action)
    bench.act()
    assert bench.runs == []
    assert bench.decisions == [f"refuse:{reason}"]
    assert bench.incident(RECOVERY).state == "needs_human"
    assert bench.calls() == []


def test_a_lost_card_is_never_reset(bench: DeviceBench) -> None:
    bench.card.fault = "lost"
    bench.fire(LOST)
    bench.act()
    assert bench.decisions == ["refuse:lost"]
    assert bench.incident(LOST).state == "needs_human"


def test_a_card_that_fell_off_the_bus_is_not_reset_even_if_it_asks_for_it(
    bench: DeviceBench,
) -> None:
    bench.had_xid(79, "reboot_host")
    bench.card.recovery_action = "reset"
    bench.act()
    assert bench.decisions == ["refuse:lost"]
    assert "reboot_host" in bench.events("decision")[0]["sentence"]


def test_an_xid_never_leads_to_more_than_the_driver_asks_for(bench: DeviceBench) -> None:
    bench.had_xid(119, "reset_gpu")
    bench.card.recovery_action = "none"
    bench.act()
    assert bench.decisions == ["refute:no_fault"]
    assert bench.reset.resets == []


def test_without_a_recovery_action_a_fresh_xid_of_the_reset_set_decides(
    bench: DeviceBench,
) -> None:
    bench.had_xid(119, "reset_gpu")
    bench.act()
    assert end(bench) == ("succeeded", "verified")
    assert bench.reset.resets == [bench.uuids[0]]


def unreadable(card: Any) -> None:
    """Its driver goes on giving no recovery action after the reset."""
    card.fault, card.watts = None, 400.0


def test_an_xid_from_before_the_reset_is_over_with_it(bench: DeviceBench) -> None:
    bench.had_xid(119, "reset_gpu")
    bench.reset.does = lambda uuid: unreadable(bench.card) or True
    bench.act()
    assert end(bench) == ("succeeded", "verified")
    bench.fire("GPUFault")
    bench.clock.advance(120)
    bench.evaluate()
    assert bench.decisions[-1] in ("refuse:duplicate", "refute:no_fault")
    assert len(bench.reset.resets) == 1


def test_an_unconfirmed_reset_of_a_card_that_cannot_tell_has_failed(bench: DeviceBench) -> None:
    bench.had_xid(119, "reset_gpu")
    bench.reset.does = lambda uuid: bool(unreadable(bench.card))
    bench.act()
    assert end(bench) == ("failed", "not_reset")


@pytest.mark.parametrize("ago", [700.0, 3600.0])
def test_an_old_xid_resets_nothing(bench: DeviceBench, ago: float) -> None:
    bench.clock.advance(7200)
    bench.had_xid(119, "reset_gpu", ago=ago)
    bench.act()
    assert bench.decisions == ["refute:no_fault"]


def test_an_xid_from_before_the_boot_resets_nothing(bench: DeviceBench) -> None:
    bench.had_xid(119, "reset_gpu", ago=1100)
    bench.act()
    assert bench.decisions == ["refute:no_fault"]


def test_an_xid_that_killed_an_application_resets_nothing(bench: DeviceBench) -> None:
    bench.had_xid(13, "restart_app")
    bench.act()
    assert bench.decisions == ["refute:restart_app"]
    assert bench.calls() == []


@pytest.mark.parametrize("action", ["inspect", "restart_vm", "contact_support"])
def test_an_xid_that_a_person_has_to_decode_is_a_persons(bench: DeviceBench, action: str) -> None:
    bench.had_xid(48, action)
    bench.act()
    assert bench.decisions == ["refuse:not_ours"]


def test_a_card_that_refuses_work_until_a_reset_is_reset(bench: DeviceBench) -> None:
    bench.card.fault = "reset_required"
    bench.fire("GPUFault")
    bench.act()
    assert end(bench) == ("succeeded", "verified")


@pytest.mark.parametrize("fault", ["timeout", "unknown", "released"])
def test_a_card_that_does_not_answer_is_not_reset(bench: DeviceBench, fault: str) -> None:
    bench.asks_for("reset")
    bench.card.fault = fault
    bench.act()
    assert bench.decisions == ["defer:unknown"]
    bench.pass_time(400)
    assert bench.decisions[-1] == "refuse:unknown"
    assert bench.incident(RECOVERY).state == "needs_human"
    assert bench.calls() == []


def test_an_old_reading_is_no_evidence(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.card.age = 60.0
    bench.act()
    assert bench.decisions == ["defer:unknown"]


def test_a_silent_exporter_is_no_evidence(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.gpus.silent = True
    bench.act()
    assert bench.decisions == ["defer:no_fresh_reading"]


# keys, modes and other runs


@pytest.mark.parametrize("allow", [[], ["service_stop"], ["gpu_reset"], ["service_restart"]])
def test_without_both_keys_it_is_a_persons(make: Any, allow: list[str]) -> None:
    bench = make(allow=allow)
    bench.asks_for("reset")
    bench.act()
    assert bench.decisions == ["refuse:not_allowed"]
    assert bench.incident(RECOVERY).state == "needs_human"
    assert bench.calls() == []


def test_without_the_key_a_false_alert_calls_nobody(make: Any) -> None:
    bench = make(allow=[])
    bench.asks_for("none")
    bench.act()
    assert bench.decisions == ["refute:no_fault"]


def test_without_a_service_of_ours_on_it_the_card_is_left_alone(make: Any) -> None:
    bench = make(services=())
    bench.asks_for("reset")
    bench.act()
    assert bench.decisions == ["refuse:no_service"]
    assert bench.reset.resets == []


def test_two_alerts_about_one_card_are_one_run(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.had_xid(119, "reset_gpu")
    bench.card.recovery_action = "reset"
    bench.reset.does = refuse("in use by another client")
    bench.act()
    bench.pass_time(900)
    assert len(bench.runs) == 1
    assert bench.reset.resets == [bench.uuids[0]]


def test_a_second_alert_does_not_ask_again_what_was_refused(bench: DeviceBench) -> None:
    bench.asks_for("reset")
    bench.had_xid(119, "reset_gpu")
    bench.card.recovery_action = "reset"
    bench.release.missing = "exporter.release_token_file is not set"
    bench.pass_time(300)
    assert [run.state for run in bench.runs] == ["failed"]
    assert "refuse:duplicate" in bench.decisions


def test_a_later_firing_does_not_reset_the_card_a_second_time_that_day(
    bench: DeviceBench,
) -> None:
    bench.asks_for("reset")
    bench.act()
    bench.resolve(RECOVERY)
    bench.clock.advance(7200)
    bench.asks_for("reset")
    bench.act()
    assert [run.state for run in bench.runs] == ["succeeded", "failed"]
    assert bench.runs[1].reason == "may_not_reset"
    assert "one was tried 2h" in bench.runs[1].sentence
    assert len(bench.reset.resets) == 1
    assert bench.calls() == ["stop", "start"]
    assert bench.incident(RECOVERY).state == "needs_human"


def test_a_stop_for_heat_outweighs_it(bench: DeviceBench) -> None:
    weights = {name: book.weight for name, book in bench.playbooks.by_name.items()}
    assert weights["recover-hang"] < weights["device-fault"] < weights["emergency-stop"]
