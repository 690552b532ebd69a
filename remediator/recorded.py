"""A recorded day: what was delivered when, and what evidence was found, from several kinds of files.

Pure: text in, values out. Each line of a file is one of

* `{"time": …, "body": {…}}`: a delivery with the time at which it came (Unix seconds or RFC 3339),
* the body of a delivery alone: it then came at the moment that its alerts name,
* a record of `gpu-remediator audit export`: also what was found then.

Or the whole file is what `amtool alert --output=json` prints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from remediator import alertmanager
from remediator.alertmanager import Alert, Notification
from remediator.errors import ConfigError, PayloadError
from remediator.policy.decision import GATE_REASONS

Found = Literal["present", "absent", "unknown"]

_FOUND: Mapping[str, Found] = {
    "run": "present",
    "ask": "present",
    "observe": "present",
    "refute": "absent",
}


@dataclass(frozen=True)
class Delivery:
    """What came at `time` (Unix seconds)."""

    time: float
    notification: Notification


@dataclass(frozen=True)
class Evidence:
    """What was found about an alert at `time`."""

    time: float
    fingerprint: str
    found: Found
    reason: str
    sentence: str


@dataclass(frozen=True)
class Day:
    """Everything of a file, in the order of time."""

    deliveries: tuple[Delivery, ...]
    evidence: tuple[Evidence, ...]

    def found(self, fingerprint: str, now: float) -> Evidence | None:
        """The evidence about that alert at `now`: the newest before, else the first after it."""
        mine = [one for one in self.evidence if one.fingerprint == fingerprint]
        before = [one for one in mine if one.time <= now]
        return before[-1] if before else (mine[0] if mine else None)


def read(text: str) -> Day:
    """The day in `text`.

    Raises:
        ConfigError: a line is none of what can be read; the message names it.
    """
    deliveries: list[Delivery] = []
    evidence: list[Evidence] = []
    if text.lstrip().startswith("["):
        deliveries += _listed(_json(text, "the file"))
    else:
        labels_of: dict[int, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            where = f"line {number}"
            raw = _json(line, where)
            if not isinstance(raw, dict):
                raise ConfigError(f"{where} is not a JSON object")
            try:
                if "event" in raw and "seq" in raw:
                    _audited(raw, labels_of, deliveries, evidence)
                else:
                    deliveries.append(_delivered(raw))
            except (PayloadError, KeyError, TypeError, ValueError) as error:
                raise ConfigError(f"{where}: {_why(error)}") from None
    return Day(
        tuple(sorted(deliveries, key=lambda one: one.time)),
        tuple(sorted(evidence, key=lambda one: one.time)),
    )


def _why(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None


def _delivered(raw: Mapping[str, Any]) -> Delivery:
    body = raw.get("body", raw)
    notification = alertmanager.parse(json.dumps(body).encode())
    if "body" in raw and "time" in raw:
        return Delivery(_moment(raw["time"]), notification)
    moments = [alert.ends_at or alert.starts_at for alert in notification.alerts]
    return Delivery(max(moments, default=0.0), notification)


def _moment(raw: object) -> float:
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return float(raw)
    moment = datetime.fromisoformat(str(raw))
    if moment.tzinfo is None:
        raise ValueError(f"the time {raw!r} names no time zone")
    return moment.timestamp()


def _listed(raw: Any) -> Iterator[Delivery]:
    """What amtool lists: each alert from when it began, and its end where that has passed."""
    if not isinstance(raw, list):
        raise ConfigError("the file is not a list of alerts")
    for number, one in enumerate(raw, start=1):
        try:
            labels, begins = dict(one["labels"]), _moment(one["startsAt"])
            active = one.get("status", {}).get("state") != "resolved"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"alert {number} is not one of amtool's: {_why(error)}") from None
        yield _single(begins, "firing", labels, begins, None)
        if not active:
            ends = _moment(one["endsAt"])
            yield _single(ends, "resolved", labels, begins, ends)


def _audited(
    raw: Mapping[str, Any],
    labels_of: dict[int, str],
    deliveries: list[Delivery],
    evidence: list[Evidence],
) -> None:
    event, time = raw["event"], float(raw["time"])
    episode = int(raw.get("episode") or 0)
    if event in ("alert_received", "alert_resolved", "alert_found_again"):
        labels, begins = dict(raw["data"]["labels"]), float(raw["data"]["starts_at"])
        status: Literal["firing", "resolved"] = "firing"
        if event == "alert_resolved":
            status = "resolved"
        ends = time if status == "resolved" else None
        deliveries.append(_single(time, status, labels, begins, ends))
        labels_of[episode] = deliveries[-1].notification.alerts[0].fingerprint
    elif event == "decision" and episode in labels_of and raw["reason"] not in _SAYS_NOTHING:
        decided = raw["data"]["decision"]
        evidence.append(
            Evidence(
                time,
                labels_of[episode],
                _FOUND.get(decided, "unknown"),
                raw["reason"],
                _evidence_of(raw),
            )
        )


def _evidence_of(raw: Mapping[str, Any]) -> str:
    """What was found, of the sentence of a decision: not what was decided, which is decided anew."""
    sentence = str(raw["sentence"])
    decided, found, rest = sentence.partition(f": {raw['reason']}: ")
    if found and decided.startswith(str(raw["data"].get("playbook", ""))):
        sentence = rest
    return min((sentence.partition(mark)[0] for mark in _DECIDED), key=len)


# What the evaluator says behind the evidence.
_DECIDED = (". Observing only; would: ", ". A person has to approve it")


# Decided before any evidence was read; these three come after it.
_SAYS_NOTHING = frozenset(GATE_REASONS) - {"accepted", "mode_observe", "needs_approval"}


def _single(
    time: float,
    status: Literal["firing", "resolved"],
    labels: Mapping[str, str],
    begins: float,
    ends: float | None,
) -> Delivery:
    named = {str(key): str(value) for key, value in labels.items()}
    fingerprint = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]
    alert = Alert(fingerprint, status, named, {}, begins, ends)
    return Delivery(time, Notification("replay", "", 0, (alert,), fingerprint))
