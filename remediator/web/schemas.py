"""JSON schemas of what the API answers, from the dataclasses that it answers with."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from remediator.engine.standing import Standing
from remediator.store import Incident, Lease, Run, Step
from remediator.targets import Target

Schema = dict[str, Any]

_SCALARS: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def obj(**properties: Schema) -> Schema:
    """An object that has these properties and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


def listed(items: Schema) -> Schema:
    """A list of one kind."""
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """One of `components`."""
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MAPPING: Schema = {"type": "object"}


def maybe(*kinds: str) -> Schema:
    """One of these JSON types, or null."""
    return {"type": [*kinds, "null"]}


def of_dataclass(cls: type) -> Schema:
    """What `asdict` gives, with a target as its key."""
    hints = typing.get_type_hints(cls)
    return obj(**{field.name: of_hint(hints[field.name]) for field in dataclasses.fields(cls)})


def of_hint(hint: Any) -> Schema:
    """The schema of a type of a field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if hint is Target:
        return dict(TEXT)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return of_dataclass(hint)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        return {"type": [_SCALARS[one] for one in arguments]}
    if origin is tuple:
        return listed(of_hint(arguments[0]))
    if origin is not None and issubclass(origin, Mapping):
        return dict(MAPPING)
    return {"type": _SCALARS[hint]}


def _audit_record() -> Schema:
    """A record has more keys, by what it records."""
    return {
        "type": "object",
        "properties": {"seq": COUNT, "mac": TEXT, "event": TEXT, "time": {"type": "number"}},
        "required": ["seq", "mac"],
    }


def _service() -> Schema:
    return obj(
        name=TEXT,
        driver=TEXT,
        endpoint=TEXT,
        manager=TEXT,
        gpus={"oneOf": [{"const": "all"}, listed(TEXT)]},
        up=maybe("boolean"),
        detail=TEXT,
        models=listed(TEXT),
        gpus_asked=maybe("number"),
        concern=maybe("string"),
        held_by=maybe("string"),
        held_reason=maybe("string"),
        restarts=COUNT,
        seen_at=maybe("number"),
    )


def _ai() -> Schema:
    gpu = obj(
        name=TEXT,
        temperature=maybe("number"),
        utilization=maybe("number"),
        memory_used_mb=maybe("integer"),
        memory_total_mb=maybe("integer"),
        memory_percent=maybe("number"),
        power_draw_w=maybe("number"),
        health=TEXT,
        error=TEXT,
        error_message=TEXT,
    )
    return obj(status=TEXT, gpu_load=maybe("number"), gpu={"oneOf": [gpu, {"type": "null"}]})


def _delivery() -> Schema:
    labels = {"type": "object", "additionalProperties": TEXT}
    alert = {
        "type": "object",
        "properties": {
            "status": {"enum": ["firing", "resolved"]},
            "labels": labels | {"required": ["alertname"]},
            "annotations": labels,
            "startsAt": {"type": "string", "format": "date-time"},
            "endsAt": {"type": "string", "format": "date-time"},
            "generatorURL": TEXT,
            "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{1,64}$"},
        },
        "required": ["status", "labels", "startsAt", "fingerprint"],
    }
    return {
        "type": "object",
        "description": "Alertmanager's webhook payload; it has more keys, which are not read.",
        "properties": {
            "version": {"const": "4"},
            "alerts": listed(alert),
            "truncatedAlerts": COUNT,
        },
        "required": ["version", "alerts"],
    }


def _error() -> Schema:
    """`reason` and `until` stand where a gate keeps an approved run back."""
    return obj(error=TEXT, reason=TEXT, until=maybe("number"))


def components() -> dict[str, Schema]:
    """Every schema that has a name."""
    run = of_dataclass(Run)
    detailed = run["properties"] | {
        "steps": listed(ref("Step")),
        "audit": listed(ref("AuditRecord")),
    }
    summary = {"oneOf": [ref("AiService"), {"type": "null"}]}
    return {
        "Error": {**_error(), "required": ["error"]},
        "Run": run,
        "RunWithSteps": obj(**detailed),
        "Step": of_dataclass(Step),
        "Lease": of_dataclass(Lease),
        "Incident": of_dataclass(Incident),
        "AuditRecord": _audit_record(),
        "Standing": of_dataclass(Standing),
        "Service": _service(),
        "AiService": _ai(),
        "AiSummary": obj(llm=summary, embeddings=summary, gpu_available={"type": "boolean"}),
        "Delivery": _delivery(),
    }
