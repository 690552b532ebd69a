"""The one place that speaks HTTP to others: timeouts, a size cap, no redirects, no proxies."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import urllib3

from remediator.clock import SystemClock
from remediator.errors import ServiceError, ServiceRefused, ServiceTimeout

MAX_BYTES = 4 * 1024 * 1024
_CLOCK = SystemClock()
_TLS_REASON = re.compile(r"verify failed: ([^(]+)|alert ([\w ]+)|\[SSL: (\w+)\]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Access:
    """Whom to trust, and what to show.

    Attributes:
        ca_file: None trusts the CAs that come with `requests`.
        certificate: paths of a client's certificate and of its key.
        login: user and password.
    """

    ca_file: Path | None = None
    certificate: tuple[str, str] | None = None
    login: tuple[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status and body (at most 4 MiB unless more was asked for)."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ServiceError: it is not JSON, or holds what is no text.
        """
        try:
            found = json.loads(self.body)
            if _SURROGATE.search(self.body):
                # Half a character can be neither stored nor exported: all metrics would fail.
                json.dumps(found, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise ServiceError(f"the answer (HTTP {self.status}) is not JSON") from None
        return found


def call(
    method: str,
    url: str,
    *,
    timeout: float,
    body: Mapping[str, Any] | None = None,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    access: Access | None = None,
    max_bytes: int = MAX_BYTES,
) -> Answer:
    """One request; `timeout` in seconds holds for connecting, for the headers, and for it all.

    An answer may have `max_bytes` bytes. With a `token` the login of `access` is not sent: both
    would be the same header. `headers` are sent beside these.

    Raises:
        ServiceRefused: nothing listens there.
        ServiceTimeout: it did not answer in time.
        ServiceError: anything else went wrong, or the answer is too large.
    """
    deadline = _CLOCK.monotonic() + timeout
    try:
        with requests.Session() as session:
            session.trust_env = False
            with session.request(
                method,
                url,
                json=None if body is None else dict(body),
                timeout=timeout,
                allow_redirects=False,
                stream=True,
                **_shown(token, access or Access(), headers or {}),
            ) as response:
                return Answer(response.status_code, _read(response, deadline, max_bytes))
    except (requests.Timeout, urllib3.exceptions.ReadTimeoutError, TimeoutError):
        raise ServiceTimeout(f"no whole answer within {timeout:g} s") from None
    except requests.exceptions.SSLError as error:
        raise ServiceError(f"no TLS with it: {_tls_reason(error)}") from None
    except requests.ConnectionError as error:
        raise _connection_error(error) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise ServiceError(f"the request failed: {type(error).__name__}") from None
    except OSError as error:
        # The files of `access` are opened only now.
        raise ServiceError(f"the request failed: {error}") from None


def _shown(token: str | None, access: Access, more: Mapping[str, str]) -> dict[str, Any]:
    headers = {"Accept": "application/json", **more}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return {
        "headers": headers,
        "auth": None if token else access.login,
        "verify": True if access.ca_file is None else str(access.ca_file),
        "cert": access.certificate,
    }


def _read(response: requests.Response, deadline: float, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    # read1 returns what has arrived, so that an answer in drips cannot outlast the deadline.
    while chunk := response.raw.read1(65536, decode_content=True):
        size += len(chunk)
        if size > max_bytes:
            raise ServiceError(f"the answer is larger than {max_bytes} bytes")
        if _CLOCK.monotonic() > deadline:
            raise TimeoutError
        chunks.append(chunk)
    return b"".join(chunks)


def _tls_reason(error: requests.exceptions.SSLError) -> str:
    found = _TLS_REASON.search(str(error))
    reason = next((group for group in found.groups() if group), "") if found else ""
    return reason.strip().lower().replace("_", " ") or "the handshake failed"


def _connection_error(error: requests.ConnectionError) -> ServiceError:
    cause: BaseException | None = error
    seen = 0
    while cause is not None and seen < 10:
        if isinstance(cause, ConnectionRefusedError):
            return ServiceRefused("the connection was refused")
        if isinstance(cause, socket.gaierror):
            return ServiceError("the name of the host cannot be resolved")
        reason = getattr(cause, "reason", None) or (cause.args[0] if cause.args else None)
        cause = (
            cause.__cause__
            or cause.__context__
            or (reason if isinstance(reason, BaseException) else None)
        )
        seen += 1
    if "refused" in str(error).lower():
        return ServiceRefused("the connection was refused")
    return ServiceError("the connection broke")
