"""Reads `remediator.yml`: strict, whole, and with a sentence for every mistake."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from remediator.config import doors, windows
from remediator.config.model import Config
from remediator.config.strict import build
from remediator.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{2,63}")

_NEVER_ZERO = (
    "reading_max_age",
    "alert_max_age",
    "episode_ttl",
    "lease_overdue_after",
    "probe_interval",
    "probe_timeout",
    "canary_timeout",
    "approval_expires",
    "stalled_after",
)


_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$")
_TIME = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """YAML in which no key may stand twice: one of the two would be dropped in silence.

    A time is text: YAML 1.1 would read 22:00 as the number 1320, and a date without its offset.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's name for it
        first: [
            (tag, _INT if tag.endswith(":int") else pattern)
            for tag, pattern in known
            if tag != _TIME
        ]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of `node`."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(f"the key {key.value!r} stands twice, again in line {line}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: Path, listen_address: str | None = None) -> Config:
    """The configuration in the file at `path`; `listen_address` replaces the one in it.

    Raises:
        ConfigError: the file cannot be read or says something that is not allowed.
    """
    config = build(Config, read_yaml(path), "")
    if listen_address:
        config = replace(config, web=replace(config.web, listen_address=listen_address))
    _check(config)
    return config


def read_yaml(path: Path) -> Any:
    """What the YAML file at `path` holds.

    Raises:
        ConfigError: the file cannot be read, or a key stands twice in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}; say with --config.file which "
            "one, that this user can read"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"the configuration {path} is not UTF-8 text") from None
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A parser's message has several lines; ours are one.
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _check(config: Config) -> None:
    doors.check(config.web)
    if config.web.client.url:
        _check_url(config.web.client.url, "web.client.url")
    _check_url(config.exporter.url, "exporter.url")
    for i, url in enumerate(config.alertmanager.urls):
        _check_url(url, f"alertmanager.urls[{i}]")
    if config.gpus.control == "simulated":
        _check_url(config.gpus.simulator_url, "gpus.simulator_url")
    if config.gpus.helper_socket is not None and not config.gpus.helper_socket.is_absolute():
        raise ConfigError("gpus.helper_socket must be an absolute path")
    if isinstance(config.gpus.inventory, tuple):
        _check_uuids(config.gpus.inventory, "gpus.inventory")
    names = [service.name for service in config.services]
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"services: {name!r} is not a name (letters, digits, '.', '_', '-')")
        if names.count(name) > 1:
            raise ConfigError(f"services: two services are called {name!r}")
    for service in config.services:
        _check_url(service.endpoint, f"services.{service.name}.endpoint")
        if isinstance(service.gpus, tuple):
            _check_uuids(service.gpus, f"services.{service.name}.gpus")
    _check_uuids(config.gpus.opted_out, "gpus.opted_out")
    windows.check(config.windows, names)
    _check_numbers(config)


def _check_numbers(config: Config) -> None:
    if not 0 < config.timing.hold_down <= 86400:
        raise ConfigError("timing.hold_down must be between 1s and 1d")
    durations = {
        "exporter.timeout": config.exporter.timeout,
        "gpus.timeout": config.gpus.timeout,
        "alertmanager.interval": config.alertmanager.interval,
        "alertmanager.timeout": config.alertmanager.timeout,
        **{f"timing.{name}": getattr(config.timing, name) for name in _NEVER_ZERO},
    }
    for where, seconds in durations.items():
        if seconds <= 0:
            raise ConfigError(f"{where} must be longer than 0s")
    if not 0 < config.limits.breaker_relapse_window <= 86400:
        raise ConfigError("limits.breaker_relapse_window must be between 1s and 1d")
    if config.timing.cool_margin_celsius < 0:
        raise ConfigError("timing.cool_margin_celsius must not be negative")
    if config.web.max_body_bytes < 1024:
        raise ConfigError("web.max_body_bytes must be at least 1024")
    for name, value in asdict(config.limits).items():
        if value < 0:
            raise ConfigError(f"limits.{name} must not be negative")


def _check_url(url: str, where: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.username
        good = good and parts.port != 0
    except ValueError:
        good = False
    if not good:
        # Before an "@" stands a password: it belongs into no log.
        said = "one with a user" if "@" in url else repr(url)
        raise ConfigError(f"{where} must be an http or https URL without a user, not {said}")


def _check_uuids(uuids: tuple[str, ...], where: str) -> None:
    for uuid in uuids:
        if not _UUID.fullmatch(uuid):
            raise ConfigError(
                f"{where}: {uuid!r} is not a GPU uuid; `gpu-exporter check` shows them"
            )
    if len(set(uuids)) != len(uuids):
        raise ConfigError(f"{where} names a GPU twice")
