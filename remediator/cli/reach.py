"""How the running server is reached, also where the configuration cannot be used.

Who pauses or undoes at night must not have to mend a file first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from remediator.config import WebConfig
from remediator.config.strict import build
from remediator.errors import ConfigError

TOKEN_FLAG = "--web.operate-token-file"  # noqa: S105 - the name of a flag

# Of `web` only this says where the server is and what to show it.
_KEYS = ("listen_address", "config_file", "tokens", "client")
_URL = re.compile(r"(https?://[^@\s]+)?")


def with_token_file(web: WebConfig, path: Path | None) -> WebConfig:
    """`web` with the token in `path` in place of what it would show; None leaves it as it is."""
    if path is None:
        return web
    client = replace(web.client, username="", password_file=None)
    return replace(web, tokens=replace(web.tokens, operate=path), client=client)


def without_configuration(
    path: Path, problem: ConfigError, listen_address: str | None, token_file: Path | None
) -> tuple[WebConfig, str]:
    """Where the server is as far as can be known, and a warning about how that is known.

    Args:
        path: the configuration, which cannot be used.
        problem: why not.
        listen_address: replaces the one in it.
        token_file: replaces the operate token in it.

    Raises:
        ConfigError: there is nothing to show the server; it says which flags to give.
    """
    found = _web_of(path)
    web = with_token_file(found or WebConfig(), token_file)
    if listen_address:
        web = replace(web, listen_address=listen_address)
    if web.tokens.operate is None and not web.client.username and web.client.cert_file is None:
        raise ConfigError(
            f"{problem}; to reach the running server all the same, give {TOKEN_FLAG}=FILE, and "
            f"--web.listen-address=HOST:PORT where it does not listen on {web.listen_address}"
        )
    known = "" if found is None else ", as its `web` says"
    where = web.client.url or web.listen_address
    return web, f"{problem}; this asks the running server on {where}{known}"


def _web_of(path: Path) -> WebConfig | None:
    """The block `web` of a file of which the rest may not even be YAML; None where it is no help."""
    try:
        raw = yaml.safe_load(_block(path.read_text(encoding="utf-8", errors="replace")))
        return _reached(raw)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, ConfigError):
        return None


def _block(text: str) -> str:
    """The lines of the top-level key `web`; empty unless it stands there once."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("web:")]
    if len(starts) != 1:
        return ""
    block = [lines[starts[0]]]
    for line in lines[starts[0] + 1 :]:
        if line and line[0] not in " #":
            break
        block.append(line)
    return "\n".join(block)


def _reached(raw: Any) -> WebConfig | None:
    web = raw.get("web") if isinstance(raw, Mapping) else None
    if not isinstance(web, Mapping):
        return None
    found = build(WebConfig, {key: web[key] for key in _KEYS if key in web}, "web")
    return found if _URL.fullmatch(found.client.url) else None
