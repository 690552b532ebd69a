"""Tells what happens in a stack: one aligned line for each alert, decision, step and outcome."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from deploy.local.errors import Unreachable

# Words that fit their column; any other event's name does.
_KINDS = {
    "acknowledged": "closed",
    "alert_found_again": "found again",
    "alert_received": "received",
    "alert_refired": "refired",
    "alert_resolved": "resolved",
    "approval_kept_back": "kept back",
    "audit_segment": "segment",
    "breaker_opened": "breaker",
    "clock_stepped": "clock",
    "config_rejected": "rejected",
    "config_reloaded": "reloaded",
    "emergency_stop": "emergency",
    "episode_silent": "silent",
    "episode_unlisted": "unlisted",
    "incident_closed": "closed",
    "not_verified": "unverified",
    "out_of_memory": "no memory",
    "run_finished": "finished",
    "run_reserved": "run",
    "runs_forgotten": "forgotten",
    "step_finished": "step",
    "step_resumed": "step",
    "step_started": "step",
    "undo_card_gone": "card gone",
    "undo_requested": "undo asked",
}
# It always fires; other alerts tell when it no longer arrives.
_HEARTBEAT = "Watchdog"
_COLOURS = {"critical": "31", "warning": "33", "good": "32", "narration": "1"}
_GOOD_KINDS = frozenset({"verified", "undone", "closed"})
_KIND_WIDTH = 11
_SUBJECT_WIDTH = 22
_UUID = re.compile(r"\b((?:GPU|MIG)-[0-9a-f]{8})(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


class Source(Protocol):
    """What the story is told from."""

    def audit(self, after: int = 0) -> list[dict[str, Any]]:
        """Audit records with a sequence number above ``after``."""
        ...

    def alerts(self) -> list[dict[str, Any]]:
        """Prometheus' firing alerts."""
        ...

    def on_call(self) -> list[dict[str, Any]]:
        """The notifications to a person so far."""
        ...


@dataclass(frozen=True)
class Line:
    """One thing that happened.

    Attributes:
        time: Unix seconds.
        kind: One word for what it is.
        subject: What it is about: an alert, a playbook, a card.
        text: The sentence.
        tone: A key of the colours, or empty.
    """

    time: float
    kind: str
    subject: str
    text: str
    tone: str = ""

    def render(self, *, colour: bool) -> str:
        """The line in local time, aligned with the others.

        Args:
            colour: Whether the kind is coloured for a terminal.
        """
        clock = time.strftime("%H:%M:%S", time.localtime(self.time))
        kind = f"{self.kind.replace('_', ' '):<{_KIND_WIDTH}}"
        if colour and self.tone in _COLOURS:
            kind = f"\x1b[{_COLOURS[self.tone]}m{kind}\x1b[0m"
        subject = f"{_readable(self.subject):<{_SUBJECT_WIDTH}} " if self.subject else ""
        return f"{clock}  {kind} {subject}{_readable(self.text)}".rstrip()


def wants_colour(environment: Mapping[str, str], *, terminal: bool) -> bool:
    """Whether to colour: on a terminal, unless ``NO_COLOR`` is set to anything but nothing."""
    return terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def from_record(record: Mapping[str, Any]) -> Line:
    """The line for an audit record."""
    kind = _KINDS.get(str(record["event"]), str(record["event"]))
    severity = str(record.get("severity") or "")
    return Line(
        time=float(record["time"]),
        kind=kind,
        subject=str(record.get("alertname") or record.get("target") or ""),
        text=str(record["sentence"]),
        tone=severity if severity in _COLOURS else "good" if kind in _GOOD_KINDS else "",
    )


class Narrator:
    """Follows a source and prints what is new in it."""

    def __init__(
        self,
        source: Source,
        say: Callable[[str], None],
        *,
        colour: bool,
        approve: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        """Starts at the beginning of the audit trail.

        Args:
            source: What to follow.
            say: Gets each line.
            colour: Whether lines are coloured.
            approve: The command that lets a run begin, without its number.
            now: Unix seconds.
        """
        self._source = source
        self._say = say
        self._colour = colour
        self._approve = approve
        self._asking = False
        self._now = now
        self._last_look = now()
        self._seen_record = 0
        self._notifications = 0
        self._firing: dict[frozenset[tuple[str, str]], str] = {}
        self._silent: set[str] = set()

    def narrate(self, text: str) -> None:
        """Prints a line of the narrator's own."""
        self._print([Line(self._now(), "demo", "", text, "narration")])

    def catch_up(self) -> None:
        """Prints what happened since the last call; a part that is away is said once."""
        looked = self._now()
        lines = [
            *self._from("Prometheus", self._alerts),
            *self._from("The remediator", self._records),
            *self._from("The on-call receiver", self._pages),
        ]
        self._last_look = looked
        self._print(sorted(lines, key=lambda line: line.time))

    def _from(self, part: str, lines: Callable[[], list[Line]]) -> list[Line]:
        try:
            new = lines()
        except Unreachable as error:
            if part in self._silent:
                return []
            self._silent.add(part)
            return [Line(self._now(), "away", "", f"{part} does not answer: {error}", "warning")]
        if part in self._silent:
            self._silent.discard(part)
            return [Line(self._now(), "back", "", f"{part} answers again.", "good"), *new]
        return new

    def _records(self) -> list[Line]:
        records = self._source.audit(self._seen_record)
        if records:
            self._seen_record = int(records[-1]["seq"])
        told = [record for record in records if record.get("alertname") != _HEARTBEAT]
        return [line for record in told for line in (from_record(record), *self._asked(record))]

    def _asked(self, record: Mapping[str, Any]) -> list[Line]:
        """How a run that waits for a person is answered."""
        if record["event"] == "decision":
            self._asking = record.get("reason") == "needs_approval"
        if record["event"] != "run_reserved" or not self._asking or not self._approve:
            return []
        how = f"It waits for you. To let it begin: {self._approve} {record['run']}"
        subject = str(record.get("alertname") or "")
        return [Line(float(record["time"]), "approval", subject, how, "warning")]

    def _alerts(self) -> list[Line]:
        # An alert began to fire after the last look, and before what it made others do.
        time_of_change = self._last_look
        firing = {frozenset(alert["labels"].items()): alert for alert in self._source.alerts()}
        started = [
            _fired(time_of_change, alert)
            for key, alert in firing.items()
            if key not in self._firing
        ]
        ended = [
            Line(time_of_change, "over", name, "The alert no longer fires.", "good")
            for key, name in self._firing.items()
            if key not in firing
        ]
        self._firing = {key: alert["labels"]["alertname"] for key, alert in firing.items()}
        return [*ended, *started]

    def _pages(self) -> list[Line]:
        notifications = self._source.on_call()
        new = notifications[self._notifications :]
        self._notifications = len(notifications)
        return [line for notification in new for line in _paged(notification)]

    def _print(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self._say(line.render(colour=self._colour))


def _fired(when: float, alert: Mapping[str, Any]) -> Line:
    labels, annotations = alert["labels"], alert.get("annotations", {})
    described = annotations.get("description") or annotations.get("summary") or "fires"
    severity = labels.get("severity", "")
    return Line(when, "alert", labels["alertname"], _SENTENCE_END.split(described)[0], severity)


def _paged(kept: Mapping[str, Any]) -> list[Line]:
    return [
        Line(
            float(kept["time"]),
            "page",
            alert["labels"].get("alertname", ""),
            f"On-call is told ({alert['status']}): "
            f"{alert.get('annotations', {}).get('summary', 'no summary')}",
            "critical" if alert["status"] == "firing" else "good",
        )
        for alert in kept["notification"].get("alerts", [])
    ]


def _readable(text: str) -> str:
    """One line without control characters, with cards named by the start of their UUID."""
    one_line = " ".join(text.split())
    shown = "".join(mark if mark.isprintable() else "?" for mark in one_line)
    return _UUID.sub(r"\1", shown)
