"""Which of its two managers a service is to be started by: the usual one, or that with less load."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from remediator import managers
from remediator.clock import Clock
from remediator.config import ServiceConfig
from remediator.errors import ConfigError, StorageError
from remediator.managers import ProcessManager
from remediator.managers._degraded import EitherOf
from remediator.store import Store, Transaction


def degraded_since(tx: Transaction, name: str) -> float | None:
    """Since when (Unix seconds) service `name` is to run with less load; None while it is not."""
    raw = tx.get_meta(_key(name))
    return None if raw is None else float(json.loads(raw))


def degrade(tx: Transaction, name: str, now: float) -> None:
    """From now on it is started with less load."""
    tx.set_meta(_key(name), json.dumps(now))


def restore(tx: Transaction, name: str) -> None:
    """From now on it is started as usual."""
    tx.set_meta(_key(name), None)


def with_degraded(
    raw: ServiceConfig, usual: ProcessManager, store: Store, clock: Clock
) -> ProcessManager:
    """The manager of a service, with that for less load behind it where one is configured.

    Raises:
        ConfigError: that one is wrong, or the same as the usual one.
    """
    if not raw.degraded:
        return usual
    if raw.degraded == raw.manager:
        raise ConfigError(f"services.{raw.name}.degraded must not be the same as its manager")

    def since() -> float | None:
        with store.reading() as tx:
            return degraded_since(tx, raw.name)

    def load() -> Any:
        with store.reading() as tx:
            return json.loads(tx.get_meta(f"degraded_process:{raw.name}") or "{}")

    def change(what: Callable[[Transaction], None]) -> None:
        # Whoever only looks leaves it to the server; a stop for heat must not fail over this.
        if not store.read_only:
            with contextlib.suppress(StorageError), store.transaction() as tx:
                what(tx)

    def save(identity: Any) -> None:
        change(lambda tx: tx.set_meta(f"degraded_process:{raw.name}", json.dumps(identity)))

    try:
        other = managers.create(raw.degraded, raw.name, managers.Context(clock, load, save))
    except ConfigError as error:
        where = f"services.{raw.name}."
        raise ConfigError(str(error).replace(f"{where}manager", f"{where}degraded")) from None
    return EitherOf(usual, other, since, lambda: change(lambda tx: restore(tx, raw.name)))


def _key(name: str) -> str:
    return f"degraded:{name}"
