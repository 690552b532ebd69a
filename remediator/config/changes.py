"""What differs between two configurations, in words that hold no secret."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from remediator.config.model import Config
from remediator.errors import ConfigError

# What can be taken in while it runs; of `web`, only who may do what.
_LIVE = frozenset(
    (
        *("mode", "allow", "exporter", "gpus", "services", "playbooks", "windows"),
        *("kill_switch_file", "timing", "limits", "web"),
    )
)
_LIVE_WEB = ("tokens", "roles", "client")
# Anything may stand here, also a password.
_OPAQUE = ("options", "manager")
_HIDDEN = "(not shown)"


def refuse_fixed(old: Config, new: Config) -> None:
    """Refuse a change of what holds until a restart.

    Raises:
        ConfigError: there is one; the message names it.
    """
    same_web = dataclasses.replace(new.web, **{key: getattr(old.web, key) for key in _LIVE_WEB})
    fixed = dataclasses.replace(
        new, web=same_web, **{key: getattr(old, key) for key in _LIVE - {"web"}}
    )
    names = [path for path, *_ in _walk("", _plain(old), _plain(fixed))]
    if names:
        raise ConfigError(
            f"{names[0]} cannot change while the remediator runs: restart it. Nothing was taken in"
        )


def between(old: Config, new: Config) -> list[str]:
    """A line for each value that differs: its path, what it was, and what it is."""
    lines = []
    for path, before, after in _walk("", _plain(old), _plain(new)):
        if any(part in _OPAQUE for part in path.split(".")):
            lines.append(f"{path}: {_HIDDEN}")
        else:
            lines.append(f"{path}: {_shown(before)} -> {_shown(after)}")
    return lines


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_plain(one) for one in value]
        if items and all(isinstance(one, dict) and "name" in one for one in items):
            return {one["name"]: one for one in items}
        return items
    return str(value) if isinstance(value, Path) else value


def _walk(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if old == new:
        return
    # A list of named things that was empty, or has become so.
    old, new = (
        {} if one == [] and isinstance(other, dict) else one
        for one, other in ((old, new), (new, old))
    )
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _walk(f"{path}.{key}" if path else key, old.get(key), new.get(key))
        return
    yield path, old, new


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        # A whole new service or playbook.
        return "there" if value else "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
