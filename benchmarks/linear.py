"""What cards and processes cost each: CPU and scrape time from 1 to 16 GPUs and from 0 to 1,024 processes.

The cost is linear when the second half of the way costs as much a step as the first half. That ratio of one
run is the figure, because the load of the machine meets both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.command import add_count, run
from benchmarks.crowd import Crowd
from benchmarks.exporters import OURS, ExporterError
from benchmarks.figures import table
from benchmarks.scrape import Record, World, take_turn
from tests.nvml_standin import StandinError

_GPUS = (1, 4, 8, 16)
_PROCESSES = (0, 256, 512, 1024)
_GPUS_OF_PROCESSES = 8
# More than this for a later step than for an earlier one is not linear.
_MOST_RATIO = 1.5


@dataclass(frozen=True)
class Cost:
    """What one size costs."""

    size: int
    cpu_a_minute: float
    milliseconds: float
    page_bytes: int
    pss_mib: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 and one message when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=__doc__)
    add_count(parser, "--seconds", 30, "how long each is measured")
    options = parser.parse_args(arguments)

    def measure() -> bool:
        with (
            tempfile.TemporaryDirectory(prefix="gpu-linear-") as folder,
            Crowd(max(_PROCESSES)) as crowd,
        ):

            def record(gpus: int, processes: int) -> Record:
                return _measure(Path(folder), gpus, crowd.pids[:processes], options.seconds)

            by_gpus = [_cost(gpus, record(gpus, 0)) for gpus in _GPUS]
            by_processes = [_cost(size, record(_GPUS_OF_PROCESSES, size)) for size in _PROCESSES]
        print(_report("GPUs", by_gpus))
        print(_report(f"processes on {_GPUS_OF_PROCESSES} GPUs", by_processes))
        return True

    return run(measure, ExporterError, StandinError)


def _measure(folder: Path, gpus: int, pids: Sequence[int], seconds: int) -> Record:
    own = Path(tempfile.mkdtemp(dir=folder))
    record = Record()
    take_turn(OURS, record, World(own / "driver", gpus, pids), own, len(pids), seconds)
    print(f"{gpus} GPUs, {len(pids)} processes done; {machine.load()}", flush=True)
    return record


def _cost(size: int, record: Record) -> Cost:
    return Cost(
        size,
        record.cpu_a_minute,
        1000 * statistics.median(record.seconds),
        record.page_bytes,
        record.pss_bytes / 1024**2,
    )


def _report(what: str, costs: Sequence[Cost]) -> str:
    rows = [
        (
            str(one.size),
            f"{one.cpu_a_minute:.2f}",
            f"{one.milliseconds:.1f}",
            str(one.page_bytes),
            f"{one.pss_mib:.1f}",
        )
        for one in costs
    ]
    head = (
        what,
        "CPU of the tree, s a minute",
        "scrape p50, ms",
        "page, bytes",
        "PSS of the tree, MiB",
    )
    return f"\n{table(head, rows)}\n\nSecond half of the way to first, a step: {_ratios(costs)}."


def _ratios(costs: Sequence[Cost]) -> str:
    """Near 1: linear. Below: less than linear. Above `_MOST_RATIO`: more."""
    first, _, middle, last = costs

    def ratio(name: str) -> str:
        def step(a: Cost, b: Cost) -> float:
            return float(getattr(b, name) - getattr(a, name)) / (b.size - a.size)

        early, late = step(first, middle), step(middle, last)
        if early <= 0:
            return "too small to tell"
        found = late / early
        return f"{found:.2f} ({'linear' if found <= _MOST_RATIO else 'MORE THAN LINEAR'})"

    return (
        f"CPU {ratio('cpu_a_minute')}, scrape {ratio('milliseconds')}, page {ratio('page_bytes')}"
    )


if __name__ == "__main__":
    sys.exit(main())
