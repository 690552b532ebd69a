"""Takes another configuration in while it runs: all of it or nothing, and it is audited."""

from __future__ import annotations

import hashlib
import logging
import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

from remediator.config import Config
from remediator.config import changes as config_changes
from remediator.config.secrets import read_token
from remediator.errors import ConfigError, RemediatorError
from remediator.store import Draft, Store

log = logging.getLogger(__name__)

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


@dataclass
class ReloadState:
    """How the last reload went; the start counts as one. `succeeded_at` in Unix seconds."""

    successful: bool
    succeeded_at: float


class Reloader:
    """Reads the configuration again, checks all of it, and puts it in force."""

    def __init__(
        self,
        current: Config,
        read: Callable[[], Config],
        prepare: Callable[[Config], Callable[[], None]],
        store: Store,
        state: ReloadState,
        now: Callable[[], float],
    ) -> None:
        """`prepare` checks a configuration, and returns what puts it in force and cannot fail."""
        self._current = current
        self._tokens = _fingerprints(current)
        self._read = read
        self._prepare = prepare
        self._store = store
        self._state = state
        self._now = now
        self._one_at_a_time = threading.Lock()
        self._asked = threading.Event()

    def reload(self, by: str) -> list[str]:
        """Take the file in; returns what has changed.

        Raises:
            RemediatorError: something in it cannot be; the configuration stays as it was.
        """
        with self._one_at_a_time:
            try:
                return self._reload(by)
            except RemediatorError as error:
                self._state.successful = False
                self._refused(by, error)
                raise

    def _reload(self, by: str) -> list[str]:
        new = self._read()
        config_changes.refuse_fixed(self._current, new)
        put_in_force = self._prepare(new)
        tokens = _fingerprints(new)
        changes = config_changes.between(self._current, new) + [
            f"web.tokens.{role}: another token"
            for role, before in self._tokens.items()
            if before != tokens[role]
        ]
        with self._store.transaction() as tx:
            tx.episodes.wake(self._now(), beyond=0.0)
            tx.audit(
                Draft(
                    "config_reloaded",
                    f"the configuration was read again by {by}: {len(changes)} change(s)",
                    severity="warning" if changes else "info",
                    data={"by": by, "changes": changes},
                )
            )
        put_in_force()
        self._current, self._tokens = new, tokens
        self._state.successful, self._state.succeeded_at = True, self._now()
        return changes

    def _refused(self, by: str, error: RemediatorError) -> None:
        # What was written wrongly may be a password in the wrong place: it is not kept.
        why = _QUOTED.sub("(not shown)", str(error))
        log.warning("the configuration is not taken in by=%s why=%s", by, why)
        try:
            with self._store.transaction() as tx:
                tx.audit(
                    Draft(
                        "config_rejected",
                        f"the configuration was read again by {by} and is not taken in: {why}",
                        severity="warning",
                        reason="config_rejected",
                        data={"by": by},
                    )
                )
        except RemediatorError:
            log.exception("the refused reload could not be recorded")

    def listen_for_hangups(self, stopping: threading.Event) -> None:
        """Reload on SIGHUP. For the main thread; the work is done in another one."""
        signal.signal(signal.SIGHUP, lambda *_: self._asked.set())
        threading.Thread(
            target=self._on_hangups, args=(stopping,), name="reload", daemon=True
        ).start()

    def _on_hangups(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            if not self._asked.wait(timeout=1.0):
                continue
            self._asked.clear()
            try:
                self.reload("SIGHUP")
            except RemediatorError:
                continue
            except Exception:
                log.exception("the reload met a fault of the remediator")
                self._state.successful = False


def _fingerprints(config: Config) -> dict[str, str]:
    """What tells the tokens of one moment from those of another: their files may stay the same.

    Raises:
        ConfigError: a file cannot be read or holds no usable token.
    """
    files = vars(config.web.tokens)
    return {
        role: "" if file is None else hashlib.sha256(read_token(file).encode()).hexdigest()
        for role, file in files.items()
    }


def no_reload(by: str) -> list[str]:  # noqa: ARG001 - as a reload is called
    """Stands where there is no file to read again.

    Raises:
        ConfigError: always.
    """
    raise ConfigError("this remediator was not started from a file")
