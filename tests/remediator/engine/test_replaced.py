"""A manager that replaces a process by one request: asked for once, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.actions._service import RESTARTING
from remediator.engine.gathering import PAUSED
from remediator.errors import OutcomeUnknown
from remediator.footprints import came_of_restart
from remediator.managers import ProcessIdentity
from remediator.services import ServiceProbe
from remediator.store.inventory import HOLDER
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.fakes import FakeClock, FakeManager

DOWN = "LLMServiceDown"
Make = Callable[..., Bench]


class Crash(BaseException):
    """The process dies here; nothing of ours may catch it."""


def nothing() -> None:
    pass


def die() -> None:
    raise Crash


class Replacing(FakeManager):
    """Its processes have names in place of pids, as pods have."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.identity = ProcessIdentity(0, clock.now() - 3600, "pod a (uid 1, container 1)")
        self.marks: list[str] = []
        self.asked: Callable[[], object] = nothing

    def replace(self, identity: ProcessIdentity, mark: str, timeout: float) -> ProcessIdentity:
        if mark not in self.marks and identity.same(self.identity):
            self.marks.append(mark)
            self.calls.append("replace")
            number = len(self.marks) + 1
            name = f"pod a (uid {number}, container {number})"
            self.asked()
            self.identity = ProcessIdentity(0, self._clock.now(), name)
        if self.identity is None or identity.same(self.identity):
            self.identity = ProcessIdentity(0, self._clock.now(), "pod a (uid 2, container 2)")
        return self.identity

    def replacing(self, identity: ProcessIdentity, mark: str) -> bool:
        return mark in self.marks or not identity.same(self.identity)


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    return with_pods(make_bench(services=("ollama",)))


def with_pods(one: Bench) -> Bench:
    """It has run for an hour and listens no more, until it is another process."""
    manager = Replacing(one.clock)
    one.managers["ollama"] = manager
    driver = one.drivers["ollama"]
    driver._manager, driver._seen = manager, manager.identity
    old, probe = manager.identity, driver.probe

    def probe_now() -> ServiceProbe:
        refused = ServiceProbe("refused", "the connection was refused")
        return refused if old.same(manager.identity) else probe()

    driver.probe = probe_now
    one._wire()
    return one


def restarts(bench: Bench) -> int:
    with bench.store.reading() as tx:
        return tx.inventory.service("ollama").restarts


def test_a_restart_is_one_request_marked_with_its_run(bench: Bench) -> None:
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.run.state == "succeeded"
    manager = bench.managers["ollama"]
    assert manager.calls == ["replace"], "no stop and no start of its own"
    (step,) = (step for step in bench.steps() if step.action == "restart_service")
    assert manager.marks == [step.intent["mark"]]
    assert step.intent["mark"].startswith(f"run {bench.run.id}, 20")
    assert step.intent["before"]["name"] == "pod a (uid 1, container 1)"
    assert step.sentence == "ollama runs again (pod a (uid 2, container 2))"
    with bench.store.reading() as tx:
        record = tx.inventory.service("ollama")
        assert (record.restarts, record.held_by) == (1, None)
        assert came_of_restart(tx, "ollama", manager.identity)
        other = ProcessIdentity(0, manager.identity.started_at, "pod a (uid 2, container 3)")
        assert not came_of_restart(tx, "ollama", other)


def test_on_a_card_that_is_unfit_nothing_starts_before_it_is_fit(bench: Bench) -> None:
    manager = bench.managers["ollama"]
    bench.card.celsius = lambda watts: 88.0 if manager.identity else 70.0
    bench.fire("GPUTemperatureCritical")
    bench.act()
    assert [call.split()[0] for call in manager.calls] == ["stop", "start"]
    assert manager.marks == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_around_the_request_makes_it_once(bench: Bench, when: str) -> None:
    manager = bench.managers["ollama"]
    replace = manager.replace

    def died(*arguments: object) -> ProcessIdentity:
        if when == "after":
            replace(*arguments)
        raise Crash

    manager.replace = died
    bench.fire(DOWN, service="ollama")
    bench.evaluate()
    with pytest.raises(Crash):
        bench.execute()
    del manager.replace
    bench.restart()
    bench.execute()
    assert bench.run.state == "succeeded"
    assert manager.calls == ["replace"]
    assert len(manager.marks) == restarts(bench) == 1


def test_what_was_asked_for_and_is_not_there_yet_counts_as_begun(bench: Bench) -> None:
    """A rollout goes on by itself over a crash and in a pause: it is waited for, not judged anew."""
    manager = bench.managers["ollama"]
    manager.asked = die
    bench.fire(DOWN, service="ollama")
    bench.evaluate()
    with pytest.raises(Crash):
        bench.execute()
    manager.asked = nothing
    with bench.store.transaction() as tx:
        tx.set_meta(PAUSED, "a new cooler")
    bench.restart()
    bench.execute()
    assert bench.run.state == "succeeded"
    assert manager.calls == ["replace"]


def test_an_outcome_that_is_not_known_is_a_persons(bench: Bench) -> None:
    manager = bench.managers["ollama"]

    def lost() -> None:
        raise OutcomeUnknown("whether deployment llm/vllm was changed is not known")

    manager.asked = lost
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.run.state == "ambiguous"
    assert bench.incident(DOWN, Target("service", "ollama")).state == "needs_human"
    assert manager.calls == ["replace"]


def test_a_stop_that_came_meanwhile_wins(bench: Bench) -> None:
    manager = bench.managers["ollama"]

    def hold() -> None:
        with bench.store.transaction() as tx:
            assert tx.inventory.service("ollama").held_reason == RESTARTING
            tx.inventory.hold("ollama", HOLDER, "its card is too hot", bench.clock.now())

    manager.asked = hold
    bench.fire(DOWN, service="ollama")
    bench.act()
    assert bench.run.state == "failed"
    assert manager.identity is None
    with bench.store.reading() as tx:
        assert tx.inventory.service("ollama").held_reason == "its card is too hot"
