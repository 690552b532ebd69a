"""What keeps actions back now, for whoever looks: the page, the API, the metrics, `check`."""

from __future__ import annotations

from dataclasses import dataclass

from remediator.config import Config
from remediator.config.model import Mode
from remediator.engine.gathering import BREAKER, PAUSED, killed, opted_out
from remediator.policy.windows import Open, open_now
from remediator.store import Transaction


@dataclass(frozen=True)
class Standing:
    """Each None or empty where it keeps nothing back; `windows` are those that are open."""

    mode: Mode
    kill_switch: str | None
    paused: str | None
    breaker: str | None
    windows: tuple[Open, ...]
    opted_out: tuple[str, ...]


def standing(config: Config, tx: Transaction, now: float) -> Standing:
    """What keeps actions back at `now` (Unix seconds)."""
    return Standing(
        mode=config.mode,
        kill_switch=killed(config),
        paused=tx.get_meta(PAUSED),
        breaker=tx.get_meta(BREAKER),
        windows=open_now(config.windows, now),
        opted_out=tuple(sorted(opted_out(config))),
    )
