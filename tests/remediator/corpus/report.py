"""The corpus as the table in docs/reliability.md: `python -m tests.remediator.corpus.report`.

With `--seeds 100 101` the synthetic traces of these seeds instead.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from remediator.store import Store
from tests.remediator.corpus import synthetic, traces
from tests.remediator.corpus.node_days import Epoch
from tests.remediator.corpus.replay import Outcome, Replay, configuration, rules
from tests.remediator.corpus.traces import HEALTHY, Trace
from tests.remediator.corpus.verdicts import wrong

Played = tuple[Trace, Outcome]


def play(chosen: Iterable[Trace]) -> list[Played]:
    """Each trace with what came of it."""
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name), b"k" * 64, Epoch())
        stage = store, configuration(Path(name)), rules()
        played = [(trace, Replay(trace, *stage).run()) for trace in chosen]
        store.close()
    return played


def worst(played: Sequence[Played]) -> float:
    """The longest time until what had to be found was found, in seconds."""
    longest = 0.0
    for trace, outcome in played:
        found = {
            "restart": outcome.restart_at,
            "watched": outcome.named_at,
            "reported": outcome.restart_at or outcome.paged_at,
            "device": outcome.device_at,
            "escalated": outcome.paged_at,
        }[trace.expect]
        longest = max(longest, (found or float("inf")) - (trace.began or 0.0))
    return longest


def row(name: str, played: Sequence[Played], figure: str) -> str:
    """One line of the table."""
    cited = sum(trace.held_out for trace, _ in played)
    failed = sum(wrong(trace, outcome) is not None for trace, outcome in played)
    bound = "" if failed else f"{3 / len(played):.1%}"
    return f"| {name} | {len(played)} | {cited} | {failed} | {bound} | {figure} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    seeds = parser.parse_args().seeds
    others = [trace for seed in seeds for trace in synthetic.traces(seed)]
    played = play(others or traces.every())
    healthy = [one for one in played if one[0].healthy]
    called = sum(outcome.paged_at is not None for _, outcome in healthy)
    print(row("healthy: no restart", healthy, f"a person called in {called}"))
    for label in HEALTHY:
        of_kind = [one for one in healthy if one[0].label == label]
        called = sum(outcome.paged_at is not None for _, outcome in of_kind)
        print(row(f"… `{label}`", of_kind, f"a person called in {called}" if called else ""))
    for expect in ("restart", "watched", "reported", "device", "escalated"):
        found = [one for one in played if one[0].expect == expect]
        print(row(expect, found, f"{worst(found):.0f} s"))


if __name__ == "__main__":
    main()
