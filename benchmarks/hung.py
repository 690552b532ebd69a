"""What the page is worth while driver calls hang for ever, at the deadlines that are shipped.

Every NVML function that the exporter calls is hung: which these are is seen in a pass. Those that a card's
own thread calls hang all at once, each on its own card of one exporter. Those that open or close the driver
hang one at a time, each in an exporter of its own, which has to open it again because a card is lost.
Three of these are the driver as a whole: without it nobody can be read, and these are told apart.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import machine
from benchmarks.command import add_count, run
from benchmarks.exporters import OURS, ExporterError, Running
from benchmarks.figures import percentile, table
from deploy.local.waiting import poll
from tests.exporter.nvml_calls import NOT_INJECTABLE, Called, called, furnish
from tests.nvml_standin import Driver, StandinError

_PERIOD_SECONDS = 0.5
_READY_SECONDS = 60.0
_WELL_CARDS = 2
_OPENING_CARDS = 4
_AT_ONCE = 5
# The goals.
_P99_MS, _MAX_MS, _AGE_SECONDS, _VISIBLE_SECONDS = 500.0, 2000.0, 3.0, 15.0
# A call that no card is read by shows as one that has been going on for so long.
_GOING_ON_SECONDS = 3.0
_CALLS = re.compile(
    r"^(gpu_exporter_collect_running_seconds|gpu_exporter_workers_stuck) (\S+)$", re.MULTILINE
)
_SERIES = re.compile(
    r'^(gpu_up|gpu_exporter_last_collect_timestamp_seconds){.*uuid="([^"]+)".*} (\S+)$',
    re.MULTILINE,
)


@dataclass
class Record:
    """What was seen of one exporter, or of several.

    Attributes:
        seconds: Of each scrape.
        ages: The oldest reading of a card that no call hangs about, at each scrape.
        visible: For each hung call the age of the card's last reading when it was first shown as down.
        unseen: Functions whose hang was never shown.
    """

    seconds: list[float] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)
    visible: list[float] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def add(self, other: Record) -> None:
        """Take in what was seen of another one."""
        self.seconds += other.seconds
        self.ages += other.ages
        self.visible += other.visible
        self.unseen += other.unseen


@dataclass(frozen=True)
class _Card:
    up: bool
    read_at: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 and one message when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hung", description=__doc__)
    add_count(parser, "--seconds", 60, "how long each is looked at")
    options = parser.parse_args(arguments)

    def measure() -> bool:
        with tempfile.TemporaryDirectory(prefix="gpu-hung-") as folder:
            print(_report(_measure(Path(folder), options.seconds)))
        return True

    return run(measure, ExporterError, StandinError)


def _measure(folder: Path, seconds: int) -> dict[str, Record]:
    functions = [one for one in called(folder / "pass") if one.function not in NOT_INJECTABLE]
    readings = [one for one in functions if one.of_card]
    opening = [one for one in functions if one.opens and not one.of_card]
    reading = _hang_readings(folder / "readings", readings, seconds)
    print(f"{len(readings)} readings hung side by side; {machine.load()}", flush=True)
    whole = [one for one in opening if one.blinds]
    apart = [one for one in opening if not one.blinds]
    records = {
        "readings, all at once": reading,
        "opening a card, events, versions": _hang_in_turn(folder, apart, seconds),
        "opening or closing the driver": _hang_in_turn(folder, whole, seconds),
    }
    print(f"{len(opening)} calls that open the driver hung; {machine.load()}", flush=True)
    return records


def _hang_in_turn(folder: Path, calls: Sequence[Called], seconds: int) -> Record:
    all_calls = Record()
    for first in range(0, len(calls), _AT_ONCE):
        for record in _side_by_side(folder, calls[first : first + _AT_ONCE], seconds // 2):
            all_calls.add(record)
    return all_calls


def _hang_readings(folder: Path, readings: Sequence[Called], seconds: int) -> Record:
    folder.mkdir()
    driver = Driver(folder / "driver", gpus=len(readings) + _WELL_CARDS)
    furnish(driver, len(driver.uuids))
    with Running(OURS, driver.env(), folder) as running:
        _await_all(running, driver)
        for card, one in enumerate(readings):
            driver.hang(one.function, gpu=card)
        driver.hang("nvmlEventSetWait")
        sick = {driver.uuids[card]: one.function for card, one in enumerate(readings)}
        try:
            return _watch(running, sick, set(driver.uuids) - sick.keys(), seconds)
        finally:
            driver.clear()


def _side_by_side(folder: Path, calls: Sequence[Called], seconds: int) -> list[Record]:
    records: list[Record] = []

    def one_of(call: Called) -> None:
        records.append(_hang_opening(folder / call.function, call, seconds))

    threads = [threading.Thread(target=one_of, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(records) < len(calls):
        raise ExporterError("an exporter with a hung driver could not be measured: see above")
    return records


def _hang_opening(folder: Path, call: Called, seconds: int) -> Record:
    folder.mkdir()
    driver = Driver(folder / "driver", gpus=_OPENING_CARDS)
    furnish(driver, _OPENING_CARDS)
    with Running(OURS, driver.env(), folder) as running:
        _await_all(running, driver)
        driver.hang(call.function, gpu=0 if call.device else None)
        driver.lose(_OPENING_CARDS - 1)
        # Some calls that open a card are made again by the thread that reads it.
        others = set(driver.uuids[1 if call.device else 0 : -1])
        try:
            return _watch(running, {"": call.function}, others, seconds)
        finally:
            driver.clear()


def _await_all(running: Running, driver: Driver) -> None:
    def all_up() -> bool:
        try:
            cards = _cards(running.scrape().page)
        except ExporterError:
            return False
        return len(cards) == len(driver.uuids) and all(one.up for one in cards.values())

    if not poll(all_up, timeout=_READY_SECONDS, interval=0.5):
        raise ExporterError("the exporter does not show every card")


def _watch(running: Running, sick: dict[str, str], others: set[str], seconds: int) -> Record:
    record, waiting = Record(), dict(sick)
    began = time.monotonic()
    end = began + seconds
    while time.monotonic() < end:
        scrape = running.scrape()
        now = time.time()
        record.seconds.append(scrape.seconds)
        cards = _cards(scrape.page)
        if ages := [now - cards[uuid].read_at for uuid in others]:
            record.ages.append(max(ages))
        for uuid in [uuid for uuid in waiting if uuid and not cards[uuid].up]:
            del waiting[uuid]
            record.visible.append(now - cards[uuid].read_at)
        if "" in waiting and _is_told(scrape.page):
            del waiting[""]
            record.visible.append(time.monotonic() - began)
        time.sleep(random.uniform(0.5, 1.5) * _PERIOD_SECONDS)
    record.unseen = sorted(waiting.values())
    return record


def _is_told(page: str) -> bool:
    """Whether the page says that a call does not come back, of whatever worker."""
    found = dict(_CALLS.findall(page))
    return (
        float(found["gpu_exporter_collect_running_seconds"]) >= _GOING_ON_SECONDS
        or float(found["gpu_exporter_workers_stuck"]) > 0
    )


def _cards(page: str) -> dict[str, _Card]:
    found: dict[str, dict[str, float]] = {}
    for name, uuid, value in _SERIES.findall(page):
        found.setdefault(uuid, {})[name] = float(value)
    return {
        uuid: _Card(bool(one["gpu_up"]), one["gpu_exporter_last_collect_timestamp_seconds"])
        for uuid, one in found.items()
        if len(one) == len(("up", "read_at"))
    }


def _report(records: dict[str, Record]) -> str:
    rows = [_row(what, record) for what, record in records.items()]
    unseen = sorted({one for record in records.values() for one in record.unseen})
    head = (
        *(
            "hung",
            "scrapes",
            "p50, ms",
            f"p99, ms (goal {_P99_MS:g})",
            f"most, ms (goal {_MAX_MS:g})",
        ),
        f"oldest other GPU, s (goal {_AGE_SECONDS:g})",
        f"shown after, s (goal {_VISIBLE_SECONDS:g})",
    )
    said = f"\n\nNever shown: {', '.join(unseen)}." if unseen else ""
    return f"\n{table(head, rows)}{said}"


def _row(what: str, record: Record) -> tuple[str, ...]:
    milliseconds = [1000 * one for one in record.seconds]

    def judged(value: float, goal: float, form: str) -> str:
        return f"{value:{form}}: {'met' if value <= goal else 'MISSED'}"

    return (
        what,
        str(len(milliseconds)),
        f"{percentile(milliseconds, 50):.1f}",
        judged(percentile(milliseconds, 99), _P99_MS, ".1f"),
        judged(max(milliseconds), _MAX_MS, ".1f"),
        judged(max(record.ages), _AGE_SECONDS, ".1f"),
        judged(max(record.visible), _VISIBLE_SECONDS, ".1f") if record.visible else "-",
    )


if __name__ == "__main__":
    sys.exit(main())
