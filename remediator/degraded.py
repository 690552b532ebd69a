"""Which of its two managers a service is to be started by: the usual one, or that with less load."""

from __future__ import annotations

import contextlib
import json
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
    return None if raw is None else float(json.loads(raw)["since"])


def degrade(tx: Transaction, name: str, now: float) -> None:
    """From now on it is started with less load."""
    tx.set_meta(_key(name), json.dumps({"since": now, "begun": False}))


class StoredChoice:
    """`Choice` of one service, in the store; whoever only looks leaves changes to the server."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name

    def since(self) -> float | None:
        """Since when the degraded one is to be started (Unix seconds); None: the usual one."""
        with self._store.reading() as tx:
            return degraded_since(tx, self._name)

    def has_begun(self) -> bool:
        """Whether the degraded one was started since then."""
        with self._store.reading() as tx:
            return bool(json.loads(tx.get_meta(_key(self._name)) or "{}").get("begun"))

    def begun(self) -> None:
        """The degraded one was started."""
        since = self.since()
        if since is not None:
            self._put(json.dumps({"since": since, "begun": True}))

    def restore(self) -> None:
        """From now on the usual one is to be started."""
        self._put(None)

    def _put(self, value: str | None) -> None:
        # A stop for heat must not fail over this: it is found out again at the next look.
        if not self._store.read_only:
            with contextlib.suppress(StorageError), self._store.transaction() as tx:
                tx.set_meta(_key(self._name), value)


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

    def load() -> Any:
        with store.reading() as tx:
            return json.loads(tx.get_meta(f"degraded_process:{raw.name}") or "{}")

    def save(identity: Any) -> None:
        if not store.read_only:
            with contextlib.suppress(StorageError), store.transaction() as tx:
                tx.set_meta(f"degraded_process:{raw.name}", json.dumps(identity))

    try:
        other = managers.create(raw.degraded, raw.name, managers.Context(clock, load, save))
    except ConfigError as error:
        where = f"services.{raw.name}."
        raise ConfigError(str(error).replace(f"{where}manager", f"{where}degraded")) from None
    return EitherOf(usual, other, StoredChoice(store, raw.name))


def _key(name: str) -> str:
    return f"degraded:{name}"
