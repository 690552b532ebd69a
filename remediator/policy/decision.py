"""A decision: what, why as an enum, why as a sentence, and when to look again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["run", "ask", "observe", "refuse", "refute", "defer", "ignore", "notify"]
KINDS: tuple[Kind, ...] = (
    "run",
    "ask",
    "observe",
    "refuse",
    "refute",
    "defer",
    "ignore",
    "notify",
)

# Every reason a gate can give; a signal adds its own (remediator/signals/).
GATE_REASONS = (
    "accepted",
    "no_playbook",
    "not_in_inventory",
    "mode_off",
    "mode_observe",
    "needs_approval",
    "not_allowed",
    "kill_switch",
    "paused",
    "maintenance_window",
    "opted_out",
    "stale_alert",
    "duplicate",
    "target_busy",
    "superseded",
    "settling",
    "cooldown",
    "attempts",
    "rate_limit",
    "breaker_open",
    "no_service",
)


@dataclass(frozen=True)
class Decision:
    """One decision.

    `retry_after` in seconds; None means not before something changes. What it rests on may be
    `critical`, whatever is decided.
    """

    kind: Kind
    reason: str
    sentence: str
    retry_after: float | None = None
    needs_human: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)
    critical: bool = False
