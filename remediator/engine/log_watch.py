"""Reads what servers write to their logs: some run out of memory in requests of users alone.

Beside everything else, a bounded part at a time. What is found is counted once, by its class; the
text of a line stays where it is, but for the words of a known signature.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remediator.counters import Counters
from remediator.error_signatures import ErrorClass, failure_in
from remediator.errors import ManagerError, StorageError
from remediator.managers import Logged, LogPage, ServerLog
from remediator.oom_events import ENDED, LOG, OutOfMemoryEvent, count
from remediator.store import Draft
from remediator.targets import Target
from remediator.world import Service, World

log = logging.getLogger(__name__)

KINDS = ("hardware", "driver", "illegal_access", "out_of_memory", "runtime")
_PAGES = 4
# What was written longer ago is not gone through: an alert about it would come too late.
_OLDEST = 600.0
# A server says one failure in many lines, and each of its workers says it.
_ONE_FAILURE = 15.0
_KEEP_EVERY = 60.0


@dataclass
class _Reader:
    """How far one service's log was read, and what was last counted in it, by kind."""

    log: ServerLog
    position: Mapping[str, Any]
    since: float
    last: dict[str, float] = field(default_factory=dict)
    kept_at: float = 0.0


class LogWatch:
    """One reading loop a service; `readable` says of each service whether its log can be read."""

    def __init__(self, world: World, counters: Counters) -> None:
        self._world = world
        self._counters = counters
        self._readers: dict[str, tuple[Service, _Reader]] = {}
        self._complaints: dict[str, str] = {}
        self.readable: dict[str, bool] = {}

    def run(self, service: Service, stopping: threading.Event) -> None:
        """Read until `stopping` is set; ends at once where there is no log."""
        server_log = log_of(service)
        if server_log is None:
            self.readable.pop(service.name, None)
            return
        for kind in KINDS:
            self._counters.zero("log_errors", service.name, kind)
        while not stopping.is_set():
            try:
                self.look(service)
            except StorageError:
                # What was not kept is read again.
                self._readers.pop(service.name, None)
                log.exception("what a log tells could not be kept service=%s", service.name)
            except Exception:
                self._counters.add("errors", "log_watch")
                log.exception("a log could not be gone through service=%s", service.name)
            self._world.clock.wait(stopping, self._world.config.timing.probe_interval)

    def look(self, service: Service) -> None:
        """Go through what was written since the last look, as far as one look may go.

        Raises:
            StorageError: what was found could not be kept; it is found again.
        """
        reader = self._reader(service)
        if reader is None:
            return
        for _ in range(_PAGES):
            try:
                oldest = max(reader.since, self._world.clock.now() - _OLDEST)
                page = reader.log.read(reader.position, oldest)
            except ManagerError as error:
                self._unreadable(service.name, reader.log, error)
                return
            self._read(service, reader, page)
            if not page.more:
                return

    def _reader(self, service: Service) -> _Reader | None:
        known = self._readers.get(service.name)
        if known is not None and known[0] is service:
            return known[1]
        server_log = log_of(service)
        if server_log is None:
            return None
        with self._world.store.reading() as tx:
            kept = json.loads(tx.get_meta(_key(service.name)) or "{}")
        now = self._world.clock.now()
        same = kept.get("where") == server_log.where
        reader = _Reader(
            server_log,
            kept["position"] if same else {},
            # On the very first look what is old is nobody's business any more.
            now - _OLDEST if same else now,
            dict(kept["last"]) if same else {},
            kept_at=now if same else 0.0,
        )
        self._readers[service.name] = (service, reader)
        return reader

    def _unreadable(self, name: str, server_log: ServerLog, error: ManagerError) -> None:
        self.readable[name] = False
        if self._complaints.get(name) != str(error):
            self._complaints[name] = str(error)
            log.warning("log not read service=%s log=%s error=%s", name, server_log.where, error)

    def _read(self, service: Service, reader: _Reader, page: LogPage) -> None:
        name = service.name
        if self._complaints.pop(name, None) is not None:
            log.info("log is read again service=%s", name)
        self.readable[name] = True
        if page.skipped:
            log.warning("a part of a log was skipped: it grows too fast service=%s", name)
        now = self._world.clock.now()
        last = dict(reader.last)
        events = self._events(page, last, now)
        if events or last != reader.last or now - reader.kept_at >= _KEEP_EVERY:
            self._keep(service, reader, page, last, events)
            reader.kept_at = now
        reader.position, reader.last = page.position, last

    @staticmethod
    def _events(
        page: LogPage, last: dict[str, float], now: float
    ) -> list[tuple[float, ErrorClass]]:
        """The failures of this page, each by its first line; `last` gets when each kind was said."""
        events = []
        for line in page.lines:
            found = failure_in(line.text)
            if found is None:
                continue
            at = min(now, now if line.at is None else line.at)
            if at - last.get(found.kind, -_ONE_FAILURE) >= _ONE_FAILURE:
                events.append((at, found))
                last[found.kind] = at
        return events

    def _keep(
        self,
        service: Service,
        reader: _Reader,
        page: LogPage,
        last: Mapping[str, float],
        events: list[tuple[float, ErrorClass]],
    ) -> None:
        """The events and how far was read are one commit, so that none is counted twice."""
        name, reason = service.name, _reason(service) if events else LOG
        kept = {"where": reader.log.where, "position": dict(page.position), "last": dict(last)}
        with self._world.store.transaction() as tx:
            for at, found in events:
                evidence = {"signature": found.signature, "where": found.where, "at": at}
                if found.kind == "out_of_memory":
                    event = OutOfMemoryEvent(at, reason, found.where, found.signature)
                    count(tx, name, event, f"its log says {event.cause}", evidence)
                else:
                    tx.audit(_draft(name, found, evidence))
            tx.set_meta(_key(name), json.dumps(kept))
        for _, found in events:
            self._counters.add("log_errors", name, found.kind)


def log_of(service: Service) -> ServerLog | None:
    """The log to read; None where it is switched off, or the manager keeps none."""
    if not service.config.watch_log or not isinstance(service.manager, Logged):
        return None
    return service.manager.log()


def _reason(service: Service) -> str:
    """Whether its process is there still: what a user made it write ends no process."""
    try:
        state = service.manager.status().state
    except ManagerError:
        return LOG
    return ENDED if state in ("exited", "failed") else LOG


def _draft(name: str, found: ErrorClass, evidence: Mapping[str, Any]) -> Draft:
    said = f"the log of {name} tells of a failure ({found.kind}): {found.signature}"
    return Draft(
        "log_error",
        said,
        severity="warning",
        target=Target("service", name).key,
        reason=found.kind,
        data=evidence,
    )


def _key(name: str) -> str:
    return f"server_log:{name}"
