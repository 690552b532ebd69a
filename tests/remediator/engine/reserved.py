"""Runs that somebody else has reserved, put straight into the store."""

from __future__ import annotations

from typing import Any

from remediator.store import Run
from remediator.store.transaction import Transaction
from remediator.targets import Target


def reserve(tx: Transaction, target: Target, now: float, **more: Any) -> Run:
    """A run about a target, at work and without locks; `more` is what is different about it."""
    told: dict[str, Any] = {
        "episode_id": None,
        "playbook": "recover-hang",
        "weight": 10,
        "trigger": "x",
        "locks": (),
        "state": "running",
        "plan": [],
        "expires_at": None,
        "boot_id": "",
    }
    run = tx.runs.create(target=target, now=now, **told | more)
    assert run is not None
    return run
