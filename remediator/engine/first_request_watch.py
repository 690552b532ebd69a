"""How long the first requests of users waited after a start, as the server's own counters tell.

Those counters begin anew with the process, and count our canaries too. So the requests of two looks
count only where no canary ran between them, or so shortly before that it may be counted late.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from remediator.engine.watchers import ServiceView
from remediator.first_requests import FirstRequests, keep_first_requests, read_first_requests
from remediator.managers import ProcessIdentity
from remediator.services import ServiceDriver
from remediator.services.base import FirstTokens
from remediator.world import Service, World

# A server may count an answer so much later than it gives it (seconds).
_COUNTED_WITHIN = 1.0


@dataclass(frozen=True)
class _Look:
    """What a process had counted, as `driver` read it; `done`: nothing more is to be found in it."""

    process: ProcessIdentity
    driver: ServiceDriver
    counted: FirstTokens
    done: bool = False


class FirstRequestWatch:
    """`Watcher`: one finding a process, and none where it cannot be told from our own requests."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._looks: dict[str, _Look] = {}

    def saw(self, service: Service, view: ServiceView) -> None:
        """Compare with the look before."""
        now, status = view.probe.first_tokens, view.status
        identity = None if status is None else status.identity
        if now is None or identity is None:
            return
        before = self._looks.get(service.name)
        if before is None:
            # Nothing is known of the time before it: what has answered already is not to be found.
            look, found = _Look(identity, service.driver, now, done=bool(now.requests)), None
        elif before.driver is not service.driver:
            # The configuration was read again: what the driver before it still asks is not known here.
            look, found = _Look(identity, service.driver, now, done=True), None
        elif not before.process.same(identity):
            look, found = _of_new_process(before, identity), None
        else:
            look, found = _next_look(before, now)
        if before is None or not before.process.same(identity):
            self._begin(service.name, identity)
        if found is not None:
            with self._world.store.transaction() as tx:
                keep_first_requests(tx, service.name, found)
        self._looks[service.name] = look

    def _begin(self, name: str, identity: ProcessIdentity) -> None:
        """What was found of an earlier process is over."""
        with self._world.store.reading() as tx:
            kept = read_first_requests(tx, name)
        if kept is not None and not identity.same(kept.process):
            with self._world.store.transaction() as tx:
                keep_first_requests(tx, name, None)


def _of_new_process(before: _Look, identity: ProcessIdentity) -> _Look:
    """It began at nothing: what was read just before it was seen may be of the one before it.

    Whether we asked meanwhile the counts of ours say.
    """
    ours = replace(before.counted.ours, quiet_seconds=_COUNTED_WITHIN)
    return _Look(identity, before.driver, FirstTokens(0, 0.0, ours))


def _next_look(before: _Look, now: FirstTokens) -> tuple[_Look, FirstRequests | None]:
    look, counted = replace(before, counted=now), before.counted
    if before.done or now.requests is None or now.seconds is None:
        return (before if now.requests is None else look), None
    if counted.requests is None or counted.seconds is None:
        return replace(look, done=bool(now.requests)), None
    if now.ours.unanswered != counted.ours.unanswered or _went_back(counted, now):
        # It may answer ours yet, or has begun anew without a new process.
        return replace(look, done=True), None
    quiet = now.ours.begun == counted.ours.begun and counted.ours.quiet_seconds >= _COUNTED_WITHIN
    requests, seconds = now.requests - counted.requests, now.seconds - counted.seconds
    if quiet and requests:
        found = FirstRequests(before.process, requests, seconds / requests)
        return replace(look, done=True), found
    return look, None


def _went_back(before: FirstTokens, now: FirstTokens) -> bool:
    return (now.requests or 0) < (before.requests or 0) or (now.seconds or 0) < (
        before.seconds or 0
    )
