"""LLM server drivers: one file each, one contract (base.py)."""

from __future__ import annotations

import importlib
import pkgutil

from remediator.config import ServiceConfig, Timing
from remediator.config.strict import build, one_of
from remediator.services.base import (
    Capabilities,
    Capability,
    LoadedModel,
    ServiceDriver,
    ServiceProbe,
    WorkerDeath,
)

__all__ = [
    "Capabilities",
    "Capability",
    "LoadedModel",
    "ServiceDriver",
    "ServiceProbe",
    "WorkerDeath",
    "create",
    "names",
]


def names() -> tuple[str, ...]:
    """The drivers there are: each module here but base."""
    return tuple(
        m.name
        for m in pkgutil.iter_modules(__path__)
        if m.name != "base" and not m.name.startswith("_")
    )


def create(config: ServiceConfig, timing: Timing) -> ServiceDriver:
    """The driver that a service's `driver:` names.

    Raises:
        ConfigError: no such driver, or its options are wrong.
    """
    where = f"services.{config.name}"
    name = one_of(config.driver, names(), f"{where}.driver")
    module = importlib.import_module(f"{__name__}.{name}")
    options = build(module.Options, config.options, f"{where}.options")
    driver: ServiceDriver = module.create(config.endpoint, options, timing)
    return driver
