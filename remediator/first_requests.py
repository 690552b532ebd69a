"""How long the first requests to a service took after we had started it: what a user is spared."""

from __future__ import annotations

from remediator.store import Transaction
from remediator.world import World

_WARM_UP, _ANSWER = "warm_up", "first_answer"


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
