"""What a person was asked about, and the token that says yes to exactly that, once."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DOMAIN = b"gpu-remediator approval\0"
_LENGTH = 32


@dataclass(frozen=True)
class Approval:
    """A question to a person: `means` is how it would be done, `evidence` why.

    `token` is made of these and the audit's key, so that it is kept nowhere.
    """

    run_id: int
    token: str
    means: Mapping[str, Any]
    evidence: Mapping[str, Any]
    used_at: float | None
    used_by: str

    def matches(self, presented: str) -> bool:
        """Whether `presented` is the token; in constant time."""
        return hmac.compare_digest(self.token.encode(), presented.encode("utf-8", "replace"))


class Approvals:
    """The approvals table, within one transaction."""

    def __init__(self, connection: sqlite3.Connection, key: bytes) -> None:
        self._db = connection
        self._key = key

    def ask(self, run_id: int, means: Mapping[str, Any], evidence: Mapping[str, Any]) -> None:
        """Keep what a person is asked about."""
        self._db.execute(
            "INSERT INTO approvals (run_id, nonce, means, evidence) VALUES (?, ?, ?, ?)",
            (run_id, secrets.token_hex(16), _text(means), _text(evidence)),
        )

    def get(self, run_id: int) -> Approval | None:
        """What was asked about this run; None where nobody was asked."""
        row = self._db.execute(
            "SELECT nonce, means, evidence, used_at, used_by, plan FROM approvals "
            "JOIN runs ON runs.id = run_id WHERE run_id = ?",
            (run_id,),
        ).fetchone()
        if row is None:
            return None
        nonce, means, evidence, used_at, used_by, plan = row
        bound = _text([run_id, nonce, plan, means, evidence]).encode()
        return Approval(
            run_id=run_id,
            token=hmac.new(self._key, _DOMAIN + bound, hashlib.sha256).hexdigest()[:_LENGTH],
            means=json.loads(means),
            evidence=json.loads(evidence),
            used_at=used_at,
            used_by=used_by or "",
        )

    def use(self, run_id: int, by: str, now: float) -> None:
        """The token was used; it says nothing any more."""
        self._db.execute(
            "UPDATE approvals SET used_at = ?, used_by = ? WHERE run_id = ?", (now, by, run_id)
        )


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
