"""Who has taken over the remediator may ask for anything in any order: it stays within the bounds."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from remediator.gpu_reset import Check, Client
from remediator.helper.desk import Desk
from remediator.helper.ledger import Ledger
from remediator.helper.policy import Policy
from remediator.helper.protocol import VERBS, Request
from tests.remediator.engine.fakes import FakeClock
from tests.remediator.helper.support import CARD, OTHER, Cards

DAY = 86_400.0


class Driver(Cards):
    """Keeps when each card was written to and reset; some cards are in use, or must not be reset."""

    def __init__(self, clock: FakeClock, dice: random.Random) -> None:
        super().__init__()
        self.clock, self.dice = clock, dice
        self.writes: dict[str, list[float]] = {CARD: [], OTHER: []}
        self.resets: dict[str, list[float]] = {CARD: [], OTHER: []}
        self.in_the_way = False

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        self.writes[uuid].append(self.clock.now())
        super().set_power_limit(uuid, milliwatts)

    def checks(self, uuid: str) -> tuple[Check, ...]:
        self.in_the_way = self.dice.random() < 0.3
        return (Check("mig", not self.in_the_way, "on"),)

    def clients(self, uuid: str) -> tuple[Client, ...]:
        if self.dice.random() < 0.3:
            self.in_the_way = True
            return (Client(7, "llm"),)
        return ()

    def reset(self, uuid: str, timeout: float) -> bool:
        assert not self.in_the_way
        self.resets[uuid].append(self.clock.now())
        return True


def most_within(times: list[float], seconds: float) -> int:
    return max((sum(t <= one < t + seconds for one in times) for t in times), default=0)


@pytest.mark.parametrize("seed", range(3))
def test_no_sequence_of_calls_leaves_the_bounds(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    dice, clock = random.Random(seed), FakeClock()
    driver: Any = Driver(clock, dice)
    policy = Policy(1000, ("power_limit", "reset"), writes_per_minute=5)

    def start() -> Desk:
        desk = Desk(policy, Ledger(tmp_path, clock), clock)
        desk._power = desk._nvml = desk._reset = driver
        return desk

    desk = start()
    for _ in range(1500):
        verb = dice.choice([*VERBS, *["set_power_limit", "reset"] * 5])
        number = dice.choice([1, 99_999, 100_000, 250_000, 400_000, 400_001, 10_000_000])
        uuid = dice.choice([CARD, CARD, OTHER, CARD.lower(), "GPU-unknown", "all"])
        reply = desk.answer(Request(verb, uuid, number), lambda: dice.random() > 0.05)
        if uuid not in (CARD, OTHER) or VERBS[verb].permission == "jetson":
            assert reply.outcome == "refused" or verb == "about"
        assert all(100_000 <= limit <= 400_000 for limit in driver.limits.values())
        # Mostly in a burst, now and then after minutes or hours.
        clock.advance(dice.choice([0.0] * 296 + [7.0, 7.0, 600.0, 20_000.0]))
        if dice.random() < 0.02:
            # It has crashed, or was made to: what it had counted is not forgotten.
            desk = start()
    for uuid in (CARD, OTHER):
        assert driver.resets[uuid]
        assert most_within(driver.resets[uuid], DAY - 1) <= 2
        assert 0 < most_within(driver.writes[uuid], 59.0) <= 5
