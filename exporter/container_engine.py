"""One question to a container engine: `GET /containers/<id>/json`, as Docker and Podman answer it.

This module alone needs an HTTP client; it is loaded where a socket is configured.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from pathlib import Path

from exporter.errors import EngineError

_TIMEOUT_SECONDS = 2.0
_LIMIT_BYTES = 1 << 20
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


def name_of(container_id: str, path: Path) -> str:
    """Ask for the name of a container; empty when this engine does not know it.

    Raises:
        EngineError: it cannot be reached, or its answer is not understood.
    """
    connection = _Connection(path)
    try:
        connection.request("GET", f"/containers/{container_id}/json")
        answer = connection.getresponse()
        status, body = answer.status, answer.read(_LIMIT_BYTES)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EngineError(f"{path} gives no answer: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if status == http.HTTPStatus.NOT_FOUND:
        return ""
    if status != http.HTTPStatus.OK:
        raise EngineError(f"{path} answers {status}")
    return _name(body, path)


def _name(body: bytes, path: Path) -> str:
    try:
        name = str(json.loads(body)["Name"]).removeprefix("/")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(f"{path} answers what is not understood") from error
    return name if _NAME.fullmatch(name) else ""
