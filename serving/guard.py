"""What stands in front of the application: headers, the rate limit and the password."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from serving.answer import send
from serving.auth import BasicAuth, Verdict
from serving.clock import Clock
from serving.config import RateLimit, WebConfig
from serving.password import Password
from serving.responses import Response

_BUSY = Response(
    429, b"too many passwords are being checked; try again\n", headers={"Retry-After": "1"}
)
_TOO_MANY = Response(429, b"more requests than rate_limit allows\n", headers={"Retry-After": "1"})


class Guard:
    """Applies the web configuration of this moment to every path."""

    def __init__(
        self,
        app: WSGIApplication,
        config: Callable[[], WebConfig],
        clock: Clock,
        password: Password | None,
    ) -> None:
        """Stand before `app`; without `password` it asks itself who may do what."""
        self._app = app
        self._config = config
        self._password = password
        self._auth = BasicAuth()
        self._bucket = _Bucket(clock)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request, or let the application do it."""
        config = self._config()

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            own = {name.lower() for name in config.headers}
            kept = [(name, value) for name, value in headers if name.lower() not in own]
            return start_response(status, [*kept, *config.headers.items()], *error)

        refusal = self._refusal(config, environ)
        if refusal is not None:
            return send(refusal, environ, start)
        return self._app(environ, start)

    def _refusal(self, config: WebConfig, environ: WSGIEnvironment) -> Response | None:
        if config.rate_limit is not None and not self._bucket.takes(config.rate_limit):
            return _TOO_MANY
        password = self._password
        if password is None or not config.users or environ.get("PATH_INFO") in password.excepted:
            return None
        header = environ.get("HTTP_AUTHORIZATION", "")
        verdict = self._auth.check(config.users, header, environ.get("REMOTE_ADDR", ""))
        if verdict is Verdict.BUSY:
            return _BUSY
        return None if verdict is Verdict.GRANTED else _denied(password.realm)


def _denied(realm: str) -> Response:
    return Response(
        401,
        b"this needs a user and a password of basic_auth_users\n",
        headers={"WWW-Authenticate": f'Basic realm="{realm}", charset="UTF-8"'},
    )


class _Bucket:
    """A token bucket, full at the start and whenever the limit changes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._limit: RateLimit | None = None
        self._tokens = 0.0
        self._at = 0.0

    def takes(self, limit: RateLimit) -> bool:
        with self._lock:
            now = self._clock.monotonic()
            if limit != self._limit:
                self._limit, self._tokens, self._at = limit, float(limit.burst), now
            gained = (now - self._at) / limit.interval
            self._tokens, self._at = min(float(limit.burst), self._tokens + gained), now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True
