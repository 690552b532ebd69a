"""Seconds from a fault of a card to the act, through the whole product.

Real Prometheus and Alertmanager, the shipped rules and configuration, the exporter and the remediator
through the real NVML binding on the stand-in driver. The temperature jumps, so that no physics blurs
the figure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import add_count, run
from benchmarks.faults import FAULTS, Fault
from benchmarks.figures import Spread, table
from benchmarks.incident import SHARES, Timeline, measure
from deploy.local.binaries import ToolMissing
from deploy.local.errors import StackError
from deploy.local.profile import SHIPPED, Intervals
from tests.nvml_standin import StandinError

COMMON = Intervals("common 15 s", {"scrape_interval": "15s", "evaluation_interval": "15s"}, {}, {})
_LIMIT_SECONDS = 120.0


@dataclass(frozen=True)
class Result:
    """The runs of one fault with one set of intervals."""

    intervals: Intervals
    fault: Fault
    timelines: tuple[Timeline, ...]

    @property
    def total(self) -> Spread:
        """Seconds from the fault to the act."""
        return Spread.of([timeline.acted for timeline in self.timelines])

    @property
    def goal(self) -> str:
        """The goal, and whether the median meets it; goals are for the shipped intervals."""
        if self.intervals is not SHIPPED:
            return "-"
        met = self.total.median <= self.fault.goal_seconds
        return f"{self.fault.goal_seconds:g}: {'met' if met else 'MISSED'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 and one message when a run could not be measured."""
    options = _parser().parse_args(arguments)
    faults = [fault for fault in FAULTS if fault.name in (options.fault or _names())]

    def measured() -> bool:
        results = [
            _result(intervals, fault, runs)
            for intervals, runs in ((SHIPPED, options.runs), (COMMON, options.common_runs))
            for fault in faults
            if runs
        ]
        print(f"\nSeconds from the fault to the act:\n\n{_totals(results)}")
        print(f"\nThe median of each share of them, in seconds:\n\n{_shares(results)}")
        return True

    return run(measured, StackError, ToolMissing, StandinError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reaction", description=__doc__)
    add_count(parser, "--runs", 7, "with shipped intervals; 0 for none", least=0, most=1000)
    common = "with a 15 s scrape and evaluation interval; 0 for none"
    add_count(parser, "--common-runs", 3, common, least=0, most=1000)
    parser.add_argument("--fault", action="append", choices=_names(), help="only this; repeatable")
    return parser


def _names() -> list[str]:
    return [fault.name for fault in FAULTS]


def _result(intervals: Intervals, fault: Fault, runs: int) -> Result:
    timelines = []
    for number in range(1, runs + 1):
        with tempfile.TemporaryDirectory(prefix="gpu-reaction-") as folder:
            timeline = measure(fault, intervals, Path(folder), _LIMIT_SECONDS)
        timelines.append(timeline)
        shares = ", ".join(
            f"{name} {seconds:.2f}" for name, seconds in zip(SHARES, timeline.shares(), strict=True)
        )
        print(
            f"{intervals.name}, {fault.name} {number}/{runs}: {timeline.acted:.2f} s ({shares})",
            flush=True,
        )
    return Result(intervals, fault, tuple(timelines))


def _totals(results: Sequence[Result]) -> str:
    head = ("intervals", "fault", "the act", "runs", "min", "median", "max", "goal for the median")
    rows = [
        (
            result.intervals.name,
            f"{result.fault.name}, {result.fault.celsius} °C",
            result.fault.act,
            str(len(result.timelines)),
            *(f"{value:.1f}" for value in vars(result.total).values()),
            result.goal,
        )
        for result in results
    ]
    return table(head, rows)


def _shares(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        columns = zip(*(timeline.shares() for timeline in result.timelines), strict=True)
        medians = [f"{Spread.of(column).median:.2f}" for column in columns]
        rows.append((result.intervals.name, result.fault.name, *medians))
    return table(("intervals", "fault", *SHARES), rows)


if __name__ == "__main__":
    sys.exit(main())
