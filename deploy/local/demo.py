"""The incidents that ``make up`` plays on simulated GPUs, as scripts that wait for the world."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from deploy.local.errors import StackError
from deploy.local.stack import Stack

Say = Callable[[str], None]
Script = Generator[None, None, None]
T = TypeVar("T")

_HOT_CELSIUS = 84
_BUSY_SECONDS = 45
_PATIENCE_SECONDS = 180
_BREATH_SECONDS = 3


def incidents(stack: Stack, say: Say) -> Script:
    """Plays the three incidents one after the other.

    The caller asks for the next item a few times a second; a script only ever looks and acts
    briefly in between.

    Args:
        stack: A ready stack with simulated GPUs and service, in mode ``auto``, ``approve`` or ``observe``.
        say: Gets each sentence of the narrator.

    Raises:
        StackError: The stack does not answer; the incident at hand cannot be played.
    """
    acts = stack.options.mode != "observe"
    stack.start_load()
    for incident in (overheating, busy, killed) if acts else (overheating, busy):
        yield from _pause(_BREATH_SECONDS)
        yield from incident(stack, say)
    say("All incidents are played. The stack keeps running until Ctrl-C.")


def overheating(stack: Stack, say: Say) -> Script:
    """A card overheats, is capped, cools, and is restored."""
    card = stack.simulated_gpus()[0]
    uuid, limit = card["uuid"], card["power_limit_watts"]
    acts = stack.options.mode != "observe"
    say(
        f"Incident 1: the fan of GPU 0 fails. At full power ({limit:g} W) the card would settle at "
        f"{_HOT_CELSIUS} °C. Expect "
        + (
            f"a power cap{_once_approved(stack)}, cooling, and the cap undone."
            if acts
            else "an alert, and what the remediator would do; it only observes."
        )
    )
    fault = stack.inject("heat", celsius=_HOT_CELSIUS)
    if not acts:
        yield from _pause(_BUSY_SECONDS)
        stack.clear(fault)
        return
    cap = yield from _until(lambda: _cap(stack, uuid, limit))
    if cap is None:
        say("The card was not capped in time; see the lines above and the remediator's log.")
        stack.clear(fault)
        return
    say(f"The card's power limit is now {cap:g} W at {_celsius(stack, uuid)} °C. Watch it cool.")
    cool = yield from _until(lambda: _verified(stack, "GPUTemperatureWarning"))
    stack.clear(fault)
    if cool:
        say(f"The card is at {_celsius(stack, uuid)} °C. Somebody repairs the fan.")
    restored = yield from _until(lambda: _limit(stack, uuid) == limit)
    if restored:
        say(f"The card has its {limit:g} W back, at {_celsius(stack, uuid)} °C.")


def busy(stack: Stack, say: Say) -> Script:
    """A card is saturated by real work: nothing may be done."""
    say(
        "Incident 2: GPU 0 is 99 % busy for more than 30 s, and tokens flow. Busy is not hung: "
        "expect an alert, a look at the evidence, and nothing done."
    )
    before = len(stack.writes())
    fault = stack.inject("load", ratio=1.0)
    yield from _pause(_BUSY_SECONDS)
    stack.clear(fault)
    written = len(stack.writes()) - before
    say(f"Control writes that reached the card meanwhile: {written}.")


def killed(stack: Stack, say: Say) -> Script:
    """The service's process is killed, restarted, and answers again."""
    old = stack.kill_service()
    say(
        f"Incident 3: the LLM service (pid {old}) is killed. Expect a restart"
        f"{_once_approved(stack)}, the model loaded again, and a test answer."
    )
    back = yield from _until(lambda: _verified(stack, "LLMServiceDown"))
    say(
        f"The service runs again as pid {stack.service_pid()}, with "
        f"{', '.join(stack.loaded_models())} loaded."
        if back
        else "The service did not come back in time; see the lines above and the remediator's log."
    )


def _once_approved(stack: Stack) -> str:
    return " once you have approved it" if stack.options.mode == "approve" else ""


def _cap(stack: Stack, uuid: str, limit: float) -> float | None:
    now = _limit(stack, uuid)
    return now if now < limit else None


def _limit(stack: Stack, uuid: str) -> float:
    return float(_card(stack, uuid)["power_limit_watts"])


def _celsius(stack: Stack, uuid: str) -> int:
    return round(float(_card(stack, uuid)["temperature_celsius"]))


def _card(stack: Stack, uuid: str) -> dict[str, Any]:
    return next(card for card in stack.simulated_gpus() if card["uuid"] == uuid)


def _verified(stack: Stack, alertname: str) -> bool:
    return any(
        record["event"] == "verified" and record["alertname"] == alertname
        for record in stack.audit()
    )


def _until(condition: Callable[[], T]) -> Generator[None, None, T | None]:
    """Waits for the first truthy answer; None when it does not come in time."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        # A part that is away for a moment is one more reason to wait.
        with contextlib.suppress(StackError):
            if answer := condition():
                return answer
        yield
    return None


def _pause(seconds: float) -> Script:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
