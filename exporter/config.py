"""The configuration file: strict YAML into values.

An unknown key is an error that names the nearest known one, because a threshold that is silently
ignored is a card that burns.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from exporter.errors import ConfigError
from exporter.policy import (
    MemoryPolicy,
    Override,
    Policy,
    SaturationPolicy,
    TemperatureThresholds,
    Thresholds,
)

GIB = 2**30
ExpectedGpus: TypeAlias = Literal["auto"] | int | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Seconds.

    Attributes:
        processes: between two looks at the process lists.
        health: between two looks at what changes seldom (ECC, remapped rows, recovery action).
        check: between two looks whether GPUs came or went.
        fault_after: a GPU without a fresh reading for so long is down with `timeout`.
    """

    processes: float = 15.0
    health: float = 30.0
    check: float = 10.0
    fault_after: float = 5.0


@dataclass(frozen=True, slots=True)
class HostMetrics:
    """Readings of the host; off where node_exporter has them."""

    enabled: bool = True
    mountpoints: tuple[str, ...] = ("/",)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration file.

    Attributes:
        process_limit: processes told apart on one GPU; the rest is summed up as `other`.
        pcie_throughput: read it with the health, which takes the driver 40 ms for each GPU.
    """

    policy: Policy = field(default_factory=Policy)
    expected_gpus: ExpectedGpus = "auto"
    intervals: Intervals = field(default_factory=Intervals)
    host_metrics: HostMetrics = field(default_factory=HostMetrics)
    process_limit: int = 128
    pcie_throughput: bool = False


class _Section:
    """A mapping of the file that knows its path, for messages."""

    def __init__(self, value: Any, path: str, known: tuple[str, ...]) -> None:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path or 'the file'}: expected a mapping, got {value!r}")
        self.path = path
        self._value = value
        for key in value:
            if key not in known:
                raise ConfigError(f"{self.at(str(key))}: unknown key{_nearest(str(key), known)}")

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def section(self, key: str, *known: str) -> _Section:
        return _Section(self._value.get(key, {}), self.at(key), known)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._value.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{self.at(key)}: expected a number, got {value!r}")
        if not low <= value <= high:
            raise ConfigError(f"{self.at(key)}: {value} is not between {low:g} and {high:g}")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._value.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.at(key)}: expected true or false, got {value!r}")
        return value

    def get(self, key: str, default: Any = None) -> Any:
        return self._value.get(key, default)


def load(path: Path | None) -> Config:
    """Read the file; without one, the defaults.

    Raises:
        ConfigError: it cannot be read, is not YAML, or says something that is not understood.
    """
    if path is None:
        return Config()
    # Big, and without a file there is no use for it.
    yaml = importlib.import_module("yaml")
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return parse({} if document is None else document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(document: Any) -> Config:
    """Turn the parsed file into a configuration.

    Raises:
        ConfigError: with the path of the key.
    """
    known = (
        *("thresholds", "overrides", "expected_gpus", "intervals", "host_metrics"),
        *("processes", "pcie"),
    )
    root = _Section(document, "", known)
    processes = root.section("processes", "limit")
    return Config(
        policy=_policy(root),
        expected_gpus=_expected(root.get("expected_gpus", "auto")),
        intervals=_intervals(
            root.section("intervals", "processes", "health", "check", "fault_after")
        ),
        host_metrics=_host(root.section("host_metrics", "enabled", "mountpoints")),
        process_limit=int(processes.number("limit", Config().process_limit, 1, 4096)),
        pcie_throughput=root.section("pcie", "throughput").flag("throughput", default=False),
    )


def _policy(root: _Section) -> Policy:
    section = root.section("thresholds", "temperature", "memory", "saturation")
    default = _thresholds(section, Thresholds())
    saturation = section.section("saturation", "ratio", "seconds")
    overrides = root.get("overrides", [])
    if not isinstance(overrides, list):
        raise ConfigError(f"overrides: expected a list, got {overrides!r}")
    return Policy(
        default=default,
        overrides=tuple(_override(item, i, default) for i, item in enumerate(overrides)),
        saturation=SaturationPolicy(
            ratio=saturation.number("ratio", 0.99, 0.01, 1),
            seconds=saturation.number("seconds", 30, 1, 86400),
        ),
    )


def _override(item: Any, position: int, default: Thresholds) -> Override:
    path = f"overrides[{position}]"
    section = _Section(item, path, ("uuid", "model", "temperature", "memory"))
    uuid, model = section.get("uuid"), section.get("model")
    if (uuid is None) == (model is None):
        raise ConfigError(f"{path}: give either uuid or model (a pattern such as 'NVIDIA A100*')")
    if not isinstance(uuid or model, str):
        raise ConfigError(f"{path}: uuid or model must be text, got {uuid or model!r}")
    return Override(_thresholds(section, default), uuid=uuid, model=model)


def _thresholds(section: _Section, default: Thresholds) -> Thresholds:
    return Thresholds(
        temperature=_temperature(
            section.section("temperature", "warning", "critical", "shutdown"), default.temperature
        ),
        memory=_memory(
            section.section(
                "memory", "warning_ratio", "critical_ratio", "budget_bytes", "budget_gib"
            ),
            default.memory,
        ),
    )


def _temperature(section: _Section, default: TemperatureThresholds) -> TemperatureThresholds:
    limits = TemperatureThresholds(
        *(
            section.number(level, getattr(default, level), 1, 150)
            for level in ("warning", "critical", "shutdown")
        )
    )
    if not limits.warning <= limits.critical <= limits.shutdown:
        raise ConfigError(f"{section.path}: must ascend from warning over critical to shutdown")
    return limits


def _memory(section: _Section, default: MemoryPolicy) -> MemoryPolicy:
    policy = replace(
        default,
        warning_ratio=section.number("warning_ratio", default.warning_ratio, 0.01, 1),
        critical_ratio=section.number("critical_ratio", default.critical_ratio, 0.01, 1),
    )
    if policy.warning_ratio > policy.critical_ratio:
        raise ConfigError(f"{section.path}: warning_ratio must not be above critical_ratio")
    if "budget_bytes" in section and "budget_gib" in section:
        raise ConfigError(f"{section.path}: give budget_bytes or budget_gib, not both")
    if "budget_bytes" in section:
        return replace(policy, budget_bytes=int(section.number("budget_bytes", 0, 1, 2**50)))
    if "budget_gib" in section:
        budget = section.number("budget_gib", 0, 0.001, 2**20)
        return replace(policy, budget_bytes=int(budget * GIB))
    return policy


def _intervals(section: _Section) -> Intervals:
    default = Intervals()
    return Intervals(
        processes=section.number("processes", default.processes, 1, 3600),
        health=section.number("health", default.health, 1, 3600),
        check=section.number("check", default.check, 1, 3600),
        fault_after=section.number("fault_after", default.fault_after, 0.5, 3600),
    )


def _host(section: _Section) -> HostMetrics:
    mountpoints = section.get("mountpoints", ["/"])
    if not isinstance(mountpoints, list) or not all(
        isinstance(one, str) and one.startswith("/") for one in mountpoints
    ):
        raise ConfigError(f"{section.at('mountpoints')}: expected a list of absolute paths")
    enabled = section.flag("enabled", default=True)
    return HostMetrics(enabled=enabled, mountpoints=tuple(mountpoints))


def _expected(value: Any) -> ExpectedGpus:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return tuple(dict.fromkeys(value))
    raise ConfigError(f"expected_gpus: expected auto, a count or a list of uuids, got {value!r}")


def _nearest(key: str, known: tuple[str, ...]) -> str:
    # Only who made a mistake needs the module.
    near = importlib.import_module("difflib").get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known here: {', '.join(known)}"
