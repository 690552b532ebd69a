"""Does a card need a reset, and may a machine do it? Pure.

Sources: NVML field 230 (recovery action) and the immediate actions of NVIDIA's Xid catalogue, as the
exporter gives them. Nothing heavier than a recovery action that can be read is ever concluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from remediator.readings import XidSeen

Judgement = Literal["reset", "lost", "reboot", "not_ours", "no_fault", "restart_app", "unknown"]

RESETS = ("reset", "drain_and_reset")
"""Recovery actions that ask for a reset of this one card."""

_REBOOTS = ("reboot", "system_reboot")
_BY_HAND = ("restart_vm", "inspect", "contact_support", "check_power_cables", "update_software")
_SAYS = {
    "reboot": "the host has to be rebooted",
    "system_reboot": "the whole system has to be rebooted",
    "drain_p2p": "its peers have to stop their traffic with it first",
    "recover_imex_domain": "its IMEX domain has to be recovered",
    "bus_reset": "its bus has to be reset, and all that is on it",
}


@dataclass(frozen=True)
class DeviceEvidence:
    """What is known of a card.

    `recovery_action` is None where the driver does not say; `xids` are those that came lately and
    since the last reset, None where nobody watches for them.
    """

    fresh: bool
    fault: str | None
    recovery_action: str | None
    xids: Sequence[XidSeen] | None


@dataclass(frozen=True)
class DeviceVerdict:
    """What the card needs. `reset`: that may be done here. `not_ours`: a person has to do it."""

    judgement: Judgement
    sentence: str


def judge(evidence: DeviceEvidence) -> DeviceVerdict:
    """The verdict."""
    return _beyond_reach(evidence) or (
        _as_asked(evidence, evidence.recovery_action)
        if evidence.recovery_action is not None
        else _by_xids(evidence)
    )


def _beyond_reach(evidence: DeviceEvidence) -> DeviceVerdict | None:
    if evidence.fault == "lost":
        return DeviceVerdict("lost", "it has fallen off the bus: no reset can reach it")
    fallen = _of(evidence, "reboot_host")
    if fallen is not None:
        return DeviceVerdict(
            "lost", f"{_named(fallen)}: no reset can reach it, the host has to be rebooted"
        )
    if evidence.fault not in (None, "reset_required"):
        return DeviceVerdict("unknown", f"it does not answer (fault {evidence.fault})")
    if not evidence.fresh and evidence.fault is None:
        return DeviceVerdict("unknown", "there is no fresh reading")
    return None


def _as_asked(evidence: DeviceEvidence, action: str) -> DeviceVerdict:
    says = f"the driver's recovery action is {action}"
    if action in RESETS:
        return DeviceVerdict("reset", says)
    if action in _REBOOTS:
        return DeviceVerdict("reboot", f"{says}: {_SAYS[action]}, which a person decides")
    if action != "none":
        why = _SAYS.get(action, "this version does not know it")
        return DeviceVerdict("not_ours", f"{says}: {why}, which a person has to do")
    if evidence.fault == "reset_required":
        sentence = f"{says}, yet it refuses work until it is reset: the two contradict each other"
        return DeviceVerdict("not_ours", sentence)
    died = _of(evidence, "restart_app")
    if died is not None:
        return DeviceVerdict("restart_app", f"{_restarts(died)}; {says}")
    return DeviceVerdict("no_fault", says)


def _by_xids(evidence: DeviceEvidence) -> DeviceVerdict:
    """The driver does not say what it wants, as before driver 555."""
    if evidence.fault == "reset_required":
        return DeviceVerdict("reset", "it refuses work until it is reset")
    resets = [xid for xid in evidence.xids or () if xid.action == "reset_gpu"]
    agreed = next((xid for xid in resets if not xid.contested), None)
    if agreed is not None:
        return DeviceVerdict("reset", f"{_named(agreed)}, and the driver gives no recovery action")
    if resets:
        sentence = f"{_named(resets[0])}, but not all agree: {resets[0].contested}"
        return DeviceVerdict("not_ours", f"{sentence}; a person has to decide")
    for action in _BY_HAND:
        found = _of(evidence, action)
        if found is not None:
            return DeviceVerdict("not_ours", f"{_named(found)}, which a person has to do")
    died = _of(evidence, "restart_app")
    if died is not None:
        return DeviceVerdict("restart_app", _restarts(died))
    if evidence.xids is None:
        sentence = "neither a recovery action nor its Xid errors can be read"
        return DeviceVerdict("unknown", sentence)
    if evidence.xids:
        codes = ", ".join(str(xid.xid) for xid in evidence.xids)
        sentence = f"it answers, and its Xid errors of late ({codes}) ask for nothing"
        return DeviceVerdict("no_fault", sentence)
    return DeviceVerdict("no_fault", "it answers and has had no Xid error lately")


def _of(evidence: DeviceEvidence, action: str) -> XidSeen | None:
    return next((xid for xid in evidence.xids or () if xid.action == action), None)


def _named(xid: XidSeen) -> str:
    meaning = f" ({xid.meaning})" if xid.meaning else ""
    return f"Xid {xid.xid}{meaning}: NVIDIA's catalogue says {xid.action}"


def _restarts(xid: XidSeen) -> str:
    return (
        f"{_named(xid)}: an application died of it, the card needs nothing; "
        "a service that is down is started by its own playbook"
    )
