"""SIGKILL of the remediator, and a reset that nobody allowed: what is begun is finished, nothing else is.

Through the real NVML binding, on the C stand-in for libnvidia-ml.so.1.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from deploy.local.options import ServiceOptions
from deploy.local.stack import Stack
from tests.e2e import nvidia_smi, on_driver
from tests.e2e.conftest import Incident, Played, Watcher, side_by_side
from tests.e2e.scene import card

HELD_WRITE = "nvmlDeviceSetPowerManagementLimit"
CAPPED, BETWEEN, FAULTY = range(3)


def killed_remediator_restores_what_is_due_and_does_nothing_twice(watch: Watcher) -> None:
    _killed_while_a_cap_is_in_place(watch)
    _killed_between_intent_and_step(watch)


def _killed_while_a_cap_is_in_place(watch: Watcher) -> None:
    stack, uuid = watch.stack, card(watch.stack, CAPPED)
    fault = stack.inject("heat", uuid, celsius=84, immediate=True)
    watch.until("the cap is verified", lambda: watch.events("verified", target=f"gpu:{uuid}"))
    _is_back(watch, stack.kill("remediator", signal.SIGKILL))
    stack.clear(fault)
    watch.until("the cap is undone", lambda: watch.events("undone", target=f"gpu:{uuid}"))
    assert _writes(stack, uuid) == [320_000, 400_000]
    assert [run["state"] for run in watch.runs(f"gpu:{uuid}")] == ["succeeded"]


def _killed_between_intent_and_step(watch: Watcher) -> None:
    stack, uuid = watch.stack, card(watch.stack, BETWEEN)
    faults = on_driver.folder_of(stack) / "driver" / "faults"
    faults.write_text(f"{HELD_WRITE} * hang 0\n")
    try:
        fault = stack.inject("heat", uuid, celsius=84, immediate=True)
        watch.until(
            "the intent is journaled", lambda: watch.events("step_started", target=f"gpu:{uuid}")
        )
        assert _writes(stack, uuid) == [], "the driver has not been written yet"
        killed = stack.kill("remediator", signal.SIGKILL)
    finally:
        faults.unlink()
    _is_back(watch, killed)
    watch.until("the run goes on", lambda: watch.events("step_resumed", target=f"gpu:{uuid}"))
    watch.until("the cap is verified", lambda: watch.events("verified", target=f"gpu:{uuid}"))
    stack.clear(fault)
    watch.until("the cap is undone", lambda: watch.events("undone", target=f"gpu:{uuid}"))
    assert _writes(stack, uuid)[-1] == 400_000
    assert set(_writes(stack, uuid)) == {320_000, 400_000}
    assert [run["state"] for run in watch.runs(f"gpu:{uuid}")] == ["succeeded"]
    assert stack.metric("remediator", "remediator_undo_leases") == 0


def reset_that_is_not_allowed_is_refused_and_on_call_hears_it(watch: Watcher) -> None:
    """The driver asks for a reset, and ``allow`` does not name it."""
    stack, service, uuid = watch.stack, watch.stack.llm(), card(watch.stack, FAULTY)
    pid = service.pid()
    stack.inject("recovery_action", uuid, action="reset")
    decision = watch.until(
        "it is refused",
        lambda: watch.events(
            "decision", alertname="GPURecoveryActionRequired", target=f"gpu:{uuid}"
        ),
    )[0]
    assert (decision["data"]["decision"], decision["reason"]) == ("refuse", "not_allowed")
    assert "gpu_reset" in decision["sentence"]
    watch.until("on-call hears it", lambda: watch.pages("GPURecoveryActionRequired", uuid=uuid))
    # It may just be away: another incident kills it.
    (runs,) = watch.until("its runs are known", lambda: [watch.runs(f"gpu:{uuid}")])
    assert runs == []
    assert nvidia_smi.resets(on_driver.folder_of(stack)) == []
    assert service.pid() == pid, "its service is not stopped for nothing"


INCIDENTS = (
    killed_remediator_restores_what_is_due_and_does_nothing_twice,
    reset_that_is_not_allowed_is_refused_and_on_call_hears_it,
)


def _is_back(watch: Watcher, killed: int) -> None:
    stack = watch.stack
    watch.until(
        "supervisord starts it again", lambda: stack.pid("remediator") not in (None, killed)
    )
    watch.until("it answers again", lambda: stack.runs() is not None)


def _writes(stack: Stack, uuid: str) -> list[int]:
    return [milliwatts for card, milliwatts in on_driver.written(stack) if card == uuid]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("crash")
    with on_driver.running(folder, gpus=3, services=(ServiceOptions(gpu=FAULTY),)) as running:
        yield running


@pytest.fixture(scope="module")
def played(stack: Stack) -> Iterator[Played]:
    with side_by_side(stack, INCIDENTS) as playing:
        yield playing


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda told: told.__name__)
def test_incident(incident: Incident, played: Played) -> None:
    played.came_to_its_end(incident)
