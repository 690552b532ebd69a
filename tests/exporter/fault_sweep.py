"""Every NVML function x every answer that is an error, or none at all x when x on which card.

    python -m tests.exporter.fault_sweep                # all: an hour on two cores
    python -m tests.exporter.fault_sweep --seconds 60 --seed 7

It is bounded by `--seconds`; cases come in an order that the seed decides. After each fault it holds that

* what is shown of any card is what the driver says, or is absent: every reading is known here;
* the other cards are read on, unless the driver as a whole has said that it is gone, or was never opened;
* a call that does not come back is a timeout, and the exporter can be stopped meanwhile;
* nothing is a bug of ours, and when the fault ends everything is back by itself.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from exporter.backends import _nvml_errors as codes
from exporter.snapshot import GpuView
from tests.exporter.fault_bench import FaultBench
from tests.exporter.nvml_calls import NOT_INJECTABLE, SUMMED_ENERGY, Called, called
from tests.waiting import poll

GPUS = 3
HANG = 0
ERRORS = (*range(1, 31), codes.UNKNOWN)
PHASES = ("start", "middle", "shutdown")
# What it says about one card or one call, it may say of all.
_SETTLE_SECONDS = 1.0
_STOP_SECONDS = 15.0
# The goal at the intervals that are shipped, which are five times those of a bench.
_STALE_SECONDS = 3.0
# What was only late is back by then.
_GAP_SECONDS = 2.0
_ENERGY = "nvmlDeviceGetTotalEnergyConsumption"


@dataclass(frozen=True)
class Case:
    """One fault: `answer` is an error code, or `HANG`; of a card, or of all where there is none."""

    call: Called
    answer: int
    phase: str
    card: int | None

    def __str__(self) -> str:
        what = "hangs" if self.answer == HANG else f"answers {self.answer}"
        where = "" if self.card is None else f" on card {self.card}"
        return f"{self.call.function} {what}{where}, {self.phase}"

    @property
    def blinds_all(self) -> bool:
        """The driver is gone, or it was never open: no card can be read."""
        opening = self.call.blinds and (self.answer == HANG or self.call.opens_driver)
        if opening and self.phase == "start":
            return True
        return self.answer in codes.BACKEND_LOST

    @property
    def for_good(self) -> bool:
        """The driver says that it cannot do this at all: it is not asked again while it is open."""
        return self.answer in {codes.NOT_SUPPORTED, *codes.TRY_ANOTHER_CALL}

    @property
    def hides_processes(self) -> bool:
        """The driver says that it has no such list, or that it is empty: the other one is all there is."""
        empty = self.for_good or self.answer in codes.EMPTY
        return empty and self.call.function.endswith("RunningProcesses")

    @property
    def hides_energy(self) -> bool:
        """The driver says that it has no such counter: it is summed up from zero then."""
        return self.for_good and self.call.function == _ENERGY

    @property
    def happens(self) -> bool:
        """The card without such a counter is asked for it once, when it is opened."""
        asked = self.phase != "middle" or self.card != SUMMED_ENERGY
        return asked or self.call.function != _ENERGY


class Lane(threading.Thread):
    """Takes cases until none is left; faults in the middle share a service while it is well."""

    def __init__(self, folder: Path, cases: queue.SimpleQueue[Case], deadline: float) -> None:
        super().__init__()
        self.done = 0
        self.problems: list[str] = []
        self.gaps: list[str] = []
        self._folder = folder
        self._cases = cases
        self._deadline = deadline
        self._made = itertools.count()
        self._shared: FaultBench | None = None
        self._truth: dict[int, GpuView] = {}

    def run(self) -> None:
        """Run cases; a problem ends a case, never the lane."""
        while time.monotonic() < self._deadline:
            try:
                case = self._cases.get_nowait()
            except queue.Empty:
                break
            try:
                _PHASES[case.phase](self, case)
            except Exception as error:  # noqa: BLE001  told with the case
                self.problems.append(f"{case}: {type(error).__name__}: {error}")
                self._drop()
            self.done += 1
        self._drop()

    def start_with(self, case: Case) -> None:
        """The fault is there before the exporter is."""
        self._middle()
        bench = self._bench()
        try:
            _inject(bench, case)
            bench.service.start()
            self._look(bench, case)
            bench.driver.clear()
            self._await_truth(bench, case)
        finally:
            _stop(bench)

    def meet(self, case: Case) -> None:
        """The fault comes while all are well; what opens the driver has to open it again."""
        bench = self._middle()
        _inject(bench, case)
        if not case.call.of_card:
            bench.driver.lose(GPUS - 1 if case.card == 0 else 0)
        self._look(bench, case)
        bench.driver.clear()
        self._await_truth(bench, case)
        if case.for_good:
            self._drop()

    def stop_in(self, case: Case) -> None:
        """The exporter is stopped while the fault is there."""
        bench = self._bench()
        try:
            bench.service.start()
            poll(lambda: bench.well(*range(GPUS)), "all cards are read")
            _inject(bench, case)
        finally:
            _stop(bench, keep_fault=True)

    def _middle(self) -> FaultBench:
        if self._shared is None:
            self._shared = self._bench()
            self._shared.service.start()
            poll(lambda: self._shared.well(*range(GPUS)), "all cards are read")
            self._truth = self._shared.views()
        return self._shared

    def _bench(self) -> FaultBench:
        return FaultBench(self._folder / str(next(self._made)), GPUS)

    def _drop(self) -> None:
        if self._shared is not None:
            bench, self._shared = self._shared, None
            _stop(bench)

    def _look(self, bench: FaultBench, case: Case) -> None:
        others = set(range(GPUS)) - ({case.card} if case.card is not None else set())
        if case.phase == "middle" and not case.call.of_card:
            others -= {GPUS - 1 if case.card == 0 else 0}
        settled = time.monotonic() + _SETTLE_SECONDS
        fresh = () if case.blinds_all else tuple(others)

        def shown() -> bool:
            stale = bench.stale(fresh, _STALE_SECONDS)
            assert not stale, f"cards {stale} are not read"
            return _shown(bench, case)

        poll(lambda: shown() or time.monotonic() >= settled, f"{case} shows")
        if case.answer == HANG:
            poll(shown, "a call that hangs is a timeout")
        for _ in range(3):
            self._judge(bench, case)
            time.sleep(0.05)
        if not case.blinds_all:
            watched = case.card is not None or not case.call.of_events
            poll(
                lambda: bench.well(*others, watched=watched), f"cards {sorted(others)} are read on"
            )

    def _judge(self, bench: FaultBench, case: Case) -> None:
        lies = [] if case.hides_processes else self._lies(bench, case)
        assert not lies, f"not what the driver says: {lies}"
        bugs = [where for where, word in bench.service.store.snapshot().errors if word == "bug"]
        assert not bugs, f"bugs in {bugs}"
        page = bench.service.page.render()[0].decode()
        values = [line.rpartition(" ")[2] for line in page.splitlines() if line.startswith("gpu_")]
        assert not {"NaN", "+Inf", "-Inf"} & set(values)

    def _lies(self, bench: FaultBench, case: Case) -> list[str]:
        lies = []
        summed = {SUMMED_ENERGY, case.card if case.hides_energy else None}
        for index, view in bench.views().items():
            truth = self._truth.get(index)
            if truth is None:
                continue
            pairs = [(view.sample, truth.sample), (view.health, truth.health)]
            for said, real in pairs:
                moves = {"energy_joules"} if index in summed else set()
                lies += [f"card {index}: {what}" for what in _different(said, real, moves)]
            if view.processes is not None and len(view.processes) != len(truth.processes or ()):
                lies.append(f"card {index}: processes")
        return lies

    def _await_truth(self, bench: FaultBench, case: Case) -> None:
        poll(lambda: all(one.up for one in bench.views().values()), lambda: self._untrue(bench))
        if case.for_good:
            try:
                poll(lambda: self._is_true(bench), "all is back", seconds=_GAP_SECONDS)
            except AssertionError:
                self.gaps.append(str(case))
            return
        poll(lambda: self._is_true(bench), lambda: self._untrue(bench))

    def _is_true(self, bench: FaultBench) -> bool:
        if not bench.well(*range(GPUS)):
            return False
        # A process list of before may be shown until the next look at it.
        views = bench.views()
        return all(
            views[index].info == truth.info
            and len(views[index].processes or ()) == len(truth.processes or ())
            for index, truth in self._truth.items()
        )

    def _untrue(self, bench: FaultBench) -> str:
        views = {index: (one.up, str(one.fault)) for index, one in bench.views().items()}
        return f"all is back: {views}, {bench.service.store.snapshot().backend}"


_PHASES: dict[str, Callable[[Lane, Case], None]] = {
    "start": Lane.start_with,
    "middle": Lane.meet,
    "shutdown": Lane.stop_in,
}


def _different(said: object, real: object, moves: Collection[str] = ()) -> list[str]:
    """What is told otherwise than it is; absent is never a lie. All stands still here but what `moves`."""
    if said is None or real is None:
        return []
    pairs = ((f.name, getattr(said, f.name), getattr(real, f.name)) for f in fields(said))  # type: ignore[arg-type]
    return [
        f"{name}: {a!r} is not {b!r}" for name, a, b in pairs if name not in moves and _untrue(a, b)
    ]


def _untrue(said: object, real: object) -> bool:
    if isinstance(said, dict) and isinstance(real, dict):
        # ECC errors by memory, or their sum: both are what the driver says.
        return any(
            _untrue(value, real[key]) for key, value in said.items() if key in real and key != "all"
        )
    if isinstance(said, tuple) and isinstance(real, tuple) and all(map(is_dataclass, said)):
        # Links and MIG devices: each by what it begins with; one that could not be read is not there.
        known = {_key(one): one for one in real}
        return any(_key(one) not in known or _different(one, known[_key(one)]) for one in said)
    # A word that is empty is one that is not known.
    return said not in (None, "") and real is not None and said != real


def _key(part: object) -> object:
    return getattr(part, fields(part)[0].name)  # type: ignore[arg-type]


def _inject(bench: FaultBench, case: Case) -> None:
    if case.answer == HANG:
        bench.driver.hang(case.call.function, gpu=case.card)
    else:
        bench.driver.fail(case.call.function, gpu=case.card, error=case.answer)


def _shown(bench: FaultBench, case: Case) -> bool:
    snapshot = bench.service.store.snapshot()
    if case.answer == HANG:
        views = {view.info.index: view for view in snapshot.gpus}
        down = views and all(not view.up for view in views.values())
        sick = case.card is not None and case.card in views and not views[case.card].up
        stuck = snapshot.worker.running_seconds > 0.5 or snapshot.worker.abandoned > 0
        # What opens the driver again is a worker beside the one that reads the cards.
        again = case.phase == "middle" and not case.call.of_card
        beside = not views or again or (case.card is None and not case.call.blinds)
        return bool(sick or down or (stuck and beside))
    return snapshot.backend.up is False or codes.word(case.answer) in bench.errors()


def _stop(bench: FaultBench, *, keep_fault: bool = False) -> None:
    worker = bench.service._supervisor._worker
    if not keep_fault:
        bench.driver.clear()
    started = time.monotonic()
    bench.service.stop()
    took = time.monotonic() - started
    bench.driver.clear()
    assert took < _STOP_SECONDS, f"stopping took {took:.1f} s"
    if worker is not None:
        poll(lambda: _ended(worker.pid), f"worker {worker.pid} ends when its call comes back")


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def product(calls: Sequence[Called]) -> list[Case]:
    """All cases."""
    cases = [
        Case(call, answer, phase, card)
        for call in calls
        for answer in (HANG, *ERRORS)
        for phase in PHASES
        for card in (range(GPUS) if call.device else (None,))
    ]
    return [case for case in cases if case.happens]


@dataclass(frozen=True)
class Outcome:
    """What a sweep found.

    Attributes:
        gaps: what stayed absent until the driver is opened again, where nothing else was wrong.
    """

    done: int
    all: int
    problems: list[str]
    gaps: list[str]


def sweep(folder: Path, seed: int, seconds: float, lanes: int) -> Outcome:
    """Run what fits into the time."""
    calls = [one for one in called(folder / "pass") if one.function not in NOT_INJECTABLE]
    cases = product(calls)
    random.Random(seed).shuffle(cases)
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    deadline = time.monotonic() + seconds
    running = [Lane(folder / f"lane-{number}", waiting, deadline) for number in range(lanes)]
    for lane in running:
        lane.start()
    for lane in running:
        lane.join()
    return Outcome(
        sum(lane.done for lane in running),
        len(cases),
        sorted(problem for lane in running for problem in lane.problems),
        sorted(gap for lane in running for gap in lane.gaps),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 when something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.exporter.fault_sweep")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the most it may take")
    parser.add_argument("--lanes", type=int, default=3 * (os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fault-sweep-") as folder:
        outcome = sweep(Path(folder), options.seed, options.seconds, options.lanes)
    for problem in outcome.problems:
        print(problem)
    if outcome.gaps:
        print(f"left out until the driver is opened again, in {len(outcome.gaps)} cases, such as:")
        print("".join(f"    {gap}\n" for gap in outcome.gaps[:10]), end="")
    found = f"{len(outcome.problems)} problems"
    print(f"{outcome.done} of {outcome.all} cases, seed {options.seed}: {found}")
    return 1 if outcome.problems or not outcome.done else 0


if __name__ == "__main__":
    sys.exit(main())
