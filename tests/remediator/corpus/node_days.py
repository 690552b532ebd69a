"""Healthy, busy days of one machine each: `python -m tests.remediator.corpus.node_days --days 2000`.

Synthetic: no field data. What is counted is restarts, of which there must be none; and calls for a
person, which servers without metrics cause when one request takes minutes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remediator.store import Store
from tests.remediator.corpus.replay import START, Outcome, Replay, configuration, rules
from tests.remediator.corpus.synthetic import MODELS, Model, learned, one, resting, working
from tests.remediator.corpus.traces import Trace

DAY = 86400.0
# Looks that are as the ones before are skipped: below the age at which a track begins anew.
STEADY = 25.0


class Epoch:
    """A clock for a store that nothing is written to."""

    def now(self) -> float:
        """Always the same."""
        return START

    def monotonic(self) -> float:
        """Always the same."""
        return 0.0


def day(number: int, seed: int) -> Trace:
    """One day of one machine."""
    rng = random.Random(f"{seed} day {number}")
    model = rng.choice(MODELS)
    cards = rng.choices((1, 2, 4, 8), (10, 4, 1, 1))[0]
    metrics = rng.random() < 0.75
    phases = []
    left = DAY
    while left > 0:
        for phase in _stretch(model, rng, left / DAY, metrics):
            phase["for"] = min(phase["for"], left)
            left -= phase["for"]
            phases.append(phase)
            if left <= 0:
                break
    return Trace(
        id=f"day-{seed}-{number}",
        label="busy",
        why="a healthy day",
        expect="nothing",
        source=f"synthetic, seed {seed}",
        phases=tuple(phases),
        limit=model.limit,
        cards=cards,
        services=(one(cards=tuple(range(cards)), metrics=metrics),),
        learned=learned(model) if rng.random() < 0.5 else None,
    )


def _stretch(
    model: Model, rng: random.Random, left: float, metrics: bool
) -> Iterator[dict[str, Any]]:
    """What comes next: by day there is more to do than by night."""
    low, high = model.busy
    # Decoding may draw little of what work draws; reading a prompt draws more of it.
    floor = low + (high - low) * rng.uniform(0.0, 0.4)
    night = left < 0.25 or left > 0.9
    kind = rng.choices(
        ("decode", "prompt", "pauses", "night", "odd"),
        (8, 4, 3, 6 if night else 0.5, 0.4),
    )[0]
    if kind == "decode":
        util = rng.choice((1.0, 1.0, 0.97))
        yield working(
            model,
            rng.uniform(120, 2400),
            util=util,
            watts=(floor, high),
            rate=10 ** rng.uniform(0.3, 3.5),
            canary="answered",
            running=rng.randint(1, 64),
        )
    elif kind == "prompt":
        still = min(290.0, rng.lognormvariate(2.3, 1.1))
        watts = (max(floor, 0.45 * model.limit), high)
        yield working(
            model, still, rate=0.0, watts=watts, canary="timed_out", waiting=rng.randint(0, 9)
        )
        yield working(model, rng.uniform(30, 300), watts=(floor, high))
    elif kind == "pauses":
        for _ in range(rng.randint(2, 8)):
            yield working(model, rng.uniform(2, 60), watts=(floor, high))
            yield resting(model, rng.uniform(5, 120))
    elif kind == "night":
        yield resting(model, rng.uniform(300, 3600))
    else:
        yield from _odd(model, rng, metrics)


def _odd(model: Model, rng: random.Random, metrics: bool) -> Iterator[dict[str, Any]]:
    what = rng.choice(("restart", "silent", "cap", "sleep", "queue", "batch", "ghost"))
    if what == "restart":
        up = {"state": "loading", "new_process": True, "rate": 0.0, "running": 0}
        yield working(model, rng.uniform(30, 600)) | up
    elif what == "silent":
        yield working(model, rng.uniform(5, 120), state="silent")
    elif what == "cap":
        half = {"cap": model.limit * 0.7, "watts": (model.busy[0] * 0.6, model.busy[1] * 0.7)}
        yield working(model, rng.uniform(300, 1800)) | half
    elif what == "sleep":
        yield resting(model, rng.uniform(300, 3600), state="sleeping", waiting=rng.randint(0, 3))
    elif what == "queue" and not metrics:
        yield working(model, rng.uniform(60, 900), canary="timed_out")
    elif what == "ghost":
        latched = {"util": 1.0, "watts": (model.idle[1], 1.8 * model.idle[1])}
        yield resting(model, rng.uniform(300, 1800)) | latched
    else:
        tail = {"rate": 0.0, "running": 1, "watts": model.idle}
        yield working(model, rng.uniform(3, 90)) | tail
        yield resting(model, rng.uniform(60, 600))


def main() -> int:
    """Run so many days, or as many as fit into the time; 1 where one led to a restart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first day")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    options = parser.parse_args()
    began, done, restarts = time.monotonic(), 0, 0
    total = Outcome()
    paged = 0
    with tempfile.TemporaryDirectory() as name:
        store, known = Store(Path(name), b"k" * 64, Epoch()), rules()
        config = configuration(Path(name))
        for number in range(options.first, options.first + options.days):
            trace = day(number, options.seed)
            outcome = Replay(trace, store, config, known, STEADY).run()
            done += 1
            total.reads += outcome.reads
            paged += outcome.paged_at is not None
            if outcome.restarted is not None:
                restarts += 1
                print(f"{trace.id}: {outcome.restarted} was restarted at {outcome.restart_at}")
            if time.monotonic() - began > options.seconds:
                break
        store.close()
    spent = time.monotonic() - began
    bound = f"at most {3 / done:.5f}" if not restarts else "no bound"
    print(
        f"node-days {done}, verdicts {total.reads}, restarts {restarts} "
        f"(95 %: {bound} a node-day), days with a call {paged}; {spent:.0f} s"
    )
    return 1 if restarts else 0


if __name__ == "__main__":
    sys.exit(main())
