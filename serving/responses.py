"""An HTTP answer as a value, and its way out through WSGI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True, slots=True)
class Response:
    """An answer before it is written."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def status_line(self) -> str:
        """Status and reason, as WSGI wants them."""
        return f"{self.status} {HTTPStatus(self.status).phrase}"


def as_json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON."""
    # NaN is not JSON; a value that is none is a bug to be seen here, not in a client.
    text = json.dumps(body, ensure_ascii=False, allow_nan=False)
    return Response(status, text.encode() + b"\n", "application/json", headers or {})


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer that it cannot be done, and what to do."""
    return as_json(status, {"error": message}, headers)


def not_allowed(allowed: str) -> Response:
    """Answer that there are only other methods here."""
    return Response(405, f"only {allowed}\n".encode(), headers={"Allow": allowed})
