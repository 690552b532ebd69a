"""The configuration as frozen values. Defaults are the safe ones; durations are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from remediator.config.doors import ClientConfig, Roles
from remediator.config.strict import Seconds, Uuid
from remediator.config.windows import WindowConfig

Mode = Literal["off", "observe", "approve", "auto"]
Permission = Literal["service_restart", "service_stop", "gpu_reset"]

# Looks that take as long as they may, and so many of them lost.
_PROBES_MISSED = 3


@dataclass(frozen=True)
class ExporterConfig:
    """Where this machine's gpu-exporter answers.

    `instance` is the label by which Prometheus knows it; host and port of `url` unless said.
    `release_token_file` lets the remediator have it let go of a card that is to be reset.
    `ca_file` is whom to trust where it speaks TLS, `cert_file` with `key_file` what to show it there,
    `username` with `password_file` what it asks for with `basic_auth_users`.
    """

    url: str = "http://127.0.0.1:9940"
    instance: str = ""
    timeout: Seconds = 3.0
    release_token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str = ""
    password_file: Path | None = None


@dataclass(frozen=True)
class GpuConfig:
    """Which GPUs are ours, and what writes to them.

    `inventory: auto` takes the cards that this machine's own exporter reports; a list of uuids
    restricts it. `control: none` leaves every GPU action refused. Nothing is done about a card that
    is `opted_out`, and it is not written to, but for an undo.
    """

    control: Literal["nvml", "nvidia-smi", "jetson", "helper", "simulated", "none"] = "nvml"
    # Where the helper listens; with `control: jetson` it is asked only where this is set.
    helper_socket: Path | None = None
    simulator_url: str = ""
    nvidia_smi: Path = Path("/usr/bin/nvidia-smi")
    inventory: Literal["auto"] | tuple[Uuid, ...] = "auto"
    opted_out: tuple[Uuid, ...] = ()
    timeout: Seconds = 15.0
    reset_allow_consumer: bool = False


@dataclass(frozen=True)
class TokenFiles:
    """Files that hold the bearer token of each role; a role without a file has no valid token."""

    webhook: Path | None = None
    read: Path | None = None
    operate: Path | None = None


@dataclass(frozen=True)
class WebConfig:
    """The HTTP side.

    `config_file` is a web configuration file of exporter-toolkit: TLS, client certificates, users
    and headers. `roles` says which of these users and certificates may do what.
    """

    listen_address: str = "127.0.0.1:9941"
    config_file: Path | None = None
    tokens: TokenFiles = field(default_factory=TokenFiles)
    roles: Roles = field(default_factory=Roles)
    client: ClientConfig = field(default_factory=ClientConfig)
    max_body_bytes: int = 4 * 1024 * 1024


@dataclass(frozen=True)
class AlertmanagerConfig:
    """The Alertmanagers that deliver to us, to be asked what was not delivered; none: never asked.

    `receiver` is our receiver's name there: only what is routed to it is ours. The files and
    `username` are as in `exporter`; `token_file` holds a bearer token, in place of a user.
    """

    urls: tuple[str, ...] = ()
    receiver: str = "gpu-remediator"
    interval: Seconds = 30.0
    timeout: Seconds = 5.0
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str = ""
    password_file: Path | None = None
    token_file: Path | None = None


@dataclass(frozen=True)
class AuditConfig:
    """The audit chain's key; made on first start (mode 0600) where the file does not exist.

    `old_key_files` are keys that it was written with before, oldest first. `anchor_file` is where
    its head is written down; `keep` how long its records stay in the database before they move into
    files in `segment_dir`. What is done for heat or undone while the database cannot be written is
    kept in `emergency_dir`. None means in `state_dir`, but for the last.
    """

    key_file: Path | None = None
    old_key_files: tuple[Path, ...] = ()
    anchor_file: Path | None = None
    keep: Seconds = 400 * 86400.0
    segment_dir: Path | None = None
    emergency_dir: Path | None = None


@dataclass(frozen=True)
class ServiceConfig:
    """One LLM service: a server driver with a process manager, on known GPUs.

    `gpus: all` means every card in the inventory; an empty list means none, never all. For
    `start_grace` after its start a process that does not listen yet is starting, not down. One that
    says for longer than `loading_limit` that it comes up is told of, and left alone. Without
    `remediate` nothing is ever done to it. Without `watch_log` its log is not read. `degraded` is a
    manager of the same server with less load, which is started in place of `manager` once it keeps
    running out of memory.
    """

    name: str
    driver: str
    endpoint: str
    manager: Mapping[str, Any]
    gpus: Literal["all"] | tuple[Uuid, ...] = ()
    models: tuple[str, ...] = ()
    start_grace: Seconds = 120.0
    loading_limit: Seconds = 1800.0
    remediate: bool = True
    watch_log: bool = True
    degraded: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """How long things may take or must last, in seconds."""

    hold_down: Seconds = 300.0
    cool_margin_celsius: float = 3.0
    reading_max_age: Seconds = 5.0
    alert_max_age: Seconds = 86400.0
    episode_ttl: Seconds = 1200.0
    lease_overdue_after: Seconds = 3600.0
    probe_interval: Seconds = 5.0
    probe_timeout: Seconds = 3.0
    canary_timeout: Seconds = 30.0
    approval_expires: Seconds = 900.0
    settling: Seconds = 15.0
    suspect_after: Seconds = 180.0
    footprint_after: Seconds = 20.0
    stalled_after: Seconds = 120.0

    @property
    def probe_max_age(self) -> float:
        """So long after the last look at a service nothing is known of it any more (seconds)."""
        return _PROBES_MISSED * (self.probe_interval + 2 * self.probe_timeout)


@dataclass(frozen=True)
class Limits:
    """Budgets, in absolute numbers that make sense for one to eight GPUs."""

    attempts_per_hour: int = 3
    attempts_per_day: int = 8
    cooldown: Seconds = 60.0
    destructive_per_hour: int = 6
    breaker_targets: int = 2
    breaker_window: Seconds = 300.0
    breaker_failures: int = 3
    breaker_relapses: int = 3
    breaker_relapse_window: Seconds = 14400.0
    flap_episodes_per_hour: int = 3


@dataclass(frozen=True)
class Config:
    """The whole file."""

    state_dir: Path
    mode: Mode = "observe"
    allow: tuple[Permission, ...] = ()
    exporter: ExporterConfig = field(default_factory=ExporterConfig)
    gpus: GpuConfig = field(default_factory=GpuConfig)
    web: WebConfig = field(default_factory=WebConfig)
    alertmanager: AlertmanagerConfig = field(default_factory=AlertmanagerConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    services: tuple[ServiceConfig, ...] = ()
    playbooks: Mapping[str, Any] = field(default_factory=dict)
    windows: tuple[WindowConfig, ...] = ()
    kill_switch_file: Path | None = None
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)

    @property
    def audit_key_file(self) -> Path:
        """The file of the audit chain's key: outside the database."""
        return self.audit.key_file or self.state_dir / "audit.key"

    @property
    def kill_switch(self) -> Path:
        """The file whose presence stops every new action."""
        return self.kill_switch_file or self.state_dir / "KILL"
