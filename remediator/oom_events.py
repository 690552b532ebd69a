"""What is known of how a service ran out of memory: each event once, whoever saw it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from remediator.store import Draft, Transaction
from remediator.targets import Target

LOG = "log"
"""The reason of an event that only the log of a server told of, which goes on working."""

ENDED = "ended"
"""The reason of one that the log told of and that the server's process did not outlive."""

WORKER = "worker"
"""The reason of one in which a server lost workers, and said so itself."""

OFTEN = 3
"""So many within `OFTEN_WITHIN` seconds, and it keeps happening."""

OFTEN_WITHIN = 3600.0

_KEPT = 20
# Within so many seconds what the log tells and what was seen otherwise is one event.
_SAME_WITHIN = 15.0
# A server that has no memory left ends so soon, if it does.
_ENDS_WITHIN = 60.0


@dataclass(frozen=True)
class OutOfMemoryEvent:
    """When (Unix seconds), how it was seen, whose memory it was (`host`, `gpu`, empty), and the words.

    `said` is the part of a text that is a known signature, never the text itself.
    """

    at: float
    reason: str
    where: str = ""
    said: str = ""

    @property
    def cause(self) -> str:
        """For a person."""
        memory = {"host": "the host's memory", "gpu": "GPU memory"}.get(self.where, "memory")
        return f"{memory}: {self.said}" if self.said else memory


def events_of(tx: Transaction, name: str) -> tuple[OutOfMemoryEvent, ...]:
    """The newest events of service `name`, oldest first."""
    raw = json.loads(tx.get_meta(_key(name)) or "[]")
    return tuple(OutOfMemoryEvent(**one) for one in raw)


def lately(tx: Transaction, name: str, now: float) -> tuple[OutOfMemoryEvent, ...]:
    """Those of the time in which so many would be too often."""
    return tuple(one for one in events_of(tx, name) if one.at > now - OFTEN_WITHIN)


def count(
    tx: Transaction,
    name: str,
    event: OutOfMemoryEvent,
    sentence: str,
    evidence: Mapping[str, Any],
) -> bool:
    """Count the event, unless it is known already: the log and another look told of the same one.

    Workers that died together are one event. A second look at it still goes into the audit.
    """
    same = any(_is_same(one, event) for one in events_of(tx, name))
    if same and _from_log(event):
        return False
    if not same:
        tx.inventory.count_out_of_memory(name, event.at)
        kept = sorted((*events_of(tx, name), event), key=lambda one: one.at)[-_KEPT:]
        tx.set_meta(_key(name), json.dumps([asdict(one) for one in kept]))
    tx.audit(
        Draft(
            "out_of_memory",
            f"{name} ran out of memory: {sentence}",
            severity="warning",
            target=Target("service", name).key,
            reason=event.reason,
            data={**evidence, "counted_before": True} if same else dict(evidence),
        )
    )
    return not same


def not_outlived(tx: Transaction, name: str, now: float) -> None:
    """The process of `name` has ended: what its log told of just before, it did not outlive."""
    known = events_of(tx, name)
    changed = tuple(
        replace(one, reason=ENDED) if one.reason == LOG and one.at > now - _ENDS_WITHIN else one
        for one in known
    )
    if changed != known:
        tx.set_meta(_key(name), json.dumps([asdict(one) for one in changed]))


def _is_same(one: OutOfMemoryEvent, other: OutOfMemoryEvent) -> bool:
    if abs(one.at - other.at) >= _SAME_WITHIN:
        return False
    return _from_log(one) != _from_log(other) or one.reason == other.reason == WORKER


def _from_log(event: OutOfMemoryEvent) -> bool:
    return event.reason in (LOG, ENDED)


def _key(name: str) -> str:
    return f"out_of_memory_events:{name}"
