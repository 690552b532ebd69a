"""What a scrape costs, beside nvitop-exporter on the same stand-in driver.

8 GPUs with 64 processes each by default, each exporter as it is installed, scraped every 2 s. They take
turns, so that neither disturbs the other and a change of the machine's load meets both. The driver's
calls cost microseconds: this is the cost of the software alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import machine, process_tree
from benchmarks.command import add_count, run
from benchmarks.crowd import Crowd
from benchmarks.exporters import OURS, PEER, Exporter, ExporterError, Running
from benchmarks.figures import percentile, table
from tests.nvml_standin import Driver, DriverProcess, StandinError

_PERIOD_SECONDS = 2.0
_WARM_UP_SECONDS = 5.0
_MIB = 1024**2
_PROCESS_BYTES = 500 * _MIB
# The goals for time: at most this share of the peer's figure.
_TENTH = 0.1


@dataclass
class Record:
    """What was measured of one exporter, over all of its turns."""

    seconds: list[float] = field(default_factory=list)
    wire_bytes: int = 0
    page_bytes: int = 0
    series: int = 0
    cpu_seconds: float = 0.0
    measured_seconds: float = 0.0
    rss_bytes: int = 0
    pss_bytes: int = 0

    @property
    def cpu_a_minute(self) -> float:
        """CPU seconds of the whole process tree a minute."""
        return 60 * self.cpu_seconds / self.measured_seconds


class World:
    """The cards and their processes, and how they change: a page that never changes proves little."""

    def __init__(self, folder: Path, gpus: int, pids: Sequence[int]) -> None:
        self.driver = Driver(folder, gpus=gpus)
        each = len(pids) // gpus
        for gpu in range(gpus):
            own = pids[gpu * each : (gpu + 1) * each]
            self.driver.set_processes(
                gpu, [DriverProcess(pid, _PROCESS_BYTES, sm_utilization=1) for pid in own]
            )
        self._gpus = gpus

    def move(self) -> None:
        """Lets every card read a little different from before."""
        for gpu in range(self._gpus):
            self.driver.set(
                gpu,
                temperature=random.randint(55, 75),
                memory_temperature=random.randint(60, 80),
                utilization=random.randint(60, 98),
                memory_utilization=random.randint(20, 60),
                power_mw=random.randint(200_000, 390_000),
                clock_sm=random.randrange(1200, 1411, 15),
                clock_graphics=random.randrange(1200, 1411, 15),
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 and one message when something could not be measured."""
    options = _parser().parse_args(arguments)
    records = {OURS.name: Record(), PEER.name: Record()}

    def measure() -> bool:
        with (
            tempfile.TemporaryDirectory(prefix="gpu-scrape-") as folder,
            Crowd(options.gpus * options.processes) as crowd,
        ):
            world = World(Path(folder) / "driver", options.gpus, crowd.pids)
            for turn in range(1, options.turns + 1):
                for exporter in (OURS, PEER):
                    own = Path(folder) / f"{exporter.name}-{turn}"
                    own.mkdir()
                    take_turn(
                        exporter,
                        records[exporter.name],
                        world,
                        own,
                        len(crowd.pids),
                        options.seconds,
                    )
                    print(f"turn {turn} of {exporter.name} done; {machine.load()}", flush=True)
        bare = process_tree.bare_interpreter()
        print(f"\n{_report(records[OURS.name], records[PEER.name], bare)}")
        return True

    return run(measure, ExporterError, StandinError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scrape", description=__doc__)
    add_count(parser, "--turns", 3, "how often each exporter is started and measured", most=100)
    add_count(parser, "--seconds", 80, "how long each turn is measured")
    add_count(parser, "--gpus", 8, "cards", most=64)
    add_count(parser, "--processes", 64, "processes a card", most=128)
    return parser


def take_turn(
    exporter: Exporter, record: Record, world: World, folder: Path, processes: int, seconds: int
) -> None:
    """Starts an exporter, scrapes it for so long, stops it, and adds what was measured to the record.

    Raises:
        ExporterError: It does not do what it was started for.
    """
    with Running(exporter, world.driver.env(), folder) as running:
        running.await_processes(processes)
        for _ in _scrape_times(_WARM_UP_SECONDS, world):
            running.scrape()
        cpu, started = process_tree.cpu_seconds(running.pid), time.monotonic()
        for _ in _scrape_times(seconds, world):
            scrape = running.scrape()
            record.seconds.append(scrape.seconds)
        record.cpu_seconds += process_tree.cpu_seconds(running.pid) - cpu
        record.measured_seconds += time.monotonic() - started
        page = scrape.page
        record.wire_bytes, record.page_bytes = len(scrape.wire), len(page.encode())
        record.series = sum(not line.startswith("#") for line in page.splitlines())
        used = process_tree.memory(running.pid)
        record.rss_bytes = max(record.rss_bytes, used.rss)
        record.pss_bytes = max(record.pss_bytes, used.pss)


def _scrape_times(seconds: float, world: World) -> Iterator[None]:
    """Yields once a period, at a random moment of it; moves the world every second meanwhile."""
    started = time.monotonic()
    for period in range(max(1, round(seconds / _PERIOD_SECONDS))):
        begins = started + period * _PERIOD_SECONDS
        # A fixed phase to the exporter's own loop would meet always, or never, its busy moment.
        moment = random.uniform(0.05, _PERIOD_SECONDS - 0.05)
        moves = [0.0, 1.0]
        for at in sorted([*moves, moment]):
            time.sleep(max(0.0, begins + at - time.monotonic()))
            if at == moment:
                yield
            else:
                world.move()
    time.sleep(max(0.0, started + seconds - time.monotonic()))


def _report(ours: Record, peer: Record, bare: process_tree.Memory) -> str:
    def row(
        what: str, mine: float, theirs: float, form: str, most: float | None
    ) -> tuple[str, ...]:
        goal = "-" if most is None else f"{most:{form}}: {'met' if mine <= most else 'MISSED'}"
        return (what, f"{mine:{form}}", f"{theirs:{form}}", f"{mine / theirs:.3f}", goal)

    def latency(percent: int, share: float | None) -> tuple[str, ...]:
        mine, theirs = (1000 * percentile(one.seconds, percent) for one in (ours, peer))
        return row(f"scrape p{percent}, ms", mine, theirs, ".1f", share and theirs * share)

    def mebibytes(what: str, mine: int, theirs: int, most: int | None) -> tuple[str, ...]:
        return row(what, mine / _MIB, theirs / _MIB, ".1f", most and most / _MIB)

    cpu = ours.cpu_a_minute, peer.cpu_a_minute
    rows = [
        *(latency(50, _TENTH), latency(95, None), latency(99, _TENTH)),
        row("scrapes", len(ours.seconds), len(peer.seconds), "d", None),
        row("series", ours.series, peer.series, "d", None),
        row("page, bytes", ours.page_bytes, peer.page_bytes, "d", None),
        row("over the wire, bytes", ours.wire_bytes, peer.wire_bytes, "d", None),
        row("CPU of the tree, s a minute", *cpu, ".2f", peer.cpu_a_minute * _TENTH),
        mebibytes(
            "PSS of the tree, MiB", ours.pss_bytes, peer.pss_bytes, peer.pss_bytes + bare.pss
        ),
        mebibytes("RSS of the tree, MiB", ours.rss_bytes, peer.rss_bytes, None),
    ]
    return (
        f"{table(('', OURS.name, PEER.name, 'ratio', 'goal (at most)'), rows)}\n\n"
        f"A bare Python interpreter: PSS {bare.pss / _MIB:.1f} MiB, RSS {bare.rss / _MIB:.1f} MiB."
    )


if __name__ == "__main__":
    sys.exit(main())
