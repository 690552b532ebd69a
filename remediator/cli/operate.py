"""Commands that change something: through the running server, with the operate token.

`undo` also works when no server runs, for that is when it is needed most.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from remediator.app import build_world, open_store
from remediator.cli.server import ask
from remediator.clock import SystemClock
from remediator.config import Config
from remediator.counters import Counters
from remediator.engine.leases import LeaseKeeper, forget
from remediator.errors import RemediatorError
from remediator.gpu_control.base import knob_named
from remediator.log import printable
from remediator.store.state_lock import StateLock

# An undo needs fresh readings that agree; without a server it is tried for this long.
_UNDO_SECONDS = 15.0


def approve(config: Config, run_id: int, token: str) -> int:
    """Let a waiting run begin; without `token`, the plan that it has now."""
    if not token:
        asked = ask(config, "GET", f"/api/v1/runs/{run_id}/approval")
        token = asked["token"]
        for what, how in sorted(asked["means"].items()):
            print(f"  {what}: {printable(how)}")
    ask(config, "POST", f"/api/v1/runs/{run_id}/approve", {"token": token})
    print(
        f"run {run_id} is approved: it takes its evidence again, and begins where that is still there"
    )
    return 0


def deny(config: Config, run_id: int) -> int:
    """End a waiting run."""
    ask(config, "POST", f"/api/v1/runs/{run_id}/deny", {})
    print(f"run {run_id} is denied: nothing is done")
    return 0


def acknowledge(config: Config, incident_id: int) -> int:
    """Close an incident that needed a person."""
    ask(config, "POST", f"/api/v1/incidents/{incident_id}/acknowledge", {})
    print(f"incident {incident_id} is closed")
    return 0


def pause(config: Config, why: str) -> int:
    """Stop every new action."""
    ask(config, "POST", "/api/v1/pause", {"why": why})
    print("paused: no new action is taken; undo goes on; `gpu-remediator resume` ends it")
    return 0


def resume(config: Config) -> int:
    """End a pause and close the breaker."""
    ask(config, "POST", "/api/v1/resume", {})
    print("resumed; the breaker is closed")
    return 0


def reload(config: Config) -> int:
    """Have the server read its configuration again."""
    changes = ask(config, "POST", "/-/reload", {})["changes"]
    for line in changes:
        print(printable(line))
    print(f"reloaded: {len(changes)} change(s)")
    return 0


def hold(config: Config, service: str, why: str) -> int:
    """Hold a service down on purpose."""
    ask(config, "POST", f"/api/v1/services/{quote(service, safe='')}/hold", {"why": why})
    print(
        f"{service} is held: it may be stopped and is not started again; "
        f"`gpu-remediator release {service}`, or a start by hand, ends it"
    )
    return 0


def release(config: Config, service: str) -> int:
    """End a hold."""
    answer = ask(config, "POST", f"/api/v1/services/{quote(service, safe='')}/release", {})
    said = "released: it should be up again" if answer["was_held"] else "not held"
    print(f"{service} is {said}")
    return 0


def undo(config: Config, uuid: str | None, *, everything: bool, forgets: bool = False) -> int:
    """Restore what was changed on one card or on all, or give it up on a card that is gone."""
    if everything == bool(uuid) or (everything and forgets):
        print("say which card (a uuid), or --all without --forget", file=sys.stderr)
        return 2
    uuid = uuid or None
    lock = StateLock(config.state_dir)
    if lock.acquire():
        try:
            return _forget_here(config, str(uuid)) if forgets else _undo_here(config, uuid)
        finally:
            lock.release()
    body: dict[str, Any] = {"all": True}
    if uuid is not None:
        caps = ask(config, "GET", "/api/v1/incidents")["leases"]
        body = {"uuid": _meant(uuid, [_Cap(*(one[name] for name in _Cap._fields)) for one in caps])}
    if forgets:
        answer = ask(config, "POST", "/api/v1/undo", body | {"forget": True})
        return _say_forgotten(one["uuid"] for one in answer["forgotten"])
    leases = ask(config, "POST", "/api/v1/undo", body)["requested"]
    for lease in leases:
        print(f"{lease['uuid']}: asked for; restored as soon as a fresh reading says it is cool")
    if not leases:
        print("nothing to undo")
    return 0


def _say_forgotten(uuids: Iterable[str]) -> int:
    for uuid in uuids:
        print(f"{uuid}: forgotten; nothing was written to it")
    return 0


def _forget_here(config: Config, uuid: str) -> int:
    clock = SystemClock()
    store = open_store(config, clock)
    with store.reading() as tx:
        caps = [_Cap(x.uuid, x.knob, x.value, x.original) for x in tx.leases.open_all()]
    leases = forget(build_world(config, store, clock), _meant(uuid, caps))
    return _say_forgotten(lease.uuid for lease in leases)


class _Cap(NamedTuple):
    """What is told of an open lease; values in the knob's integer unit."""

    uuid: str
    knob: str
    value: int
    original: int


def _meant(uuid: str, caps: Sequence[_Cap]) -> str:
    """The card with an open cap that `uuid` names, whole or by its beginning.

    Raises:
        RemediatorError: none or several do; the message lists the open caps.
    """
    cards = {cap.uuid for cap in caps}
    if uuid in cards:
        return uuid
    found = [card for card in cards if card.startswith(uuid)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(f"{cap.uuid} ({_shown(cap)})" for cap in sorted(caps))
    how_many = "several open caps begin" if found else "there is no open cap on a card that begins"
    raise RemediatorError(f"{how_many} with {uuid}; open caps: {shown or 'none'}")


def _shown(cap: _Cap) -> str:
    say = knob_named(cap.knob).say
    return f"{say(cap.value)}, {say(cap.original)} before"


def _undo_here(config: Config, uuid: str | None) -> int:
    """No server runs: do it in this process, with the same evidence and the same record."""
    clock = SystemClock()
    store = open_store(config, clock)
    world = build_world(config, store, clock)
    keeper = LeaseKeeper(world, Counters(), nobody_executes=True)
    with store.transaction() as tx:
        leases = tx.leases.open_all()
        if uuid is not None:
            uuid = _meant(uuid, [_Cap(x.uuid, x.knob, x.value, x.original) for x in leases])
        chosen = [one for one in leases if uuid in (None, one.uuid)]
        for lease in chosen:
            tx.leases.request_undo(lease.id)
    deadline = clock.monotonic() + _UNDO_SECONDS
    wanted = {lease.id for lease in chosen}
    left = wanted
    while left and clock.monotonic() < deadline:
        keeper.tick()
        with store.reading() as tx:
            left = {lease.id for lease in tx.leases.open_all()} & wanted
        clock.wait(threading.Event(), 0.5)
    for lease in chosen:
        said = "not restored: no fresh, cool reading"
        print(f"{lease.uuid}: {said if lease.id in left else 'restored'}")
    if not chosen:
        print("nothing to undo")
    return 1 if left else 0
