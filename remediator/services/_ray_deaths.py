"""Which replicas of Ray Serve were killed for want of memory, as Ray's state API says (Ray 2.60).

Ray kills workers itself before the machine has no memory left. Serve only says that a replica failed
its health check; why its process ended stands in the list of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from remediator.errors import ServiceError
from remediator.services._ray_details import Application
from remediator.services.base import WorkerDeath

_WORKERS = "/api/v0/workers"
_FOR_MEMORY = "NODE_OUT_OF_MEMORY"

SAID = "killed due to the node running low on memory"
"""Ray's own words for it."""

# Ray may say why a worker ended after Serve has missed it (seconds).
_ASKED_FOR = 30.0
# Of so many that are gone Ray is asked in one look.
_AT_ONCE = 5
_KEPT = 20
_LONGEST_NAME = 200


def query(worker: str) -> str:
    """What Ray is asked about one worker.

    Of one alone: the list of all that ever ended may be longer than Ray gives.
    """
    only = {"filter_keys": "worker_id", "filter_predicates": "=", "filter_values": worker}
    return f"{_WORKERS}?{urlencode({'detail': 1, 'limit': 10, **only})}"


@dataclass
class _Gone:
    """Since when (monotonic seconds) one is missed, what it was, and how often Ray was asked of it."""

    since: float
    name: str
    asked: int = 0


class WorkerDeaths:
    """Remembers the replicas that ran, and of those that are gone what Ray said of their end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}
        self._gone: dict[str, _Gone] = {}
        self._found: dict[str, WorkerDeath] = {}

    @property
    def found(self) -> tuple[WorkerDeath, ...]:
        """The newest, oldest first."""
        with self._lock:
            return tuple(sorted(self._found.values(), key=lambda one: one.at))

    def saw(self, applications: Collection[Application], now: float) -> tuple[str, ...]:
        """Look at the replicas that are there; those that are gone of which Ray is to be asked now."""
        running: dict[str, str] = {}
        ended: dict[str, str] = {}
        for application in applications:
            for deployment in application.deployments:
                name = f"a replica of {deployment.name} ({application.name})"[:_LONGEST_NAME]
                running |= {one.worker_id: name for one in deployment.replicas if one.worker_id}
                ended |= {one.worker_id: name for one in deployment.ended if one.worker_id}
        with self._lock:
            missed = {worker: self._running[worker] for worker in self._running.keys() - running}
            for worker, name in (ended | missed).items():
                self._gone.setdefault(worker, _Gone(now, name))
            self._running = running
            while len(self._gone) > 100 * _KEPT:
                self._gone.pop(next(iter(self._gone)))
            return self._next(now)

    def _next(self, now: float) -> tuple[str, ...]:
        unknown = [
            worker
            for worker, one in self._gone.items()
            if worker not in self._found and now - one.since <= _ASKED_FOR
        ]
        turn = sorted(unknown, key=lambda worker: self._gone[worker].asked)[:_AT_ONCE]
        for worker in turn:
            self._gone[worker].asked += 1
        return tuple(turn)

    def told(self, raw: object, now: float) -> None:
        """Take in the answer of Ray; `now` in Unix seconds.

        A death whose time it does not say, or that lies ahead of our clock, is one of now: what lies
        ahead would be news for ever.

        Raises:
            ServiceError: it is none.
        """
        try:
            listed = raw["data"]["result"]["result"]  # type: ignore[index]
            rows = [_death(row, now) for row in listed if row["exit_type"] == _FOR_MEMORY]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise ServiceError(f"GET {_WORKERS} did not answer as Ray does") from None
        with self._lock:
            for worker, at in rows:
                if worker in self._gone and worker not in self._found:
                    name = self._gone[worker].name
                    self._found[worker] = WorkerDeath(worker, name, at, SAID)
            for worker in sorted(self._found, key=lambda one: self._found[one].at)[:-_KEPT]:
                del self._found[worker]


def _death(row: Mapping[str, Any], now: float) -> tuple[str, float]:
    at = float(row["end_time_ms"] or 0) / 1000
    return str(row["worker_id"]), at if 0 < at < now else now
