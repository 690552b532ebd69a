"""The contract of an LLM server driver: how one kind of server is asked, loaded and tested.

What a server cannot say is None, never a guess, and what it cannot do at all its driver says in
`capabilities`. Starting, stopping and restarting belong to the service's process manager; draining
is waiting until nothing is in work, for no driver keeps new requests away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

Able = Literal["yes", "partly", "no"]


@dataclass(frozen=True)
class Capability:
    """Whether a driver can do one thing, and how, or why not, in a sentence for a person."""

    able: Able
    how: str


@dataclass(frozen=True)
class Capabilities:
    """What can be had of one server as it is configured; `partly` says on what it depends.

    `models`: which are loaded. `demand`: how many requests run and wait. `progress`: a counter that
    moves while requests are worked on. `load`: to load a model that is not there, or only to wait
    for it (partly). `free_memory`: to give GPU memory back while it runs. `drain`: to see that
    nothing is in work. `canary`: to be asked one small request.
    """

    models: Capability
    demand: Capability
    progress: Capability
    load: Capability
    free_memory: Capability
    drain: Capability
    canary: Capability


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory; None where the server does not say.

    `memory_bytes` on the GPU; `expires_at` in Unix seconds: when it goes by itself if nobody asks
    for it again, so that the one used longest ago has the earliest.
    """

    name: str
    memory_bytes: int | None
    expires_at: float | None = None


@dataclass(frozen=True)
class WorkerDeath:
    """A process of a server's own that ended for want of the host's memory, as the server says.

    `worker` is the server's id of it, never given twice; `name` says for a person which it was;
    `at` in Unix seconds. `said` are the words by which it is known.
    """

    worker: str
    name: str
    at: float
    said: str


@dataclass(frozen=True)
class OurRequests:
    """How many canaries a driver has begun, and how many of them were not answered in time.

    Those a server may still be working on. `quiet_seconds` ago the last one ended: 0 while one is
    in work, infinite where there was none.
    """

    begun: int = 0
    unanswered: int = 0
    quiet_seconds: float = math.inf


@dataclass(frozen=True)
class FirstTokens:
    """How long requests waited for their first token, by the server's own counters since its start.

    So many `requests` waited so many `seconds` together, `ours` among them; None where the server
    does not say now.
    """

    requests: int | None
    seconds: float | None
    ours: OurRequests


@dataclass(frozen=True)
class ServiceProbe:
    """What a server says of itself now.

    `state`: `ready` answers; `loading` is coming up; `sleeping` was put to sleep on purpose;
    `refused` nothing listens; `dead` listens, and says that what does the work has died; `silent`
    listens but does not answer in time (busy or stuck, not down); `error` answers with a failure.
    Demand and progress are None where the server has no such number. `gpus_asked` is the sum of the
    shares of a GPU that it is to give to its replicas, where it deals in such shares. `deaths` are
    those of the last minutes, where it has workers and says why one ended. `first_tokens` is None
    where it counts no such thing.
    """

    state: Literal["ready", "loading", "sleeping", "refused", "dead", "silent", "error"]
    detail: str
    models: tuple[LoadedModel, ...] = ()
    requests_running: int | None = None
    requests_waiting: int | None = None
    progress: float | None = None
    gpus_asked: float | None = None
    deaths: tuple[WorkerDeath, ...] = ()
    first_tokens: FirstTokens | None = None

    @property
    def is_up(self) -> bool:
        """Whether the server is there and in order; one that sleeps was put to sleep."""
        return self.state in ("ready", "loading", "sleeping")

    @property
    def requests_in_flight(self) -> int | None:
        """Requests that run or wait; None where the server does not say enough to tell."""
        if self.requests_running is None or self.requests_waiting is None:
            return self.requests_running or self.requests_waiting or None
        return self.requests_running + self.requests_waiting


class ServiceDriver(Protocol):
    """Asks one server, at one endpoint; every call has a deadline."""

    kind: str

    @property
    def capabilities(self) -> Capabilities:
        """What it can and cannot do; asks nobody."""

    @property
    def can_unload(self) -> bool:
        """Whether `unload` gives GPU memory back, as far as is known now."""

    def probe(self) -> ServiceProbe:
        """Ask the server how it is; never raises and never loads anything."""

    def load(self, model: str, timeout: float) -> None:
        """Load `model` and wait until it is there.

        Raises:
            ServiceError: the server refused, or it was not there in time.
        """

    def unload(self, model: str, timeout: float) -> None:
        """Take an idle `model` out of memory, and see that it is gone; interrupts no request.

        Raises:
            ServiceTimeout: it is still there after `timeout` seconds; most likely it is in use.
            ServiceError: the server refused, or cannot do it at all (`can_unload` is False).
        """

    def canary(self, model: str, timeout: float) -> float:
        """One small request to a loaded model; the seconds it took.

        Raises:
            ServiceTimeout: no answer in time; it may only be queued, so it proves nothing.
            ServiceError: the server answered with a failure.
        """
