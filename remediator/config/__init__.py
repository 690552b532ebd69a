"""The remediator's configuration: one strict YAML file, secrets in files beside it."""

from remediator.config.loader import load
from remediator.config.model import (
    AlertmanagerConfig,
    Config,
    ExporterConfig,
    GpuConfig,
    Limits,
    Mode,
    ServiceConfig,
    Timing,
    WebConfig,
)

__all__ = [
    "AlertmanagerConfig",
    "Config",
    "ExporterConfig",
    "GpuConfig",
    "Limits",
    "Mode",
    "ServiceConfig",
    "Timing",
    "WebConfig",
    "load",
]
