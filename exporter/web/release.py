"""`/-/release`: whoever has the token may have the driver let go for a while."""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any, Protocol
from wsgiref.types import WSGIEnvironment

from exporter.errors import ConfigError, ReleaseError
from exporter.release import LONGEST_SECONDS, Grant
from serving import responses
from serving.responses import Response

PATH = "/-/release"
_DEFAULT_SECONDS = 120.0
_TOKEN_LENGTH = 16
_LONGEST_BODY = 1024


class Releasing(Protocol):
    """What lets go: `exporter.release.Release`."""

    def grant(self) -> Grant | None:
        """Return for how long the driver is let go; None while it is held."""
        ...

    def ask(self, seconds: float) -> Grant:
        """Have it let go and wait for that."""
        ...

    def take_back(self) -> None:
        """Have it taken back."""
        ...


class ReleaseEndpoint:
    """GET, POST and DELETE of the release, each with the bearer token."""

    def __init__(self, release: Releasing, token: str) -> None:
        self._release = release
        self._token = token.encode()

    def __call__(self, environ: WSGIEnvironment) -> Response:
        """Answer one request."""
        if not self._knows(environ.get("HTTP_AUTHORIZATION", "")):
            headers = {"WWW-Authenticate": "Bearer"}
            return responses.error(
                401, "this needs the bearer token of --web.release-token-file", headers
            )
        match environ["REQUEST_METHOD"]:
            case "GET" | "HEAD":
                return _state(self._release.grant())
            case "POST":
                return self._let_go(environ)
            case "DELETE":
                self._release.take_back()
                return _state(self._release.grant())
            case _:
                return responses.not_allowed("GET, HEAD, POST, DELETE")

    def _knows(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        # WSGI gives bytes as Latin-1; what is not ASCII is compared like the rest.
        presented = given.strip().encode("latin-1", "replace")
        return hmac.compare_digest(presented, self._token) and scheme.lower() == "bearer"

    def _let_go(self, environ: WSGIEnvironment) -> Response:
        try:
            seconds = _seconds(_body(environ))
        except ValueError as refused:
            return responses.error(400, str(refused))
        try:
            return _state(self._release.ask(seconds))
        except ReleaseError as refused:
            return responses.error(409, str(refused))


def read_token(path: Path) -> str:
    """Read the token, one line.

    Raises:
        ConfigError: it cannot be read, or what it holds is no secret.
    """
    flag = f"--web.release-token-file: {path}"
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        message = f"{flag} cannot be read ({error.strerror}); put a random line there"
        raise ConfigError(message) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} is not text") from error
    if len(token) < _TOKEN_LENGTH or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{flag} must hold one line of at least {_TOKEN_LENGTH} characters without spaces"
        )
    return token


def _body(environ: WSGIEnvironment) -> Any:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > _LONGEST_BODY:
        raise ValueError(f"the body is longer than {_LONGEST_BODY} bytes")
    text = environ["wsgi.input"].read(length) if length else b""
    try:
        return json.loads(text) if text.strip() else {}
    except ValueError:
        raise ValueError('the body is not JSON; send {"seconds": 120}, or nothing') from None


def _seconds(body: Any) -> float:
    if not isinstance(body, dict) or set(body) - {"seconds"}:
        raise ValueError('the body must be {"seconds": 120}, or nothing')
    seconds = body.get("seconds", _DEFAULT_SECONDS)
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 1 <= seconds <= LONGEST_SECONDS:
        raise ValueError(f"seconds: from 1 to {LONGEST_SECONDS:g}, not {seconds!r}")
    return float(seconds)


def _state(grant: Grant | None) -> Response:
    until = None if grant is None else grant.until
    headers = {"Cache-Control": "no-store"}
    return responses.as_json(200, {"released": grant is not None, "until": until}, headers)
