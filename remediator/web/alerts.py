"""`POST /api/v1/alerts`: answered only after a durable commit, in milliseconds.

Alertmanager retries on 5xx and forgets on 4xx: so 503 when it could not be stored, 400 when it
never can be, and never a status that depends on what a playbook did.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from flask import Blueprint, Response, current_app, request

from remediator import alertmanager
from remediator.clock import Clock
from remediator.counters import Counters
from remediator.errors import PayloadError, StorageError
from remediator.web.auth import requires
from serving.channel import QUEUED_SECONDS

log = logging.getLogger(__name__)
blueprint = Blueprint("alerts", __name__)
_PATHS = ("/api/v1/alerts", "/webhook")
# Alertmanager forgets what is refused with a 4xx: nobody else tells of it.
_REASONS = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    413: "too_large",
    415: "malformed",
    503: "not_stored",
}
_HINTS = {
    "unauthorized": "it has no valid token; Alertmanager's credentials_file and "
    "web.tokens.webhook must hold the same one, or its user or certificate be in web.roles.webhook",
    "forbidden": "who sent it has another role than webhook",
    "too_large": "it is longer than web.max_body_bytes",
}
_QUIET_SECONDS = 60.0
# Who had to wait longer is sent away before anything is read: so the line gets short again, and
# whoever is sent away hears it within a second (seconds).
_LONGEST_LINE = 0.5


class Refusals:
    """Counts the deliveries that were refused; says so in the log, once a minute for a reason.

    Of the other reasons the log has a line of its own for each delivery.
    """

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}
        for reason in _REASONS.values():
            counters.zero("refused", reason)

    def note(self, status: int, peer: str) -> None:
        """A delivery from `peer` was answered with `status`."""
        reason = _REASONS.get(status)
        if reason is None:
            return
        self._counters.add("refused", reason)
        if reason not in _HINTS:
            return
        with self._lock:
            now = self._clock.monotonic()
            if now - self._said.get(reason, -_QUIET_SECONDS) < _QUIET_SECONDS:
                self._unsaid[reason] = self._unsaid.get(reason, 0) + 1
                return
            self._said[reason] = now
            unsaid = self._unsaid.pop(reason, 0)
        more = f" ({unsaid} more since this was last said)" if unsaid else ""
        log.warning("a delivery from %s was refused: %s%s", peer, _HINTS[reason], more)

    def too_large(self, path: str, peer: str) -> None:
        """The HTTP server itself refused a body that is too large."""
        if path in _PATHS:
            self.note(413, peer)


@blueprint.after_request
def note_refusal(response: Response) -> Response:
    """Whatever refused it: the token, the body or the store."""
    current_app.extensions["refusals"].note(response.status_code, request.remote_addr or "unknown")
    return response


@blueprint.post(_PATHS[0])
@blueprint.post(_PATHS[1])
@requires("webhook")
def receive() -> Any:
    """Take one notification in."""
    deps = current_app.extensions["deps"]
    if deps.world.stopping.is_set():
        return {"error": "shutting down; send it again"}, 503
    if request.environ.get(QUEUED_SECONDS, 0.0) > _LONGEST_LINE:
        return {"error": "too much at once; send it again"}, 503
    if request.mimetype not in ("application/json", ""):
        return {"error": "send Content-Type: application/json"}, 415
    try:
        notification = alertmanager.parse(request.get_data(cache=False))
    except PayloadError as error:
        log.warning("a delivery was refused: %s", error)
        return {"error": str(error)}, 400
    try:
        opened = deps.intake.accept(notification)
    except StorageError as error:
        log.exception("a delivery could not be stored")
        deps.told(notification)
        return {"error": f"not stored, send it again: {error}"}, 503
    if opened:
        deps.nudge()
    if notification.truncated:
        deps.ask_alertmanager()
    return {"accepted": len(notification.alerts), "episodes": opened}, 202
