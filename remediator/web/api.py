"""The JSON API of who reads: runs, audit, services, incidents and leases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flask import Blueprint, abort, current_app, request

from remediator.durations import parse_moment
from remediator.errors import NoEvidence, StorageError
from remediator.gpu_shares import cards_of, overcommitted
from remediator.readings import GpuReading
from remediator.store import Incident, Lease, Query, Run, Step
from remediator.web.auth import requires

blueprint = Blueprint("api", __name__)
_MAX_LIMIT = 1000


@blueprint.errorhandler(StorageError)
def storage_error(error: StorageError) -> Any:
    """The store does not answer."""
    return {"error": str(error)}, 503


@blueprint.get("/api/v1/runs")
@requires("read")
def runs() -> Any:
    """The newest runs, newest first."""
    with _deps().world.store.reading() as tx:
        found = tx.runs.latest(_integer("limit", 50, 1, _MAX_LIMIT))
    return {"runs": [run_json(run) for run in found]}


@blueprint.get("/api/v1/runs/<int(max=9007199254740991):run_id>")
@requires("read")
def run(run_id: int) -> Any:
    """One run with its steps and its audit records."""
    with _deps().world.store.reading() as tx:
        found = tx.runs.get(run_id)
        if found is None:
            return {"error": f"there is no run {run_id}"}, 404
        steps = tx.runs.steps(run_id)
        records = tx.audit_records(run=run_id)
    return run_json(found) | {
        "steps": [step_json(step) for step in steps],
        "audit": [record.public() for record in records],
    }


@blueprint.get("/api/v1/audit")
@requires("read")
def audit() -> Any:
    """Audit records after `after` that the query means, oldest first."""
    query = _audit_query()
    with _deps().world.store.reading() as tx:
        records = tx.audit_records(
            _integer("after", 0, 0, 2**53), _integer("limit", 500, 1, _MAX_LIMIT), query=query
        )
    return {"records": [record.public() for record in records]}


@blueprint.get("/api/v1/services")
@requires("read")
def services() -> Any:
    """Every configured service: what it is, how it is, and who holds it."""
    deps = _deps()
    with deps.world.store.reading() as tx:
        found = {
            name: (tx.inventory.service(name), cards_of(service, tx))
            for name, service in deps.world.services.items()
        }
    return {"services": [_service_json(name, *found[name]) for name in sorted(found)]}


@blueprint.get("/api/v1/incidents")
@requires("read")
def incidents() -> Any:
    """Open incidents and undo leases."""
    with _deps().world.store.reading() as tx:
        open_incidents, leases = tx.incidents.open_all(), tx.leases.open_all()
    return {
        "incidents": [incident_json(one) for one in open_incidents],
        "leases": [lease_json(one) for one in leases],
    }


@blueprint.get("/api/services/ai")
@requires("read")
def services_ai() -> Any:
    """The dashboard's summary: the LLM service and the GPU it uses."""
    deps = _deps()
    try:
        gpus = {reading.uuid: reading for reading in deps.world.gpus.all()}
    except NoEvidence:
        gpus = {}
    summary: dict[str, Any] = {
        "llm": None,
        "embeddings": None,
        "gpu_available": any(reading.up for reading in gpus.values()),
    }
    for name, service in sorted(deps.world.services.items()):
        role = "embeddings" if "embed" in name else "llm"
        if summary[role] is None:
            view = deps.prober.views.get(name)
            used = [reading for uuid, reading in gpus.items() if service.uses(uuid)]
            summary[role] = _ai_json(view, used[0] if used else None)
    return summary


def run_json(found: Run) -> dict[str, Any]:
    """A run as the API and the command line show it."""
    raw = asdict(found)
    raw["target"] = found.target.key
    return raw


def step_json(step: Step) -> dict[str, Any]:
    """A step as the API and the command line show it."""
    return asdict(step)


def lease_json(lease: Lease) -> dict[str, Any]:
    """A lease as the API and the command line show it."""
    return asdict(lease)


def incident_json(incident: Incident) -> dict[str, Any]:
    """An incident as the API and the command line show it."""
    return asdict(incident) | {"target": incident.target.key}


def _deps() -> Any:
    return current_app.extensions["deps"]


def request_body() -> Mapping[str, Any]:
    """The JSON object that was sent; empty where nothing was."""
    data = request.get_data(cache=False)
    try:
        raw = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        abort(400, "the body is not JSON")
    if not isinstance(raw, dict):
        abort(400, "the body is not a JSON object")
    return raw


def _integer(name: str, default: int, low: int, high: int) -> int:
    text = request.args.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        abort(400, f"{name} must be a whole number")
    return min(high, max(low, int(text)))


def _audit_query() -> Query:
    run = _integer("run", 0, 0, 2**53)
    return Query(
        run=run or None,
        gpu=request.args.get("gpu", ""),
        service=request.args.get("service", ""),
        alertname=request.args.get("alertname", ""),
        since=_moment("since"),
        until=_moment("until"),
    )


def _moment(name: str) -> float | None:
    text = request.args.get(name)
    if text is None:
        return None
    try:
        return parse_moment(text, _deps().world.clock.now())
    except ValueError as error:
        abort(400, f"{name}: {error}")


def _service_json(name: str, record: Any, cards: int | None) -> dict[str, Any]:
    deps = _deps()
    service, view = deps.world.services[name], deps.prober.views.get(name)
    concern = None if view is None else overcommitted(service, view.probe, cards)
    return {
        "name": name,
        "driver": service.config.driver,
        "endpoint": service.config.endpoint,
        "manager": service.manager.kind,
        "gpus": service.config.gpus,
        "up": None if view is None else view.up,
        "detail": "" if view is None else view.probe.detail,
        "models": [] if view is None else [model.name for model in view.probe.models],
        "gpus_asked": None if view is None else view.probe.gpus_asked,
        "concern": concern,
        "held_by": record.held_by,
        "held_reason": record.held_reason,
        "restarts": record.restarts,
        "seen_at": None if view is None else view.seen_at,
    }


def _ai_json(view: Any, gpu: GpuReading | None) -> dict[str, Any]:
    status = "unknown"
    if view is not None and view.up is not None:
        status = view.probe.state if view.up else "down"
    if gpu is None:
        return {"status": status, "gpu_load": None, "gpu": None}
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    ratio = gpu.utilization_ratio
    percent = None if ratio is None else round(100 * ratio, 1)
    return {
        "status": status,
        "gpu_load": percent,
        "gpu": {
            "name": gpu.name,
            "temperature": gpu.temperature,
            "utilization": percent,
            "memory_used_mb": None if used is None else round(used / 2**20),
            "memory_total_mb": None if total is None else round(total / 2**20),
            "memory_percent": None if used is None or not total else round(100 * used / total, 1),
            "power_draw_w": gpu.power_watts,
            "health": gpu.health,
            "error": gpu.error,
            "error_message": gpu.error_message,
        },
    }
