"""Every NVML function that the exporter calls, hung once and failing once.

Which functions these are is asked of a whole pass, so that one that is added is here by itself. Those that
a card's thread calls are wrong side by side, each on a card of its own of one service; those that open the
driver take turns in a few services.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import pytest

from tests.exporter.fault_bench import FIRST_CODE, FaultBench
from tests.exporter.nvml_calls import NOT_INJECTABLE, Called, called
from tests.waiting import poll

LANES = 8
# The first only leaves out the utilisation of processes, whose list is what can fail; the others let go of
# what is asked for anew.
UNCOUNTED = {"nvmlDeviceGetProcessUtilization", "nvmlShutdown", "nvmlEventSetFree"}
# The goal at the intervals that are shipped, which are five times those of a bench.
STALE_SECONDS = 3.0


@pytest.fixture(scope="module")
def functions(tmp_path_factory) -> tuple[Called, ...]:
    return tuple(
        one for one in called(tmp_path_factory.mktemp("pass")) if one.function not in NOT_INJECTABLE
    )


@pytest.fixture
def benches(tmp_path):
    made: list[FaultBench] = []

    def make(gpus: int) -> FaultBench:
        bench = FaultBench(tmp_path / str(len(made)), gpus)
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.stop()  # again, where a lane has done it already


def test_each_function_of_a_pass_is_in_one_of_the_tests(functions) -> None:
    waiting = {one.function for one in functions if one.waits}
    missing = [
        one.function
        for one in functions
        if not (one.of_card or one.opens or one.function in waiting)
    ]
    assert not missing, "called by a thread that no test knows"
    assert waiting == {"nvmlEventSetWait"}
    assert sum(one.of_card for one in functions) > 10
    assert {
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetMigDeviceHandleByIndex",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetSamples",
    } <= {one.function for one in functions}
    assert sum(one.opens for one in functions) > 10


def test_each_reading_may_hang_or_fail_on_one_card(functions, benches) -> None:
    readings = [one.function for one in functions if one.of_card]
    sick, well = range(len(readings)), (len(readings), len(readings) + 1)
    bench = benches(len(readings) + len(well))
    driver = bench.driver
    bench.service.start()
    poll(lambda: bench.well(*sick, *well), "all cards are read")

    for card, function in zip(sick, readings, strict=True):
        driver.hang(function, gpu=card)
    driver.hang("nvmlEventSetWait")
    poll(
        lambda: bench.timed_out(*sick),
        lambda: [readings[card] for card in sick if not bench.timed_out(card)],
    )
    poll(lambda: bench.well(*well), "the others are fresh beside so many hung calls")
    page = bench.service.page.render()[0].decode()
    assert page.count('reason="timeout"') >= len(readings)
    poll(lambda: bench.service.store.snapshot().worker.running_seconds > 1, "a call is going on")
    driver.clear()
    poll(lambda: bench.well(*sick, *well), "all cards are back when the calls come back")
    assert bench.service.store.snapshot().worker.restarts == 0

    def uncounted() -> list[str]:
        counted = bench.errors()
        found = (function for function, word in codes.items() if word not in counted)
        return [function for function in found if function not in UNCOUNTED]

    codes = {function: f"nvml_{FIRST_CODE + card}" for card, function in enumerate(readings)}
    for card, function in zip(sick, readings, strict=True):
        driver.fail(function, gpu=card, error=FIRST_CODE + card)
    poll(lambda: not uncounted(), uncounted)
    assert bench.well(*well)
    poll(lambda: all(bench.views()[card].up for card in sick), "one error takes no card down")
    driver.clear()
    poll(lambda: bench.well(*sick, *well), "every reading is back")


def test_each_call_that_opens_the_driver_may_hang_or_fail(functions, benches) -> None:
    opening = [one for one in functions if one.opens]
    lanes = [Lane(benches(3), opening[first::LANES]) for first in range(LANES)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    problems = [problem for lane in lanes for problem in lane.problems]
    assert not problems, "\n".join(problems)


class Lane(threading.Thread):
    """One service whose opening calls go wrong in turn; card 1 comes and goes so that it opens again."""

    def __init__(self, bench: FaultBench, calls: Iterable[Called]) -> None:
        super().__init__()
        self.problems: list[str] = []
        self._bench = bench
        self._calls = tuple(calls)

    def run(self) -> None:
        self._bench.service.start()
        for code, one in enumerate(self._calls, FIRST_CODE):
            try:
                self._await_well(f"all cards are read before {one.function}")
                self._info = self._bench.views()[0].info
                self._hang(one)
                self._await_well("all cards are back after it hung")
                self._fail(one, code)
                self._await_well("all cards are back after it failed")
                assert self._bench.views()[0].info == self._info
            except AssertionError as error:
                self.problems.append(f"{one.function}: {error}")
                self._bench.driver.clear()
        self._bench.stop()

    def _await_well(self, what: str) -> None:
        poll(lambda: self._bench.well(0, 1, 2), what)

    def _hang(self, one: Called) -> None:
        self._bench.driver.hang(one.function, gpu=0 if one.device else None)
        self._bench.driver.lose(1)
        # A second worker opens the driver: whatever hangs there, cards that are read are read on. Some calls
        # that open a card are made again by the thread that reads it.
        others = (2,) if one.device else (0, 2)
        poll(lambda: self._seen_beside(others), "it is seen")
        shown = time.monotonic()
        poll(lambda: self._read_since(shown, others), "the others are read while it hangs")
        self._bench.driver.clear()

    def _seen_beside(self, others: tuple[int, ...]) -> bool:
        stale = self._bench.stale(others, STALE_SECONDS)
        assert not stale, f"cards {stale} are not read"
        worker = self._bench.service.store.snapshot().worker
        return worker.running_seconds > 1 or worker.abandoned > 0

    def _read_since(self, moment: float, others: tuple[int, ...]) -> bool:
        now, views = time.monotonic(), self._bench.views()
        ages = [views[index].age_seconds for index in others if views[index].up]
        return len(ages) == len(others) and all(now - age > moment for age in ages)

    def _fail(self, one: Called, code: int) -> None:
        opened, unopened = self._opened(), self._unopened()
        self._bench.driver.fail(one.function, gpu=0 if one.device else None, error=code)
        self._bench.driver.lose(1)
        poll(lambda: self._shown(one, code, opened, unopened), "it is shown")
        self._bench.driver.clear()

    def _shown(self, one: Called, code: int, opened: int, unopened: int) -> bool:
        """With its code; a driver or a card that does not open at all by its reason; and all are read on."""
        views = self._bench.views()
        assert views[0].up
        assert views[2].up
        return (
            f"nvml_{code}" in self._bench.errors()
            or self._unopened() > unopened
            or (one.function in UNCOUNTED and self._opened() > opened + 1)
        )

    def _opened(self) -> int:
        """How often the driver was opened while card 1 was lost."""
        return self._bench.service.store.snapshot().errors.get(("enumeration", "lost"), 0)

    def _unopened(self) -> int:
        """How often it, or a card, could not be opened, for a reason that has no name."""
        return self._bench.service.store.snapshot().errors.get(("enumeration", "unknown"), 0)
