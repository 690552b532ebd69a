"""What a server's log tells of: counted once, by class, whatever else tells of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from remediator.engine.log_watch import KINDS, LogWatch
from remediator.engine.oom_watch import OutOfMemoryWatch
from remediator.engine.prober import Prober
from remediator.error_signatures import failure_in
from remediator.errors import ManagerError, ServiceError, StorageError
from remediator.managers import LogLine, LogPage
from remediator.oom_events import events_of
from remediator.service_metrics import ServiceCollector
from remediator.signals import create
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.test_error_signatures import TEXTS

NO_MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
ILLEGAL = "RuntimeError: CUDA error: an illegal memory access was encountered"
ALERT = "LLMServiceOutOfMemory"
Make = Callable[..., Bench]


class FakeLog:
    """`ServerLog` over a list; `timed` where its lines say when they were written."""

    where = "the fake's log"

    def __init__(self, bench: Bench, *, timed: bool) -> None:
        self._bench, self.timed = bench, timed
        self.lines: list[LogLine] = []
        self.fails: str | None = None
        self.page_size = 100
        self.reads = 0

    def write(self, *texts: str, ago: float = 0.0) -> None:
        self._bench.clock.advance(1)
        at = self._bench.clock.now() - ago if self.timed else None
        self.lines += [LogLine(text, at) for text in texts]

    def read(self, position: Mapping[str, Any], since: float) -> LogPage:
        self.reads += 1
        if self.fails:
            raise ManagerError(self.fails)
        begin = position.get("n", 0 if self.timed else len(self.lines))
        end = begin + self.page_size
        lines = [one for one in self.lines[begin:end] if one.at is None or one.at > since]
        return LogPage(tuple(lines), {"n": min(end, len(self.lines))}, more=end < len(self.lines))


class Watched:
    """A bench with one service whose log is watched."""

    def __init__(self, bench: Bench, *, timed: bool = True) -> None:
        self.bench = bench
        self.log = FakeLog(bench, timed=timed)
        bench.managers["vllm"].log = lambda: self.log  # type: ignore[attr-defined]
        bench.drivers["vllm"].models = {"qwen"}
        self.new_process()

    @property
    def service(self) -> Any:
        return self.bench.world.services["vllm"]

    def new_process(self) -> None:
        """The remediator was started again: nothing but the store remembers."""
        self.watch = LogWatch(self.bench.world, self.bench.counters)
        self.prober = Prober(self.bench.world, (OutOfMemoryWatch(self.bench.world),))

    def look(self, times: int = 1) -> int:
        """Look so often, every five seconds; how many out of memory are counted by now."""
        for _ in range(times):
            self.bench.clock.advance(5)
            self.watch.look(self.service)
        with self.bench.store.reading() as tx:
            return tx.inventory.service("vllm").out_of_memory


@pytest.fixture(params=[True, False], ids=["with times", "without times"])
def watched(make_bench: Make, request: pytest.FixtureRequest) -> Watched:
    one = Watched(make_bench(services=("vllm",)), timed=request.param)
    one.look()
    return one


def test_an_out_of_memory_that_only_users_met_is_counted_once(watched: Watched) -> None:
    watched.log.write("INFO: started", f"ERROR worker 0: {NO_MEMORY}", f"ERROR engine: {NO_MEMORY}")
    assert watched.look(3) == 1
    (record,) = watched.bench.events("out_of_memory")
    assert (record["reason"], record["target"]) == ("log", "service:vllm")
    assert record["sentence"] == (
        "vllm ran out of memory: its log says GPU memory: torch.OutOfMemoryError"
    )
    assert watched.bench.counters.get("log_errors")[("vllm", "out_of_memory")] == 1


def test_each_failure_is_one_by_its_class(watched: Watched) -> None:
    for expected in (1, 2):
        watched.log.write(NO_MEMORY, ILLEGAL, "EngineDeadError: EngineCore encountered an issue")
        assert watched.look(4) == expected
    kinds = {kind: n for (_, kind), n in watched.bench.counters.get("log_errors").items() if n}
    assert kinds == {"out_of_memory": 2, "illegal_access": 2, "runtime": 2}
    assert {one["reason"] for one in watched.bench.events("log_error")} == {
        "illegal_access",
        "runtime",
    }


def test_a_restart_of_the_remediator_counts_nothing_twice(watched: Watched) -> None:
    watched.log.write(NO_MEMORY)
    assert watched.look() == 1
    watched.new_process()
    assert watched.look(5) == 1
    watched.log.write(NO_MEMORY)
    assert watched.look() == 2


def test_what_was_written_while_it_was_down_is_found(watched: Watched) -> None:
    watched.look(13)
    watched.log.write(NO_MEMORY)
    watched.bench.clock.advance(60)
    watched.new_process()
    assert watched.look() == 1


def test_a_count_that_could_not_be_kept_is_made_up_for(watched: Watched) -> None:
    disk = watched.bench.disk
    watched.log.write(NO_MEMORY)
    disk.fail_at = {disk.transactions + 1}
    with pytest.raises(StorageError):
        watched.look()
    assert watched.look(2) == 1
    assert watched.bench.counters.get("log_errors")[("vllm", "out_of_memory")] == 1


def test_what_a_canary_met_and_its_server_logged_is_one(watched: Watched) -> None:
    bench = watched.bench
    bench.drivers["vllm"].canary_error = ServiceError(f"the canary failed: {NO_MEMORY}")
    bench.fire(ALERT, service="vllm")
    create({"signal": "out_of_memory"}, "test").read(bench.world, Target("service", "vllm"))
    watched.log.write(NO_MEMORY)
    watched.prober.probe(watched.service)
    assert watched.look() == 1


def test_what_was_logged_and_then_killed_is_one_and_the_kill_is_recorded(
    watched: Watched,
) -> None:
    bench, manager = watched.bench, watched.bench.managers["vllm"]
    watched.prober.probe(watched.service)
    watched.log.write("std::bad_alloc", "MemoryError")
    assert watched.look() == 1
    manager.die()
    status = type(manager).status
    manager.status = lambda: replace(status(manager), oom_killed=True)  # type: ignore[method-assign]
    watched.prober.probe(watched.service)
    assert watched.look() == 1
    first, second = bench.events("out_of_memory")
    assert (first["reason"], second["reason"]) == ("log", "killed")
    assert second["data"]["counted_before"] is True


NO_FAILURES = (
    'INFO: Received request cmpl-1: prompt: "why CUDA out of memory?"',
    '{"messages": [{"content": "RuntimeError: CUDA out of memory"}]}',
    "WARNING: consider lowering max_num_seqs to avoid out of memory errors",
    "you may run out of memory with this setting",
    "INFO: 127.0.0.1 - GET /health 200",
    "GPU KV cache usage: 3.1%",
    "",
)


def test_what_users_wrote_and_advice_is_no_failure(watched: Watched) -> None:
    assert [line for line in NO_FAILURES if failure_in(line)] == []
    watched.log.write(*NO_FAILURES)
    assert watched.look(2) == 0
    assert watched.bench.events("log_error") == []


def test_every_signature_is_found_in_a_line_too() -> None:
    known = [text for (kind, _), texts in TEXTS.items() if kind != "runtime" for text in texts]
    lines = [f"ERROR 11-22 06:00:00 engine.py:1] {text}" for text in known]
    assert [line for line in lines if failure_in(line) is None] == []


def test_no_text_of_a_log_gets_any_further_than_its_signature(watched: Watched) -> None:
    secret = "sk-5e3c7e"
    watched.log.write(f"{secret}: {NO_MEMORY} {secret}", f"{secret} {ILLEGAL}")
    watched.look()
    assert secret not in str(watched.bench.audit)
    metrics = ServiceCollector(watched.bench.world, watched.bench.counters, watched.watch)
    samples = [sample for family in metrics.collect() for sample in family.samples]
    assert secret not in str(samples)
    kinds = {s.labels["kind"] for s in samples if s.name == "llm_service_log_errors_total"}
    assert kinds <= set(KINDS)


def test_a_log_that_cannot_be_read_is_said_once_and_read_when_it_can_be(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watched.log.fails = "the journal may not be read by this user"
    watched.look(5)
    said = [one for one in caplog.messages if "may not be read" in one]
    assert len(said) == 1
    assert watched.watch.readable == {"vllm": False}
    watched.log.fails = None
    watched.log.write(NO_MEMORY)
    assert watched.look() == 1
    assert watched.watch.readable == {"vllm": True}


def test_one_look_goes_through_some_pages_and_no_more(watched: Watched) -> None:
    watched.log.page_size = 10
    watched.log.write(*(f"line {n}" for n in range(500)))
    before = watched.log.reads
    watched.look()
    assert watched.log.reads - before == 4
    watched.log.write(NO_MEMORY)
    assert watched.look(20) == 1


def test_on_the_very_first_look_what_is_old_is_nobodys_business(make_bench: Make) -> None:
    one = Watched(make_bench(services=("vllm",)))
    one.log.write(NO_MEMORY, ago=30)
    assert one.look(3) == 0


def test_where_it_is_switched_off_or_there_is_none_nothing_is_read(make_bench: Make) -> None:
    one = Watched(make_bench(services=("vllm",)))
    service = one.service
    one.bench.world.services["vllm"] = replace(
        service, config=replace(service.config, watch_log=False)
    )
    one.log.write(NO_MEMORY)
    one.look(3)
    one.watch.run(one.service, threading.Event())
    assert one.log.reads == 0
    assert one.watch.readable == {}


def test_the_loop_ends_when_it_is_to_and_outlives_a_fault(make_bench: Make) -> None:
    one = Watched(make_bench(services=("vllm",)))
    stop = threading.Event()
    reads = one.log.read
    left = [RuntimeError("a bug"), None, None]

    def read(position: Mapping[str, Any], since: float) -> LogPage:
        fault = left.pop(0)
        if not left:
            stop.set()
        if fault:
            raise fault
        return reads(position, since)

    one.log.read = read  # type: ignore[method-assign]
    one.watch.run(one.service, stop)
    assert left == []
    assert one.bench.counters.get("errors")[("log_watch",)] == 1
    assert one.bench.counters.get("log_errors")[("vllm", "runtime")] == 0, "known, and none yet"


@pytest.mark.parametrize("first", ["log", "end"])
def test_what_its_process_does_not_outlive_is_known_for_that(watched: Watched, first: str) -> None:
    """No user can make it write that and end."""
    watched.prober.probe(watched.service)
    watched.log.write("MemoryError")
    if first == "log":
        watched.look()
    watched.bench.managers["vllm"].die()
    watched.look()
    watched.prober.probe(watched.service)
    with watched.bench.store.reading() as tx:
        assert [event.reason for event in events_of(tx, "vllm")] == ["ended"]


def test_it_leads_to_an_alert_that_is_looked_into_and_refuted(watched: Watched) -> None:
    """The server works for others: the failure of one request restarts nothing."""
    bench = watched.bench
    watched.log.write(NO_MEMORY)
    watched.look()
    bench.fire(ALERT, service="vllm")
    bench.act()
    assert bench.decisions == ["refute:healthy"]
    with bench.store.reading() as tx:
        (event,) = events_of(tx, "vllm")
    assert (event.reason, event.where, event.said) == ("log", "gpu", "torch.OutOfMemoryError")
