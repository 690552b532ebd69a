"""Process managers: who starts and stops an LLM server. One file each, one contract (base.py)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from remediator.config.strict import build, named
from remediator.managers._server_log import Logged, LogLine, LogPage, ServerLog
from remediator.managers.base import Context, ProcessIdentity, ProcessManager, ProcessStatus

__all__ = [
    "Context",
    "LogLine",
    "LogPage",
    "Logged",
    "ProcessIdentity",
    "ProcessManager",
    "ProcessStatus",
    "ServerLog",
    "create",
    "names",
]


def names() -> tuple[str, ...]:
    """The managers there are: each public module here but base."""
    return tuple(
        m.name
        for m in pkgutil.iter_modules(__path__)
        if m.name != "base" and not m.name.startswith("_")
    )


def create(raw: Mapping[str, Any], service: str, context: Context) -> ProcessManager:
    """The manager that a service's `manager:` block describes.

    Raises:
        ConfigError: no such manager, or its block is wrong.
    """
    where = f"services.{service}.manager"
    kind = named(raw, "type", names(), where)
    module = importlib.import_module(f"{__name__}.{kind}")
    options = {key: value for key, value in raw.items() if key != "type"}
    manager: ProcessManager = module.create(build(module.Options, options, where), service, context)
    return manager
