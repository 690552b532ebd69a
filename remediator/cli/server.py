"""Asks the running server, as somebody who operates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remediator import http
from remediator.config import WebConfig
from remediator.config.doors import host_and_port
from remediator.config.secrets import read_token
from remediator.errors import ConfigError, RemediatorError, ServiceError, ServiceRefused
from remediator.exporter_access import access_to
from serving import config as web_file
from serving.errors import ServingError

_TIMEOUT = 10.0


def ask(web: WebConfig, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The JSON object that the server answers.

    Raises:
        ConfigError: nothing is configured that could show who asks, or it cannot be used.
        ServiceRefused: nothing listens.
        RemediatorError: something else listens, or the server refuses.
    """
    url = _url(web)
    access = access_to(web.client, "web.client", {"web.client.url": url})
    token, shown = _token(web)
    where = url.partition("://")[2]
    try:
        reply = http.call(
            method, f"{url}{path}", timeout=_TIMEOUT, body=body, token=token, access=access
        )
    except ServiceRefused:
        raise ServiceRefused(f"no gpu-remediator listens on {where}") from None
    except ServiceError as error:
        hint = "; see web.client.ca_file and web.client.url" if "TLS" in str(error) else ""
        raise RemediatorError(f"the remediator at {where}: {error}{hint}") from None
    raw = _object(reply)
    if raw is None or (reply.status >= 300 and "error" not in raw):
        raise RemediatorError(
            f"what listens on {where} is no gpu-remediator (HTTP {reply.status}): say where "
            "it listens with web.listen_address or --web.listen-address"
        )
    if reply.status in (401, 403):
        raise RemediatorError(f"{raw['error']}; {shown} is not what the server on {where} knows")
    if reply.status >= 300:
        raise RemediatorError(str(raw["error"]))
    return raw


def _url(web: WebConfig) -> str:
    """Where the server answers, without a path."""
    if web.client.url:
        return web.client.url.rstrip("/")
    host, port = host_and_port(web.listen_address)
    host = host if host not in ("", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104 - compared only
    scheme = "https" if _has_tls(web) else "http"
    return f"{scheme}://{'[' + host + ']' if ':' in host else host}:{port}"


def _has_tls(web: WebConfig) -> bool:
    if web.config_file is None:
        return False
    try:
        text = web.config_file.read_bytes()
        return web_file.parse(text, web.config_file.parent).tls is not None
    except OSError as error:
        raise ConfigError(
            f"cannot read web.config_file {web.config_file}: {error.strerror}; say in "
            "web.client.url where the server is"
        ) from None
    except ServingError as error:
        raise ConfigError(f"web.config_file: {web.config_file}: {error}") from None


def _token(web: WebConfig) -> tuple[str | None, str]:
    """The token to show, None where it is something else; and what that is, for a message."""
    client = web.client
    if client.username:
        return None, f"the user {client.username} (web.client)"
    if web.tokens.operate is not None:
        token = read_token(web.tokens.operate)
        return token, f"the token in {web.tokens.operate} (web.tokens.operate)"
    if client.cert_file is not None:
        return None, f"the certificate {client.cert_file} (web.client)"
    raise ConfigError(
        "web.tokens.operate is not set, nor a user or a certificate in web.client, so nobody may "
        "do this"
    )


def _object(reply: http.Answer) -> dict[str, Any] | None:
    try:
        raw = reply.json()
    except ServiceError:
        return None
    return raw if isinstance(raw, dict) else None
