"""A wait for events that does not come back is a call that hangs, and is told of as one."""

from __future__ import annotations

import threading

from exporter.clock import SystemClock
from exporter.device_sampler import Schedule
from exporter.event_watch import TimedEvents
from exporter.sampling import EVENTS, Collector
from tests.exporter.fakes import FakeBackend, FakeClock, FakeDevice, info


class Slow:
    """A source whose wait takes as long as it is told."""

    def __init__(self, clock: FakeClock) -> None:
        self.seen: list[float | None] = []
        self.takes = 0.0
        self._clock = clock
        self.timed = TimedEvents(self, clock)

    def open(self) -> bool:
        return True

    def wait(self, seconds: float) -> tuple[()]:
        self._clock.now += self.takes
        self.seen.append(self.timed.overdue_since())
        return ()

    def close(self) -> None:
        return


def test_a_wait_is_overdue_from_when_it_should_have_been_over_until_it_comes_back() -> None:
    clock = FakeClock()
    source = Slow(clock)
    assert source.timed.overdue_since() is None
    source.timed.wait(1.0)
    began, source.takes = clock.monotonic(), 5.0
    source.timed.wait(1.0)
    assert source.seen == [None, began + 1.0]
    assert source.timed.overdue_since() is None


def test_the_collector_tells_of_it_among_the_calls_that_are_going_on(eventually) -> None:
    blocked = threading.Event()

    class Hung:
        def open(self) -> bool:
            return True

        def wait(self, seconds: float) -> tuple[()]:
            blocked.wait(20)
            return ()

        def close(self) -> None:
            return

    backend = FakeBackend(FakeDevice(info()))
    backend.events = Hung()
    schedule = Schedule(sample=0.05, processes=60, health=60)
    collector = Collector(backend, schedule, lambda frame: None, SystemClock())
    collector.start()
    try:
        eventually(lambda: EVENTS in collector.running_since())
        assert EVENTS not in collector.running.since()
    finally:
        blocked.set()
        collector.request_stop()
        assert collector.join(20)
    assert collector.running_since() == {}
