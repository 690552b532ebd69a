"""Commands that change something: through the running server, with the operate token.

`undo` also works when no server runs, for that is when it is needed most.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from remediator.app import build_world, open_store
from remediator.cli.server import ask
from remediator.clock import SystemClock
from remediator.config import Config, WebConfig
from remediator.counters import Counters
from remediator.engine.leases import LeaseKeeper, forget
from remediator.errors import RemediatorError, ServiceRefused
from remediator.gpu_control.base import knob_named
from remediator.log import printable
from remediator.playbooks import stage_name
from remediator.store.state_lock import StateLock

# An undo needs fresh readings that agree; without a server it is tried for this long.
_UNDO_SECONDS = 15.0


def approve(web: WebConfig, run_id: int, token: str) -> int:
    """Let a waiting run begin; without `token`, the plan that it has now, which is printed."""
    if not token:
        asked = ask(web, "GET", f"/api/v1/runs/{run_id}/approval")
        token = asked["token"]
        for line in _question(web, run_id, asked):
            print(printable(line))
    ask(web, "POST", f"/api/v1/runs/{run_id}/approve", {"token": token})
    print(
        f"run {run_id} is approved: it takes its evidence again, and begins where that is still there"
    )
    return 0


def _question(web: WebConfig, run_id: int, asked: Mapping[str, Any]) -> Iterator[str]:
    """What a waiting run is about, why it asks, what it would do, and by which means."""
    run = ask(web, "GET", f"/api/v1/runs/{run_id}")
    yield f"run {run_id}: {run['playbook']} on {run['target']} for {run['trigger']}"
    yield f"  why: {_why(web, run) or asked['evidence'].get('reason', 'not recorded')}"
    for number, planned in enumerate(asked["plan"], start=1):
        how = ", ".join(f"{key} {said}" for key, said in planned["step"].items() if key != "action")
        what = planned["step"]["action"] + (f" ({how})" if how else "")
        where = " ".join(one for one in (planned["service"], planned["gpu"]) if one)
        yield f"  {number}. {stage_name(planned['rung'])}: {what}{' on ' + where if where else ''}"
    for what, means in sorted(asked["means"].items()):
        yield f"  {what}: {means}"


def _why(web: WebConfig, run: Mapping[str, Any]) -> str | None:
    """The decision to ask, which is recorded right before the run is; not again where it stayed."""
    begun = [record["seq"] for record in run["audit"] if record["event"] == "run_reserved"]
    if not begun or begun[0] < 2:
        return None
    before = ask(web, "GET", f"/api/v1/audit?after={begun[0] - 2}&limit=1")["records"]
    return next(
        (
            str(record["sentence"])
            for record in before
            if record["event"] == "decision" and record["episode"] == run["episode_id"]
        ),
        None,
    )


def deny(web: WebConfig, run_id: int) -> int:
    """End a waiting run."""
    ask(web, "POST", f"/api/v1/runs/{run_id}/deny", {})
    print(f"run {run_id} is denied: nothing is done")
    return 0


def acknowledge(web: WebConfig, incident_id: int) -> int:
    """Close an incident that needed a person."""
    ask(web, "POST", f"/api/v1/incidents/{incident_id}/acknowledge", {})
    print(f"incident {incident_id} is closed")
    return 0


def pause(web: WebConfig, why: str) -> int:
    """Stop every new action."""
    ask(web, "POST", "/api/v1/pause", {"why": why})
    print("paused: no new action is taken; undo goes on; `gpu-remediator resume` ends it")
    return 0


def resume(web: WebConfig) -> int:
    """End a pause and close the breaker."""
    ask(web, "POST", "/api/v1/resume", {})
    print("resumed; the breaker is closed")
    return 0


def reload(web: WebConfig) -> int:
    """Have the server read its configuration again."""
    changes = ask(web, "POST", "/-/reload", {})["changes"]
    for line in changes:
        print(printable(line))
    print(f"reloaded: {len(changes)} change(s)")
    return 0


def hold(web: WebConfig, service: str, why: str) -> int:
    """Hold a service down on purpose."""
    ask(web, "POST", f"/api/v1/services/{quote(service, safe='')}/hold", {"why": why})
    print(
        f"{service} is held: it may be stopped and is not started again; "
        f"`gpu-remediator release {service}`, or a start by hand, ends it"
    )
    return 0


def release(web: WebConfig, service: str) -> int:
    """End a hold."""
    answer = ask(web, "POST", f"/api/v1/services/{quote(service, safe='')}/release", {})
    said = "released: it should be up again" if answer["was_held"] else "not held"
    print(f"{service} is {said}")
    return 0


def undo(
    web: WebConfig,
    config: Config | None,
    uuid: str | None,
    *,
    everything: bool,
    forgets: bool = False,
) -> int:
    """Restore what was changed on one card or on all, or give it up on a card that is gone.

    Without a usable `config` only the running server can do it.
    """
    if everything == bool(uuid) or (everything and forgets):
        print("say which card (a uuid), or --all without --forget", file=sys.stderr)
        return 2
    uuid = uuid or None
    if config is not None:
        lock = StateLock(config.state_dir)
        if lock.acquire():
            try:
                return _forget_here(config, str(uuid)) if forgets else _undo_here(config, uuid)
            finally:
                lock.release()
    try:
        return _undo_there(web, uuid, forgets=forgets)
    except ServiceRefused as error:
        if config is not None:
            raise
        raise RemediatorError(f"{error}; an undo without one needs the configuration") from None


def _undo_there(web: WebConfig, uuid: str | None, *, forgets: bool) -> int:
    body: dict[str, Any] = {"all": True}
    if uuid is not None:
        caps = ask(web, "GET", "/api/v1/incidents")["leases"]
        body = {"uuid": _meant(uuid, [_Cap(*(one[name] for name in _Cap._fields)) for one in caps])}
    if forgets:
        answer = ask(web, "POST", "/api/v1/undo", body | {"forget": True})
        return _say_forgotten(one["uuid"] for one in answer["forgotten"])
    leases = ask(web, "POST", "/api/v1/undo", body)["requested"]
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
