"""What an operator may ask for: pause and resume, hold and release, undo, acknowledge."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, abort, current_app

from remediator.engine.gathering import PAUSED, close_breaker
from remediator.engine.leases import forget
from remediator.errors import RemediatorError, StorageError
from remediator.store import Draft
from remediator.store.inventory import HOLDER, OPERATOR, RESTARTING
from remediator.web.api import lease_json, request_body, storage_error
from remediator.web.auth import requires
from remediator.web.who import asker

blueprint = Blueprint("operate", __name__)
blueprint.register_error_handler(StorageError, storage_error)


@blueprint.post("/api/v1/pause")
@requires("operate")
def pause() -> Any:
    """Stop every new action; undo goes on."""
    why = _why("an operator paused it")
    with _deps().world.store.transaction() as tx:
        tx.set_meta(PAUSED, why)
        tx.audit(Draft("paused", f"paused: {why}", severity="warning", reason="paused", data=_by()))
    return {"paused": why}


@blueprint.post("/api/v1/resume")
@requires("operate")
def resume() -> Any:
    """Go on: ends a pause and closes the breaker."""
    with _deps().world.store.transaction() as tx:
        tx.set_meta(PAUSED, None)
        close_breaker(tx)
        tx.audit(Draft("resumed", "resumed by an operator; the breaker is closed", data=_by()))
    return {"paused": None}


@blueprint.post("/api/v1/services/<name>/hold")
@requires("operate")
def hold(name: str) -> Any:
    """A person wants the service down: it does not count as down and is not started."""
    deps, why = _deps(), _why("an operator holds it")
    if name not in deps.world.services:
        return {"error": f"there is no service {name}"}, 404
    with deps.world.store.transaction() as tx:
        tx.inventory.hold(name, OPERATOR, why, deps.world.clock.now())
        tx.audit(
            Draft(
                "held",
                f"an operator holds {name}: {why}",
                severity="warning",
                target=f"service:{name}",
                reason="held",
                data=_by(),
            )
        )
    return {"service": name, "held_by": OPERATOR, "held_reason": why}


@blueprint.post("/api/v1/services/<name>/release")
@requires("operate")
def release(name: str) -> Any:
    """The service should be up again, whoever held it; a restart that is under way goes on."""
    deps = _deps()
    if name not in deps.world.services:
        return {"error": f"there is no service {name}"}, 404
    with deps.world.store.transaction() as tx:
        record = tx.inventory.service(name)
        if record.held:
            if record.held_by == HOLDER:
                # We took it down: it is to come up again, and its manager would call that a
                # stop on purpose.
                tx.inventory.hold(name, HOLDER, RESTARTING, deps.world.clock.now())
            else:
                tx.inventory.release(name)
            tx.audit(
                Draft(
                    "released",
                    f"an operator released {name}, held by {record.held_by} ({record.held_reason})",
                    target=f"service:{name}",
                    reason="released",
                    data=_by(),
                )
            )
    return {"service": name, "was_held": record.held}


@blueprint.post("/api/v1/undo")
@requires("operate")
def undo() -> Any:
    """Ask for the undo of one card's cap (`{"uuid": …}`) or of all (`{"all": true}`).

    With `"forget": true` the cap of a card that was removed for good is given up instead.
    """
    body = request_body()
    everything, uuid = body.get("all") is True, body.get("uuid")
    if everything == isinstance(uuid, str):
        abort(400, 'say which card, {"uuid": "GPU-…"}, or {"all": true}')
    if body.get("forget") is True:
        if everything:
            abort(400, "only one card at a time is forgotten, by its uuid")
        try:
            forgotten = forget(_deps().world, str(uuid), _by())
        except StorageError:
            raise
        except RemediatorError as error:
            return {"error": str(error)}, 409
        return {"requested": [], "forgotten": [lease_json(one) for one in forgotten]}
    with _deps().world.store.transaction() as tx:
        leases = tx.leases.open_all()
        chosen = [one for one in leases if everything or one.uuid == uuid]
        for lease in chosen:
            tx.leases.request_undo(lease.id)
            tx.audit(
                Draft(
                    "undo_requested",
                    f"an operator wants the cap of {lease.uuid} undone",
                    target=f"gpu:{lease.uuid}",
                    data=_by(),
                )
            )
    return {"requested": [lease_json(one) for one in chosen], "forgotten": []}


@blueprint.post("/api/v1/incidents/<int(max=9007199254740991):incident_id>/acknowledge")
@requires("operate")
def acknowledge(incident_id: int) -> Any:
    """A person has seen the incident; it is closed."""
    deps = _deps()
    with deps.world.store.transaction() as tx:
        found = tx.incidents.get(incident_id)
        if found is None:
            return {"error": f"there is no open incident {incident_id}"}, 404
        tx.incidents.close(incident_id, deps.world.clock.now())
        tx.audit(
            Draft(
                "acknowledged",
                f"{found.trigger} on {found.target.name} was acknowledged",
                target=found.target.key,
                alertname=found.trigger,
                data=_by(),
            )
        )
    return {"acknowledged": incident_id}


def _deps() -> Any:
    return current_app.extensions["deps"]


def _by() -> dict[str, str]:
    return {"by": asker()}


def _why(default: str) -> str:
    """The reason that was sent, as text that a database can hold."""
    why = request_body().get("why") or default
    if not isinstance(why, str):
        abort(400, '"why" must be text')
    # Half of a surrogate pair is JSON, but no text.
    return why.encode("utf-8", "replace").decode()[:200]
