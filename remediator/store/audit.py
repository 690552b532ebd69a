"""The audit chain: append-only records, each authenticated over the one before it.

HMAC-SHA256 with a key outside the database: whoever can write the database but does not hold
the key cannot make a record, change one, or reorder two without `verify` naming it.
"""

from __future__ import annotations

import hmac
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GENESIS = "0" * 64
Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Draft:
    """An audit record before it has its place in the chain."""

    event: str
    sentence: str
    severity: Severity = "info"
    run: int | None = None
    episode: int | None = None
    alertname: str = ""
    target: str = ""
    reason: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditRecord:
    """A record of the chain."""

    seq: int
    record: Mapping[str, Any]
    mac: str

    def public(self) -> dict[str, Any]:
        """The record as the API and the export show it."""
        return {"seq": self.seq, **self.record, "mac": self.mac}


@dataclass(frozen=True)
class Query:
    """Which records are meant; what is not said does not narrow it.

    `gpu`, `service` and `alertname` are whole names; `since` and `until` are Unix seconds.
    """

    run: int | None = None
    gpu: str = ""
    service: str = ""
    alertname: str = ""
    since: float | None = None
    until: float | None = None

    def condition(self) -> tuple[str, list[Any]]:
        """The SQL of it, and its values."""
        said = {
            "run = ?": self.run,
            "gpu = ?": self.gpu or None,
            "service = ?": self.service or None,
            "alertname = ?": self.alertname or None,
            "time >= ?": self.since,
            "time <= ?": self.until,
        }
        used = {text: value for text, value in said.items() if value is not None}
        return "".join(f" AND {text}" for text in used), list(used.values())

    def matches(self, record: Mapping[str, Any]) -> bool:
        """The same of a record that is not in the database any more."""
        data = record.get("data") or {}
        labels = data.get("labels") or {}
        kind, _, name = str(record.get("target") or "").partition(":")
        gpu = name if kind == "gpu" else labels.get("uuid")
        service = data.get("service") or labels.get("llm_service")
        service = name if kind == "service" else service
        time = float(record.get("time") or 0.0)
        return (
            self.run in (None, record.get("run"))
            and self.gpu in ("", gpu)
            and self.service in ("", service)
            and self.alertname in ("", record.get("alertname"))
            and (self.since is None or time >= self.since)
            and (self.until is None or time <= self.until)
        )


EVERYTHING = Query()


def append(
    connection: sqlite3.Connection,
    key: bytes,
    draft: Draft,
    *,
    time: float,
    boot_id: str,
    actor: str,
) -> AuditRecord:
    """Append `draft` within the caller's transaction."""
    seq, prev_mac = head(connection)
    record = {
        "time": round(time, 3),
        "boot_id": boot_id,
        "actor": actor,
        "event": draft.event,
        "severity": draft.severity,
        "run": draft.run,
        "episode": draft.episode,
        "alertname": draft.alertname,
        "target": draft.target,
        "reason": draft.reason,
        "sentence": draft.sentence,
        "data": dict(draft.data),
    }
    text = json.dumps(record, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    mac = mac_of(key, seq + 1, prev_mac, text.encode())
    connection.execute(
        "INSERT INTO audit (seq, record, prev_mac, mac) VALUES (?, ?, ?, ?)",
        (seq + 1, text, prev_mac, mac),
    )
    return AuditRecord(seq + 1, record, mac)


def read(
    connection: sqlite3.Connection, after: int, limit: int, query: Query
) -> tuple[AuditRecord, ...]:
    """Records with a higher sequence number than `after`, oldest first."""
    more, values = query.condition()
    rows = connection.execute(
        f"SELECT seq, record, mac FROM audit WHERE seq > ?{more} ORDER BY seq LIMIT ?",
        (after, *values, limit),
    )
    return tuple(AuditRecord(row[0], json.loads(row[1]), row[2]) for row in rows)


def tail(connection: sqlite3.Connection, limit: int, query: Query) -> tuple[AuditRecord, ...]:
    """The newest records, oldest first."""
    more, values = query.condition()
    rows = connection.execute(
        f"SELECT seq, record, mac FROM audit WHERE 1{more} ORDER BY seq DESC LIMIT ?",
        (*values, limit),
    )
    found = tuple(AuditRecord(row[0], json.loads(row[1]), row[2]) for row in rows)
    return found[::-1]


def head(connection: sqlite3.Connection) -> tuple[int, str]:
    """Number and mac of the newest record; 0 and `GENESIS` where there is none."""
    row = connection.execute("SELECT seq, mac FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    return (row[0], row[1]) if row else (0, GENESIS)


def mac_of(key: bytes, seq: int, prev_mac: str, text: bytes) -> str:
    """What authenticates record `seq` over the one before it."""
    message = f"{seq}\n{prev_mac}\n".encode() + text
    return hmac.digest(key, message, "sha256").hex()
