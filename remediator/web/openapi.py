"""The OpenAPI document of the HTTP API, as `GET /api/v1/openapi.json` serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from flask import Blueprint

from remediator import __version__
from remediator.config.doors import Role
from remediator.web.schemas import COUNT, MAPPING, TEXT, Schema, components, listed, maybe, obj, ref

blueprint = Blueprint("openapi", __name__)

_WHY: Schema = {"type": "object", "properties": {"why": TEXT}}
_UNDO: Schema = {
    "oneOf": [
        {"type": "object", "properties": {"uuid": TEXT}, "required": ["uuid"]},
        {"type": "object", "properties": {"all": {"const": True}}, "required": ["all"]},
    ]
}
_MEANING: Mapping[int, str] = {
    400: "not understood; the message says what is wrong",
    401: "who asks is not known",
    403: "who asks has another role",
    404: "there is none",
    409: "not in the state that it is now in",
    413: "longer than web.max_body_bytes",
    415: "not application/json",
    503: "not now: the store, or too many passwords are being checked",
}


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        role: None is open to everybody.
        good: the schema of the answer; None where it is no JSON.
        refusals: statuses beside those that every operation with a role has.
        content: what kind of text it is where it is no JSON.
    """

    summary: str
    role: Role | None
    good: Schema | None = None
    status: int = 200
    refusals: tuple[int, ...] = ()
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    content: str = "application/json"


def _many(**lists: str) -> Schema:
    return obj(**{key: listed(ref(name)) for key, name in lists.items()})


_INTEGER: Schema = {"type": "integer", "minimum": 0, "maximum": 2**53}
_NUMBERED: Schema = {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
_AUDIT_QUERY: Mapping[str, Schema] = {
    "after": _INTEGER,
    "limit": _INTEGER,
    "run": _INTEGER,
    "gpu": TEXT,
    "service": TEXT,
    "alertname": TEXT,
    "since": TEXT,
    "until": TEXT,
}
_TAKEN = Operation(
    "Take Alertmanager's webhook, version 4",
    "webhook",
    obj(accepted=COUNT, episodes=COUNT),
    status=202,
    refusals=(400, 413, 415),
    body=ref("Delivery"),
)
_ANSWERED = obj(run=COUNT, answer=TEXT)

OPERATIONS: Mapping[str, Operation] = {
    "POST /api/v1/alerts": _TAKEN,
    "POST /webhook": _TAKEN,
    "GET /api/v1/runs": Operation(
        "The newest runs, newest first",
        "read",
        _many(runs="Run"),
        refusals=(400,),
        query={"limit": _INTEGER},
    ),
    "GET /api/v1/runs/{run_id}": Operation(
        "One run with its steps and its audit records", "read", ref("RunWithSteps"), refusals=(404,)
    ),
    "GET /api/v1/audit": Operation(
        "Audit records, oldest first",
        "read",
        _many(records="AuditRecord"),
        refusals=(400,),
        query=_AUDIT_QUERY,
    ),
    "GET /api/v1/services": Operation("Every service", "read", _many(services="Service")),
    "GET /api/v1/incidents": Operation(
        "Open incidents and undo leases", "read", _many(incidents="Incident", leases="Lease")
    ),
    "GET /api/v1/status": Operation("What keeps actions back now", "read", ref("Standing")),
    "GET /api/services/ai": Operation("The summary for a dashboard", "read", ref("AiSummary")),
    "GET /api/v1/runs/{run_id}/approval": Operation(
        "What a waiting run asks for, and the token that approves it",
        "operate",
        obj(
            run=COUNT,
            token=TEXT,
            plan={},
            means=MAPPING,
            evidence=MAPPING,
            expires_at=maybe("number"),
        ),
        refusals=(404, 409),
    ),
    "POST /api/v1/runs/{run_id}/approve": Operation(
        "Let a waiting run begin",
        "operate",
        _ANSWERED,
        refusals=(400, 404, 409, 413),
        body={"type": "object", "properties": {"token": TEXT}},
    ),
    "POST /api/v1/runs/{run_id}/deny": Operation(
        "End a waiting run", "operate", _ANSWERED, refusals=(404, 409)
    ),
    "POST /api/v1/pause": Operation(
        "No new action", "operate", obj(paused=TEXT), refusals=(400, 413), body=_WHY
    ),
    "POST /api/v1/resume": Operation(
        "End a pause and close the breaker", "operate", obj(paused={"type": "null"})
    ),
    "POST /api/v1/services/{name}/hold": Operation(
        "The service is down on purpose",
        "operate",
        obj(service=TEXT, held_by=TEXT, held_reason=TEXT),
        refusals=(400, 404, 413),
        body=_WHY,
    ),
    "POST /api/v1/services/{name}/release": Operation(
        "End a hold", "operate", obj(service=TEXT, was_held={"type": "boolean"}), refusals=(404,)
    ),
    "POST /api/v1/undo": Operation(
        "Undo as soon as the card is seen cool",
        "operate",
        _many(requested="Lease", forgotten="Lease"),
        refusals=(400, 409, 413),
        body=_UNDO,
    ),
    "POST /api/v1/incidents/{incident_id}/acknowledge": Operation(
        "Close an incident", "operate", obj(acknowledged=COUNT), refusals=(404,)
    ),
    "POST /-/reload": Operation(
        "Read the configuration again",
        "operate",
        obj(reloaded={"type": "boolean"}, changes=listed(TEXT)),
        refusals=(409,),
    ),
    "GET /api/v1/openapi.json": Operation("This document", None, {"type": "object"}),
    "GET /metrics": Operation("Metrics for Prometheus", None, content="text/plain"),
    "GET /-/healthy": Operation("Is the worker alive", None, refusals=(503,), content="text/plain"),
    "GET /-/ready": Operation(
        "Can it commit what it is told", None, refusals=(503,), content="text/plain"
    ),
    "GET /": Operation("What this is and where to look", None, content="text/html"),
    "GET /style.css": Operation("Its style", None, content="text/css"),
}


@blueprint.get("/api/v1/openapi.json")
def served() -> Any:
    """The document."""
    return document()


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for name, operation in OPERATIONS.items():
        method, _, path = name.partition(" ")
        paths.setdefault(path, {})[method.lower()] = _operation(name, path, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpu-remediator", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic"},
                "certificate": {"type": "mutualTLS"},
            },
        },
    }


def _operation(name: str, path: str, operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": name,
        "responses": _responses(operation),
    }
    parameters = [
        _parameter(part[1:-1], "path", TEXT if part == "{name}" else _NUMBERED)
        for part in path.split("/")
        if part.startswith("{")
    ]
    parameters += [_parameter(key, "query", schema) for key, schema in operation.query.items()]
    if parameters:
        found["parameters"] = parameters
    if operation.body is not None:
        found["requestBody"] = {"content": {"application/json": {"schema": operation.body}}}
    if operation.role is not None:
        found["x-role"] = operation.role
        found["security"] = [{"token": []}, {"password": []}, {"certificate": []}]
    return found


def _parameter(name: str, where: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def _responses(operation: Operation) -> dict[str, Any]:
    is_json = operation.content == "application/json"
    good = {operation.content: {"schema": operation.good} if operation.good else {}}
    bad = {operation.content: {"schema": ref("Error")} if is_json else {}}
    always = () if operation.role is None else (401, 403, 503)
    return {
        str(operation.status): {"description": "done", "content": good},
        **{
            str(status): {"description": _MEANING[status], "content": bad}
            for status in sorted({*always, *operation.refusals})
        },
    }
