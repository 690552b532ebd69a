"""The OpenAPI document says what is served, and what it says is served."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from remediator.errors import ConfigError, StorageError
from remediator.targets import Target
from remediator.web import auth as web_auth
from remediator.web.openapi import OPERATIONS, document
from remediator.web.schemas import components
from serving.auth import BasicAuth
from tests.remediator.edge.support import (
    GPU,
    SERVICE,
    ExporterStandIn,
    InProcess,
    add_lease,
    alert,
    body,
    in_process,
)
from tests.serving.door import HASH, basic


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[InProcess]:
    exporter = ExporterStandIn()
    exporter.gpu["temperature"] = 84.0
    over = {
        "mode": "approve",
        "services": [SERVICE],
        "exporter": {"url": exporter.url, "timeout": "5s"},
    }
    with in_process(folder, **over) as found:
        yield found
    exporter.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """One for all refusals: none changes anything."""
    with scene(tmp_path_factory.mktemp("openapi")) as found:
        yield found


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[InProcess]:
    with scene(tmp_path) as found:
        yield found


def served(running: InProcess) -> dict[str, str]:
    """Every operation by the name that the document has for it, with its path."""
    found = {}
    for rule in running.app.url_map.iter_rules():
        path = re.sub(r"<(?:[^:>]*:)?([^>]*)>", r"{\1}", rule.rule)
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            found[f"{method} {path}"] = path
    return found


def test_every_operation_that_is_served_is_in_it_and_no_other(running) -> None:
    assert set(served(running)) == set(OPERATIONS)


def ask(running: InProcess, name: str, **more: Any) -> Any:
    """One request of an operation, as somebody of its role unless `environ` says otherwise."""
    method, _, path = name.partition(" ")
    numbers = more.pop("of", 1)
    path = path.replace("{name}", str(more.pop("service", "ollama")))
    path = re.sub(r"{\w+}", str(numbers), path)
    role = OPERATIONS[name].role
    environ = more.pop("environ", None)
    client = running.client(role if environ is None else None)
    if OPERATIONS[name].body is not None and "data" not in more:
        more["data"] = GOOD.get(name, b"{}")
    more.setdefault("content_type", "application/json" if "data" in more else None)
    return client.open(path, method=method, environ_overrides=environ or {}, **more)


DENY = "POST /api/v1/runs/{run_id}/deny"
ACKNOWLEDGE = "POST /api/v1/incidents/{incident_id}/acknowledge"
GOOD = {
    "POST /api/v1/alerts": body(),
    "POST /webhook": body(),
    "POST /api/v1/undo": b'{"all": true}',
}


def failing(*_: Any, **__: Any) -> Any:
    raise StorageError("the disk is full")


def refused(name: str, status: int) -> Callable[[InProcess, pytest.MonkeyPatch], Any]:
    """How to be answered so."""

    def by_request(**more: Any) -> Callable[..., Any]:
        return lambda running, patch: ask(running, name, **more)

    def store_fails(running: InProcess, patch: pytest.MonkeyPatch) -> Any:
        patch.setattr(type(running.store), "transaction", failing)
        patch.setattr(type(running.store), "reading", failing)
        return ask(running, name)

    def busy(running: InProcess, patch: pytest.MonkeyPatch) -> Any:
        patch.setattr(BasicAuth, "check", lambda *_: web_auth.Verdict.BUSY)
        patch.setattr(web_auth.Identities, "_users", lambda _: {"ann": HASH})
        return ask(running, name, environ={"HTTP_AUTHORIZATION": basic("ann:x")})

    def stuck(running: InProcess, patch: pytest.MonkeyPatch) -> Any:
        patch.setattr(type(running.remediator.worker), "stalled_seconds", lambda _: 60.0)
        return ask(running, name)

    def stays_as_it_was(running: InProcess, patch: pytest.MonkeyPatch) -> Any:
        def no(_: str) -> list[str]:
            raise ConfigError("no")

        reloading(running, patch, no)
        return ask(running, name)

    def ended(running: InProcess, patch: pytest.MonkeyPatch) -> Any:
        if not running.client("read").get("/api/v1/runs").json["runs"]:
            assert ask(running, DENY, of=waiting(running)).status_code == 200
        return ask(running, name)

    other = "read" if OPERATIONS[name].role != "read" else "webhook"
    by_store = busy if name in {"GET /api/services/ai", "POST /-/reload"} else store_fails
    forgets = by_request(data=b'{"uuid": "GPU-0", "forget": true}')
    conflicts = {"POST /-/reload": stays_as_it_was, "POST /api/v1/undo": forgets}
    ways: dict[int, Callable[..., Any]] = {
        401: by_request(environ={"HTTP_AUTHORIZATION": "Bearer nobody"}),
        403: lambda running, patch: running.client(other).open(
            re.sub(r"{\w+}", "1", name.partition(" ")[2]), method=name.partition(" ")[0]
        ),
        404: by_request(of=999, service="nobody"),
        409: conflicts.get(name, ended),
        413: by_request(data=b"x" * (5 * 2**20)),
        415: by_request(content_type="text/plain"),
        503: stuck if name == "GET /-/healthy" else by_store,
        400: by_request(data=b'{"why": 1, "token": 1}')
        if OPERATIONS[name].body
        else by_request(query_string={"limit": "x"}),
    }
    return ways[status]


def reloading(running: InProcess, patch: pytest.MonkeyPatch, how: Callable[[str], Any]) -> None:
    deps = dataclasses.replace(running.app.extensions["deps"], reload=how)
    patch.setitem(running.app.extensions, "deps", deps)


def waiting(running: InProcess) -> int:
    """A run that waits for approval."""
    assert running.deliver(alert()).status_code == 202
    running.decide_all()
    (run,) = running.client("read").get("/api/v1/runs").json["runs"]
    assert run["state"] == "awaiting_approval", run["sentence"]
    return int(run["id"])


def statuses() -> list[tuple[str, int]]:
    return [
        (name, int(status))
        for name in OPERATIONS
        for status in responses(name)
        if int(status) != OPERATIONS[name].status
    ]


def responses(name: str) -> Any:
    method, _, path = name.partition(" ")
    return document()["paths"][path][method.lower()]["responses"]


def conforms(name: str, answer: Any) -> None:
    """The answer is one that the document has."""
    told = responses(name).get(str(answer.status_code))
    assert told is not None, f"{name} answered {answer.status_code}: {answer.text}"
    (kind,) = told["content"]
    assert answer.mimetype == kind
    if kind == "application/json":
        schema = {**told["content"][kind]["schema"], "components": {"schemas": components()}}
        jsonschema_rs.validator_for(schema).validate(answer.json)


@pytest.mark.parametrize(("name", "status"), statuses())
def test_every_refusal_in_it_can_be_had(running, monkeypatch, name, status) -> None:
    answer = refused(name, status)(running, monkeypatch)
    assert answer.status_code == status
    conforms(name, answer)


def test_every_good_answer_is_as_it_says(fresh, monkeypatch) -> None:
    run_id = waiting(fresh)
    add_lease(fresh.store)
    with fresh.store.transaction() as tx:
        tx.incidents.put(
            episode_id=None,
            trigger="GPUTemperatureWarning",
            target=Target("gpu", GPU),
            playbook="throttle-gpu",
            state="needs_human",
            reason="failed",
            last_step="",
            now=1.0,
        )
    reloading(fresh, monkeypatch, lambda _: ["mode"])
    token = ask(fresh, "GET /api/v1/runs/{run_id}/approval", of=run_id).json["token"]
    own: dict[str, Any] = {
        "POST /api/v1/runs/{run_id}/approve": {"json": {"token": token}, "data": None},
        "POST /api/v1/undo": {"json": {"uuid": GPU}, "data": None},
        ACKNOWLEDGE: {"of": 1},
    }
    # What was approved cannot be denied any more.
    for name in [one for one in OPERATIONS if one != DENY]:
        answer = ask(fresh, name, **{"of": run_id, **own.get(name, {})})
        assert answer.status_code == OPERATIONS[name].status, f"{name}: {answer.text}"
        conforms(name, answer)


def test_a_denial_is_answered_as_it_says(fresh) -> None:
    answer = ask(fresh, DENY, of=waiting(fresh))
    assert answer.status_code == 200
    conforms(DENY, answer)


def test_the_document_is_valid_and_is_what_is_served(running) -> None:
    assert running.app.test_client().get("/api/v1/openapi.json").json == document()
    for schema in components().values():
        jsonschema_rs.validator_for({**schema, "components": {"schemas": components()}})
