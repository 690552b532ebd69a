"""Random schedules of deliveries: each true firing is acted on at most once, and none is missed.

What truly happened is drawn first: when a card's alert fired. From it follows what two Prometheus with
clocks of their own and two Alertmanagers tell of it, in order or not: late, twice, some of it never, the
end before the beginning, all of it again a day later, with restarts of the remediator in between. The
evidence is always there, no budget stands in the way, and every run is reserved by the real engine.

`python -m tests.remediator.schedules --count 10000` prints the seed of each schedule that breaks it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from remediator.alertmanager import Alert, Listed, Notification
from remediator.intake import DRIFT_SECONDS, LATE_SECONDS
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.fakes import Card

NAME = "GPUTemperatureWarning"
_SCHEDULES_A_BENCH = 50
# No gate but the episode's own may keep an action back here: it would hide what is looked for.
_NO_LIMITS = {
    "attempts_per_hour": 10**6,
    "attempts_per_day": 10**6,
    "cooldown": "0s",
    "destructive_per_hour": 10**6,
    "breaker_targets": 10**6,
    "breaker_failures": 10**6,
    "breaker_relapses": 10**6,
    "flap_episodes_per_hour": 10**6,
}
# How late a delivery may be that is not a repetition of old ones: Alertmanager's own deadline.
_LATEST = LATE_SECONDS - 10


@dataclass(frozen=True)
class Firing:
    """From when until when an alert truly fires, in seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class Event:
    """Something that reaches the remediator at a time: a delivery, a look at the API, a restart."""

    at: float
    kind: Literal["firing", "resolved", "listed", "restart"]
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Schedule:
    """What truly happened and what is told of it; `told_plainly` are the firings nobody could miss."""

    firings: tuple[Firing, ...]
    events: tuple[Event, ...]
    told_plainly: int


@dataclass(frozen=True)
class Outcome:
    """What came of a schedule; `problem` is empty when all is well."""

    actions: int
    episodes: int
    problem: str = ""


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    rng = random.Random(seed)
    skew = rng.uniform(-0.5, 0.5) * (DRIFT_SECONDS - 15)
    firings: list[Firing] = []
    moment = 10.0
    for _ in range(rng.randint(1, 3)):
        # A firing, and the time between two, is longer than the clocks differ: otherwise nobody can
        # tell the end of one from the beginning of the next.
        length = rng.choice([rng.uniform(70, 200), rng.uniform(200, 1500)])
        firings.append(Firing(moment, moment + length))
        moment += length + abs(skew) + rng.choice([rng.uniform(4, 20), rng.uniform(60, 900)])
    events = [one for firing in firings for one in _told(rng, firing, skew)]
    deaf = _deafness(rng, moment)
    heard = [one for one in events if not any(a <= one.at < b for a, b in deaf)]
    heard += _repeated(rng, heard, moment)
    heard += [Event(rng.uniform(0, moment), "restart") for _ in range(rng.choice([0, 1, 3]))]
    heard += list(_listed(rng, firings, skew))
    heard.sort(key=lambda one: one.at)
    plainly = 0 if deaf else len(firings)
    return Schedule(tuple(firings), tuple(heard), plainly)


def _told(rng: random.Random, firing: Firing, skew: float) -> Iterator[Event]:
    """What two peers deliver of one firing; the peers hear of it from either Prometheus."""
    interval = rng.choice([15.0, 60.0, 300.0])
    for peer in (0, 1):
        drifting = rng.random() < 0.5
        moment = firing.start + rng.uniform(0, 5) + 15 * peer * (rng.random() < 0.3)
        while moment < firing.end:
            start = firing.start + (skew if drifting and rng.random() < 0.7 else 0.0)
            start += rng.uniform(-2, 2)
            yield Event(moment + _delay(rng), "firing", start)
            moment += interval * rng.uniform(0.9, 1.1)
        if rng.random() < 0.8:
            said = firing.end + rng.uniform(0, 15)
            yield Event(
                said + _delay(rng), "resolved", firing.start, firing.end + rng.uniform(0, 2)
            )


def _delay(rng: random.Random) -> float:
    return rng.choice([0.0, rng.uniform(0, 2), rng.uniform(0, _LATEST - 20)])


def _deafness(rng: random.Random, until: float) -> list[tuple[float, float]]:
    """Times in which nothing is delivered: an outage of either side."""
    if rng.random() < 0.6:
        return []
    begin = rng.uniform(0, until)
    return [(begin, begin + rng.uniform(10, 900))]


def _repeated(rng: random.Random, heard: Sequence[Event], until: float) -> Iterator[Event]:
    """Some of it once more: at once, as a peer does, or long after, as somebody with bad intent."""
    for one in heard:
        if rng.random() < 0.15:
            yield Event(one.at + rng.uniform(0, 10), one.kind, one.start, one.end)
    if heard and rng.random() < 0.5:
        for one in rng.choices(heard, k=3):
            later = until + rng.choice([rng.uniform(61, 600), 86_400.0 / 2])
            yield Event(later, one.kind, one.start, one.end)


def _listed(rng: random.Random, firings: Sequence[Firing], skew: float) -> Iterator[Event]:
    """Rounds of asking an Alertmanager's API, which may lag behind."""
    if rng.random() < 0.5:
        return
    for firing in firings:
        moment = firing.start + rng.uniform(0, 60)
        lag = rng.uniform(0, 60)
        while moment < firing.end + lag:
            known = min(moment, firing.end)
            yield Event(moment, "listed", firing.start + rng.choice([0.0, skew]), known)
            moment += rng.uniform(20, 120)


class Player:
    """Plays schedules on one bench, each on a card of its own."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(
            folder,
            limits=_NO_LIMITS,
            timing={"settling": "0s", "alert_max_age": "7d", "episode_ttl": "20m"},
        )
        self._plays = 0
        self._hurry()

    def _hurry(self) -> None:
        # Whether a commit is durable is not in question here, only how often something is done.
        self.bench.store._db.execute("PRAGMA synchronous = OFF")

    def play(self, schedule: Schedule) -> Outcome:
        """What comes of it."""
        bench = self.bench
        self._plays += 1
        uuid = f"GPU-{self._plays:08x}"
        # Each is hot, and ours: every look finds a reason to act.
        bench.cards.clear()
        bench.cards[uuid] = Card(uuid, celsius=84.0)
        bench.clock.advance(100_000)
        began = bench.clock.now()
        for event in schedule.events:
            bench.clock.advance(max(0.0, began + event.at - bench.clock.now()))
            self._hear(event, uuid, began)
            self._act()
        rows = bench.store._db.execute(
            "SELECT e.number, e.starts_at, count(r.id) FROM episodes e "
            "LEFT JOIN runs r ON r.episode_id = e.id "
            "WHERE e.fingerprint = ? GROUP BY e.id ORDER BY e.number",
            (_fingerprint(uuid),),
        ).fetchall()
        return _judge(schedule, [(n, s - began, c) for n, s, c in rows])

    def _hear(self, event: Event, uuid: str, began: float) -> None:
        labels = {"alertname": NAME, "uuid": uuid, "remediate": "true"}
        if event.kind == "restart":
            self.bench.restart()
            self._hurry()
            return
        status: Any = "resolved" if event.kind == "resolved" else "firing"
        end = began + event.end if event.kind == "resolved" and event.end is not None else None
        alert = Alert(_fingerprint(uuid), status, labels, {}, began + event.start, end)
        if event.kind == "listed":
            updated = began + (event.end or 0.0)
            self.bench.intake.reconcile([Listed(alert, "gpu-remediator", False, updated)])
        else:
            self.bench.intake.accept(Notification("gpu-remediator", "", 0, (alert,), "digest"))

    def _act(self) -> None:
        """Decide; a run that was reserved has then done its work."""
        bench = self.bench
        for run_id in bench.evaluate():
            with bench.store.transaction() as tx:
                run = tx.runs.get(run_id)
                assert run is not None
                assert run.episode_id is not None
                tx.runs.end(run_id, "succeeded", "done", "it was done", bench.clock.now())
                tx.episodes.decided(run.episode_id, "run:done", None, acted=True)

    def close(self) -> None:
        """Close the database."""
        self.bench.close()


def _fingerprint(uuid: str) -> str:
    return uuid.removeprefix("GPU-")


def _judge(schedule: Schedule, found: Sequence[tuple[int, float, int]]) -> Outcome:
    """Compare what was done with what truly happened."""
    actions = [0] * len(schedule.firings)
    for number, start, count in found:
        near = [
            i
            for i, firing in enumerate(schedule.firings)
            if firing.start - DRIFT_SECONDS / 2 - 3 <= start <= firing.end
        ]
        if not near:
            return Outcome(
                0, len(found), f"episode {number} began at {start:.0f}, when nothing fired"
            )
        actions[near[-1]] += count
    outcome = Outcome(sum(actions), len(found))
    if any(count > 1 for count in actions):
        return Outcome(outcome.actions, outcome.episodes, f"acted {actions} times on the firings")
    if schedule.told_plainly and any(count == 0 for count in actions):
        return Outcome(outcome.actions, outcome.episodes, f"acted {actions} times: one was missed")
    return outcome


def run(first: int, count: int) -> Iterator[tuple[int, Outcome]]:
    """Play the schedules of `count` seeds from `first` on."""
    for begin in range(first, first + count, _SCHEDULES_A_BENCH):
        with tempfile.TemporaryDirectory(prefix="schedules-") as folder:
            player = Player(Path(folder))
            try:
                for seed in range(begin, min(begin + _SCHEDULES_A_BENCH, first + count)):
                    yield seed, player.play(draw(seed))
            finally:
                player.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when a schedule broke the promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.remediator.schedules")
    parser.add_argument("--count", type=int, default=10_000, help="schedules (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the first one's seed (%(default)s)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    actions = broken = 0
    for seed, outcome in run(options.seed, options.count):
        actions += outcome.actions
        if outcome.problem:
            broken += 1
            print(f"seed {seed}: {outcome.problem}", flush=True)
    seconds = time.monotonic() - began
    print(f"{options.count} schedules, {actions} actions, {broken} broken, {seconds:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
