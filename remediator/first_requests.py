"""How long the first requests to a service took after a start: ours, which spare users, and theirs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from remediator.managers.base import ProcessIdentity, identity_from
from remediator.store import Transaction
from remediator.world import World

_WARM_UP, _ANSWER, _USERS = "warm_up", "first_answer", "first_requests"


@dataclass(frozen=True)
class FirstRequests:
    """So many requests of users waited so many `seconds` each, on average, for a first token.

    They are the first that `process` is known to have answered without one of ours among them.
    """

    process: ProcessIdentity
    requests: int
    seconds: float


def keep_first_requests(tx: Transaction, name: str, found: FirstRequests | None) -> None:
    """Keep what was found of the process that runs now; None: nothing is known of it yet."""
    raw = {}
    if found is not None:
        raw = {
            "process": found.process.to_json(),
            "requests": found.requests,
            "seconds": found.seconds,
        }
    tx.set_meta(f"{_USERS}:{name}", json.dumps(raw))


def read_first_requests(tx: Transaction, name: str) -> FirstRequests | None:
    """Of the newest process; None where that is not known."""
    raw = json.loads(tx.get_meta(f"{_USERS}:{name}") or "{}")
    process = identity_from(raw.get("process"))
    return None if process is None else FirstRequests(process, raw["requests"], raw["seconds"])


def remember_warm_up(world: World, name: str, seconds: float) -> None:
    """Keep how long the very first request to a model took; the slowest, of several models."""
    _keep(world, _WARM_UP, name, seconds)


def remember_answer(world: World, name: str, seconds: float) -> None:
    """Keep how long the first request that must succeed took."""
    _keep(world, _ANSWER, name, seconds)


def warm_up_seconds(tx: Transaction, name: str) -> float | None:
    """The newest; None where none was made yet."""
    return _read(tx, _WARM_UP, name)


def answer_seconds(tx: Transaction, name: str) -> float | None:
    """The newest; None where none was made yet."""
    return _read(tx, _ANSWER, name)


def _keep(world: World, what: str, name: str, seconds: float) -> None:
    with world.store.transaction() as tx:
        tx.set_meta(f"{what}:{name}", repr(float(seconds)))


def _read(tx: Transaction, what: str, name: str) -> float | None:
    raw = tx.get_meta(f"{what}:{name}")
    return None if raw is None else float(raw)
