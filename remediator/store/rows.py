"""Rows as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from remediator.targets import Target, TargetKind

RunState = Literal[
    "awaiting_approval",
    "reserved",
    "running",
    "verifying",
    "succeeded",
    "ineffective",
    "failed",
    "ambiguous",
    "cancelled",
    "refused",
]
ACTIVE_STATES: tuple[RunState, ...] = ("awaiting_approval", "reserved", "running", "verifying")
OUTCOMES: tuple[RunState, ...] = (
    "succeeded",
    "ineffective",
    "failed",
    "ambiguous",
    "cancelled",
    "refused",
)
StepState = Literal["intended", "done", "nothing", "refuted", "failed", "unknown"]
IncidentState = Literal["recovering", "refuted", "needs_human"]
LeaseState = Literal["active", "restored", "already_original", "foreign", "forgotten"]


@dataclass(frozen=True)
class Episode:
    """One firing of one fingerprint; times in Unix seconds.

    `refuted_at`: when evidence last said that there was nothing to do; None where it never did.
    """

    id: int
    fingerprint: str
    number: int
    alertname: str
    labels: Mapping[str, str]
    starts_at: float
    first_seen: float
    last_seen: float
    heartbeats: int
    ended_at: float | None
    last_reason: str | None
    acted: bool
    refuted_at: float | None = None


@dataclass(frozen=True)
class Run:
    """One execution of a playbook on one target; times in Unix seconds.

    `created_monotonic` is of the monotonic clock of the boot `boot_id`, `ended_monotonic` of that of
    `ended_boot_id`; None where nobody noted it.
    """

    id: int
    episode_id: int | None
    playbook: str
    weight: int
    destructive: bool
    safe: bool
    trigger: str
    target: Target
    state: RunState
    reason: str
    sentence: str
    plan: Any
    rung: int
    cancel_reason: str | None
    created_at: float
    updated_at: float
    ended_at: float | None
    expires_at: float | None
    boot_id: str
    created_monotonic: float | None = None
    ended_monotonic: float | None = None
    ended_boot_id: str = ""


@dataclass(frozen=True)
class Step:
    """One journaled step of a run."""

    run_id: int
    seq: int
    rung: int
    action: str
    gpu: str | None
    service: str | None
    state: StepState
    intent: Mapping[str, Any]
    result: Mapping[str, Any]
    sentence: str
    started_at: float
    ended_at: float | None
    boot_id: str


@dataclass(frozen=True)
class Lease:
    """The undo of one knob of one card; values in the knob's integer unit (milliwatts).

    Times as in `Run`.
    """

    id: int
    uuid: str
    knob: str
    control: str
    original: int
    value: int
    written: tuple[int, ...]
    run_id: int
    created_at: float
    undo_requested: bool
    boot_id: str = ""
    created_monotonic: float | None = None


@dataclass(frozen=True)
class Incident:
    """An open problem of one target, as on-call sees it."""

    id: int
    episode_id: int | None
    trigger: str
    target: Target
    playbook: str
    last_step: str
    reason: str
    state: IncidentState
    opened_at: float


def target_of(kind: str, name: str) -> Target:
    """The target of two columns."""
    known: dict[str, TargetKind] = {
        "gpu": "gpu",
        "service": "service",
        "host": "host",
        "none": "none",
    }
    return Target(known[kind], name)
