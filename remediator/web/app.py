"""The Flask application; `create_app` starts no thread and touches nothing."""

from __future__ import annotations

import gzip
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask, Response, jsonify, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from remediator.alertmanager import Notification
from remediator.engine.prober import Prober
from remediator.intake import Intake
from remediator.playbooks import Playbooks
from remediator.web import alerts, api, approvals, openapi, operate, page, reload, status
from remediator.web.auth import Identities
from remediator.world import World
from serving.answer import accepts_gzip, preferred_format

_BELIEVED_SECONDS = 1.0


@dataclass(frozen=True)
class Deps:
    """What the views use. `health` is None when all is well, else a sentence.

    `ask_alertmanager` has what a delivery lacked looked for, and returns at once. `reload` reads the
    configuration again for whom it is told.
    """

    world: World
    playbooks: Playbooks
    intake: Intake
    prober: Prober
    registry: CollectorRegistry
    health: Callable[[], str | None]
    readiness: Callable[[], str | None]
    nudge: Callable[[], None]
    told: Callable[[Notification], None]
    ask_alertmanager: Callable[[], None]
    reload: Callable[[str], list[str]]


def create_app(deps: Deps, identities: Identities) -> Flask:
    """The application over `deps`, for `identities`."""
    app = Flask("remediator", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = deps.world.config.web.max_body_bytes
    app.extensions["identities"] = identities
    app.extensions["deps"] = deps
    app.register_blueprint(alerts.blueprint)
    app.register_blueprint(api.blueprint)
    app.register_blueprint(operate.blueprint)
    app.register_blueprint(approvals.blueprint)
    app.register_blueprint(reload.blueprint)
    app.register_blueprint(status.blueprint)
    app.register_blueprint(openapi.blueprint)
    app.register_blueprint(page.blueprint)

    @app.get("/metrics")
    def metrics() -> Response:
        encoder, content_type = choose_encoder(preferred_format(request.headers.get("Accept", "")))
        body = encoder(deps.registry)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if accepts_gzip(request.headers.get("Accept-Encoding", "")):
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        return Response(body, headers=headers)

    @app.get("/-/healthy")
    def healthy() -> Response:
        return _probe("healthy", deps.health())

    readiness = _Readiness(deps)

    @app.get("/-/ready")
    def ready() -> Response:
        return _probe("ready", readiness.problem())

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        answer = jsonify(error=error.description)
        answer.status_code = error.code or 500
        if isinstance(error, MethodNotAllowed):
            answer.headers["Allow"] = ", ".join(error.valid_methods or ())
        return answer

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'self'; frame-ancestors 'none'"
        )
        return response

    return app


class _Readiness:
    """Everybody may ask whether it is ready, and that is a durable write: one a second is enough.

    Only what was well is believed for that long, and only while nothing says otherwise.
    """

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._lock = threading.Lock()
        self._well_until = -math.inf

    def problem(self) -> str | None:
        """A sentence; None when all is well."""
        world = self._deps.world
        with self._lock:
            now = world.clock.monotonic()
            if now < self._well_until and not world.store.failing and not world.stopping.is_set():
                return self._deps.health()
            problem = self._deps.readiness()
            self._well_until = now + _BELIEVED_SECONDS if problem is None else -math.inf
            return problem


def _probe(word: str, problem: str | None) -> Response:
    text = f"not {word}: {problem}\n" if problem else f"{word}\n"
    return Response(text, 503 if problem else 200, mimetype="text/plain")
