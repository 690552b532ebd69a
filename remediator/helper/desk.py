"""Does what is asked, where `helper.yml` allows it: each verb is a process of its own, never a shell.

What a client said never becomes part of an argv: a card's uuid is looked up among those that helper.yml or
the driver names, and theirs is used; numbers are numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from remediator.clock import Clock
from remediator.errors import ControlError, OutcomeUnknown
from remediator.gpu_control.base import PowerState
from remediator.gpu_control.jetson import JetsonControl
from remediator.gpu_control.nvidia_smi import NvidiaSmiControl
from remediator.gpu_control.nvml import NvmlControl
from remediator.gpu_reset.nvidia_smi import NvidiaSmiReset
from remediator.helper.ledger import Ledger
from remediator.helper.policy import Policy
from remediator.helper.protocol import TURN, VERBS, Outcome, Reply, Request
from remediator.helper.turns import ALL, Turns

log = logging.getLogger(__name__)

# So often at most is the driver asked for cards that it did not have the last time.
_LOOK_AGAIN_AFTER = 5.0


class Desk:
    """All verbs. Safe for several threads."""

    def __init__(
        self,
        policy: Policy,
        ledger: Ledger,
        clock: Clock,
        *,
        root: Path = Path("/"),
        is_root: Callable[[], bool] | None = None,
    ) -> None:
        """`root` is where `proc` and `sys` are, and `is_root` whether this runs as root; for tests."""
        self._policy = policy
        self._ledger = ledger
        self._clock = clock
        self._turns = Turns()
        self._nvml = NvmlControl(policy.timeout)
        self._power = (
            self._nvml
            if policy.control == "nvml"
            else NvidiaSmiControl(policy.nvidia_smi, policy.timeout)
        )
        self._jetson = JetsonControl(policy.timeout, root)
        more = {"is_root": is_root} if is_root else {}
        self._reset = NvidiaSmiReset(
            policy.nvidia_smi,
            policy.timeout,
            allow_consumer=policy.reset_allow_consumer,
            proc=root / "proc",
            **more,
        )
        self._reported: tuple[str, ...] = ()
        self._asked_at: float | None = None
        self._verbs: Mapping[str, Callable[[str, int], Mapping[str, Any]]] = {
            "power_limit": self._power_limit,
            "set_power_limit": self._set_power_limit,
            "reset_checks": self._reset_checks,
            "reset_clients": self._reset_clients,
            "reset": self._reset_card,
            "clock": lambda uuid, _: self._jetson.call(uuid, "read"),
            "set_clock": lambda uuid, hertz: self._jetson.call(uuid, "write", str(hertz)),
            "fan": lambda uuid, _: self._jetson.call(uuid, "fan"),
            "set_fan": lambda uuid, duty: self._jetson.call(uuid, "fan-write", str(duty)),
        }

    def answer(self, request: Request, still_there: Callable[[], bool]) -> Reply:
        """Do it, once it is its turn and if its client is still there then; never raises."""
        verb = VERBS[request.verb]
        if verb.permission is None:
            return Reply("done", value=self._about())
        if verb.permission not in self._policy.allow:
            return Reply("refused", f"helper.yml does not allow {verb.permission}")
        try:
            uuid = self._known(request)
        except ControlError as error:
            return Reply("refused", str(error))
        with self._turns.of(ALL if request.verb == "reset" else uuid, TURN) as mine:
            if not mine:
                return Reply("refused", f"{uuid} is busy: another call about it is under way")
            if not still_there():
                return Reply("refused", "its client went away before it was begun")
            earlier = self._ledger.untold(uuid)
            reply = self._do(request, uuid)
        if earlier is None:
            return reply
        return Reply(reply.outcome, reply.said, reply.value, earlier.to_client(self._clock.now()))

    def told(self, request: Request, reply: Reply) -> None:
        """Note that the client was given its answer."""
        if VERBS[request.verb].writes or reply.earlier is not None:
            self._ledger.tell(self._key(request))

    def _key(self, request: Request) -> str:
        """Under what name turns are taken and writes are noted."""
        # A Jetson has one GPU and no driver that names it: there the uuid chooses nothing.
        alone = VERBS[request.verb].permission == "jetson" and self._policy.cards == "all"
        return "jetson" if alone else request.uuid

    def _about(self) -> dict[str, Any]:
        cards = self._policy.cards
        return {
            "allow": list(self._policy.allow),
            "cards": cards if cards == "all" else list(cards),
            "control": self._policy.control,
        }

    def _known(self, request: Request) -> str:
        """The card's uuid as the policy or the driver has it.

        Raises:
            ControlError: there is no such card, or it is not to be touched.
        """
        policy, asked = self._policy, request.uuid
        if policy.cards != "all":
            found = next((uuid for uuid in policy.cards if uuid == asked), None)
            if found is None:
                raise ControlError("helper.yml does not name this card")
            return found
        if VERBS[request.verb].permission == "jetson":
            return self._key(request)
        if asked not in self._reported:
            self._look()
        found = next((uuid for uuid in self._reported if uuid == asked), None)
        if found is None:
            raise ControlError("the driver reports no such card")
        return found

    def _look(self) -> None:
        """Ask the driver which cards there are; not again and again for one that is not."""
        with self._turns.of("the list", TURN) as mine:
            now = self._clock.monotonic()
            recent = self._asked_at is not None and now - self._asked_at < _LOOK_AGAIN_AFTER
            if mine and not recent:
                self._asked_at = now
                self._reported = self._nvml.uuids()

    def _do(self, request: Request, uuid: str) -> Reply:
        act = self._verbs[request.verb]
        if not VERBS[request.verb].writes:
            outcome, said, value = _outcome(act, uuid, request.number)
            return Reply(outcome if outcome == "done" else "refused", said, value)
        refusal = self._why_not(request.verb, uuid)
        if refusal:
            return Reply("refused", refusal)
        try:
            entry = self._ledger.begin(request.verb, uuid)
        except OSError as error:
            return Reply("refused", f"the helper cannot note that it begins: {error.strerror}")
        outcome, said, value = _outcome(act, uuid, request.number)
        self._ledger.end(entry, outcome, said)
        return Reply(outcome, said, value)

    def _why_not(self, verb: str, uuid: str) -> str:
        """Why the card is not written to now; empty where nothing is in the way."""
        if self._ledger.writes_just_now(uuid) >= self._policy.writes_per_minute:
            return f"{uuid} was written to {self._policy.writes_per_minute} times within a minute"
        if verb != "reset":
            return ""
        if not self._ledger.lasting:
            return "resets need a folder for what was begun: start the helper with --state-dir"
        if self._ledger.resets_today(uuid) >= self._policy.resets_per_day:
            return f"{uuid} was reset {self._policy.resets_per_day} times within a day (helper.yml)"
        failed = [one for one in self._reset.checks(uuid) if one.passed is False]
        if failed:
            return "; ".join(f"{one.name}: {one.answer}" for one in failed)
        try:
            clients = self._reset.clients(uuid)
        except ControlError as error:
            return str(error)
        return f"held open by {', '.join(map(str, clients))}" if clients else ""

    def _power_limit(self, uuid: str, _: int) -> Mapping[str, Any]:
        return vars(self._power.power(uuid))

    def _set_power_limit(self, uuid: str, milliwatts: int) -> Mapping[str, Any]:
        state: PowerState = self._power.power(uuid)
        if not state.minimum <= milliwatts <= state.maximum:
            raise ControlError(
                f"{milliwatts} mW is outside of what the card takes, "
                f"{state.minimum} to {state.maximum} mW"
            )
        self._power.set_power_limit(uuid, milliwatts)
        return {}

    def _reset_checks(self, uuid: str, _: int) -> Mapping[str, Any]:
        return {"checks": [one.to_json() for one in self._reset.checks(uuid)]}

    def _reset_clients(self, uuid: str, _: int) -> Mapping[str, Any]:
        found = self._reset.clients(uuid)
        return {"clients": [{"pid": one.pid, "name": one.name} for one in found]}

    def _reset_card(self, uuid: str, _: int) -> Mapping[str, Any]:
        return {"confirmed": self._reset.reset(uuid, self._policy.reset_within)}


def _outcome(
    act: Callable[[str, int], Mapping[str, Any]], uuid: str, number: int
) -> tuple[Outcome, str, Mapping[str, Any]]:
    try:
        return "done", "", act(uuid, number)
    except OutcomeUnknown as error:
        return "unknown", str(error), {}
    except ControlError as error:
        return "refused", str(error), {}
    except Exception:
        log.exception("a verb failed in a way that was not foreseen")
        return "unknown", "an error inside the helper; its log has it", {}
