"""One card is reset at a time: the others wait, and are not given up for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.remediator.engine.device_scene import DeviceBench, heat, later

Make = Callable[..., DeviceBench]


# While one card is reset nobody sees another; that is no reason to give that one up.


class OtherReset:
    """Another card's run has the exporter let go of every card for a while."""

    def __init__(self, bench: DeviceBench) -> None:
        self._bench = bench
        self._lock = bench.world.knobs.of("reset")

    def takes(self, seconds: float) -> None:
        self._lock.acquire()
        self._all(released=True)
        later(self._bench, seconds, self._ends)

    def _ends(self) -> None:
        self._all(released=False)
        self._lock.release()

    def _all(self, *, released: bool) -> None:
        for card in self._bench.faulty.values():
            card.released = released


def test_a_reset_of_another_card_does_not_make_this_one_a_persons(make: Make) -> None:
    bench = make(gpus=2)
    bench.asks_for("reset")
    bench.evaluate()
    OtherReset(bench).takes(90)
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    assert bench.reset.resets == [bench.uuids[0]]


def test_a_reset_of_another_card_while_the_services_stop_is_waited_for(make: Make) -> None:
    bench = make(gpus=2)
    bench.asks_for("reset")
    stop = bench.managers["ollama"].stop

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        OtherReset(bench).takes(90)

    bench.managers["ollama"].stop = stops  # type: ignore[method-assign]
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    assert bench.calls() == ["stop", "start"]


def test_a_service_is_not_left_down_because_another_card_is_being_reset(make: Make) -> None:
    bench = make(gpus=2)
    bench.asks_for("reset")

    look, others = bench.gpus.all, OtherReset(bench)

    def looks() -> Any:
        if bench.runs and ("reset_gpu", "done") in bench.done and bench.gpus.all is looks:
            bench.gpus.all = look  # type: ignore[method-assign]
            others.takes(90)
        return look()

    bench.gpus.all = looks  # type: ignore[method-assign]
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    assert bench.gpus.all is not looks
    assert bench.calls() == ["stop", "start"]


def test_a_stop_that_comes_while_it_waits_for_its_turn_has_reset_nothing(make: Make) -> None:
    bench = make(gpus=2)
    bench.asks_for("drain_and_reset")
    stop = bench.managers["ollama"].stop

    def shut_down() -> None:
        bench.world.stopping.set()
        bench.executor.wake_all()

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        bench.managers["ollama"].stop = stop  # type: ignore[method-assign]
        OtherReset(bench).takes(90)
        later(bench, 10, shut_down)

    bench.managers["ollama"].stop = stops  # type: ignore[method-assign]
    bench.act()
    assert bench.run.ended_at is None
    bench.clock.advance(120)
    bench.restart()
    bench.execute()
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    assert len(bench.reset.resets) == 1
    assert bench.calls() == ["stop", "start"]


def test_what_is_no_longer_asked_for_after_the_wait_is_not_reset(make: Make) -> None:
    bench = make(gpus=2)
    bench.asks_for("drain_and_reset")
    power = bench.control.power
    waited: list[float] = []

    def asks(uuid: str) -> Any:
        """The last thing before the reset: from now on another one has its turn."""
        if not waited:
            waited.append(bench.clock.passed)
            OtherReset(bench).takes(40)
            later(bench, 20, lambda: setattr(bench.card, "recovery_action", "none"))
        return power(uuid)

    bench.control.power = asks  # type: ignore[method-assign]
    bench.act()
    assert bench.run.state == "failed"
    assert bench.reset.resets == []
    assert bench.release.calls == []
    assert bench.calls() == ["stop", "start"]


def test_a_neighbour_that_gets_hot_during_the_wait_is_not_left_unseen(make: Make) -> None:
    bench = make(gpus=2)
    bench.asks_for("drain_and_reset")
    stop = bench.managers["ollama"].stop

    def stops(*arguments: Any) -> None:
        stop(*arguments)
        bench.card.strangers = {4242: "leaving"}
        later(bench, 20, bench.card.strangers.clear)
        later(bench, 10, lambda: heat(bench, 88.0, 1))

    bench.managers["ollama"].stop = stops  # type: ignore[method-assign]
    bench.act()
    assert bench.run.state == "failed"
    assert "88.0 °C" in bench.run.sentence
    assert bench.reset.resets == []
    assert bench.release.calls == []
