"""What keeps the engine from acting: the kill switch, maintenance windows, opt-outs, a set clock."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from remediator.config.windows import WindowConfig
from remediator.engine import step_gates
from remediator.engine.gathering import PAUSED
from remediator.engine.kill_switch import why_pulled
from remediator.engine.run_end import RunEnded
from remediator.playbooks import from_journal, load
from remediator.run_ages import Ages
from remediator.services import ServiceProbe
from remediator.store import Run
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.fakes import START
from tests.remediator.engine.reserved import reserve

Make = Callable[..., Bench]
WARNING, CRITICAL, SHUTDOWN = (
    f"GPUTemperature{level}" for level in ("Warning", "Critical", "Shutdown")
)
DOWN = "LLMServiceDown"
HOUR, DAY = 3600.0, 86400.0
ALWAYS = WindowConfig("always", "00:00", "24:00")


def configure(bench: Bench, **changes: object) -> None:
    """Other values of the configuration, over a restart."""
    bench.config = replace(bench.config, **changes)
    bench.restart()


def hot(bench: Bench, celsius: float = 84.0) -> Bench:
    bench.card.heat_by_power(full=celsius, capped=60.0)
    bench.fire(WARNING)
    return bench


def break_down(bench: Bench, service: str = "ollama", *, ago: float = 5.0) -> None:
    bench.managers[service].die()
    bench.fire(DOWN, service=service, ago=ago)


# the kill switch


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_whatever_stands_there_pulls_the_kill_switch(tmp_path: Path, kind: str) -> None:
    switch = tmp_path / "KILL"
    assert why_pulled(switch) is None
    if kind == "file":
        switch.touch()
    elif kind == "directory":
        switch.mkdir()
    else:
        switch.symlink_to(tmp_path / "nowhere")
    assert str(switch) in (why_pulled(switch) or "")


def test_what_cannot_be_looked_at_counts_as_pulled(tmp_path: Path) -> None:
    assert "is not there" in (why_pulled(tmp_path / "gone" / "KILL") or "")
    assert why_pulled(tmp_path / "gone" / "KILL", needs_folder=False) is None
    (tmp_path / "a file").touch()
    assert "cannot be looked at" in (why_pulled(tmp_path / "a file" / "KILL") or "")


def test_a_pulled_kill_switch_stops_everything_new_and_removing_it_goes_on(bench: Bench) -> None:
    bench.config.kill_switch.touch()
    hot(bench).act()
    assert bench.runs == []
    assert bench.decisions == ["defer:kill_switch"]
    assert bench.incident(WARNING) is None, "on-call hears what stays unfixed"
    bench.config.kill_switch.unlink()
    bench.pass_time(20)
    assert bench.run.state == "succeeded"


def test_it_stops_even_a_stop_for_heat(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.config.kill_switch.touch()
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.pass_time(60)
    assert bench.managers["ollama"].calls == []


def test_it_stops_a_run_between_its_steps_and_undo_goes_on(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.heat_by_power(full=86.0, capped=86.0)
    bench.fire(CRITICAL)
    bench.clock.at(bench.clock.passed + 30, bench.config.kill_switch.touch)
    bench.act()
    assert bench.run.reason == "kill_switch"
    assert bench.managers["ollama"].calls == [], "the cap did not help, and nothing heavier began"
    assert bench.open_leases
    bench.card.celsius = 50.0
    bench.pass_time(90)
    assert bench.open_leases == []
    assert bench.written_watts[-1] == 400.0


def test_a_configured_switch_whose_folder_is_gone_stops_everything(
    make_bench: Make, tmp_path: Path
) -> None:
    bench = make_bench()
    configure(bench, kill_switch_file=tmp_path / "run" / "KILL")
    hot(bench).act()
    assert bench.decisions == ["defer:kill_switch"]
    (tmp_path / "run").mkdir()
    bench.pass_time(30)
    assert bench.run.state == "succeeded"


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("mode_off", {"mode": "off"}),
        ("maintenance_window", {"windows": (ALWAYS,)}),
        ("not_allowed", {"allow": ()}),
        ("mode_off", {"playbooks": {"cool-down": {"mode": "off"}}}),
    ],
)
def test_a_reload_stops_a_run_between_its_steps(
    make_bench: Make, reason: str, change: dict[str, object]
) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.heat_by_power(full=86.0, capped=86.0)
    bench.fire(CRITICAL)
    config = replace(bench.config, **change)

    def reload() -> None:
        bench.world.adopt(replace(bench.world, config=config))
        bench.playbooks.adopt(load(config.playbooks))

    bench.clock.at(bench.clock.passed + 30, reload)
    bench.act()
    assert bench.run.reason == reason
    assert bench.managers["ollama"].calls == []


# maintenance windows


def test_nothing_is_done_in_a_window_and_it_is_after_it(make_bench: Make) -> None:
    bench = make_bench()
    configure(bench, windows=(WindowConfig("work", "21:00", "21:30"),))
    assert START % DAY == 21 * HOUR + 20 * 60
    hot(bench).act()
    assert bench.decisions == ["defer:maintenance_window"]
    (record,) = bench.events("decision")
    assert record["data"]["evidence"] == {"window": "work", "until": START + 600}
    bench.pass_time(580, step=10)
    assert bench.runs == []
    bench.pass_time(70, step=10)
    assert bench.run.state == "succeeded"


@pytest.mark.parametrize(("also", "stops"), [(False, ["stop 1001"]), (True, [])])
def test_a_stop_for_heat_is_not_kept_back_unless_the_window_says_so(
    make_bench: Make, also: bool, stops: list[str]
) -> None:
    bench = make_bench(services=("ollama",))
    configure(bench, windows=(replace(ALWAYS, also_stops=also),))
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.clock.at(20, lambda: setattr(bench.card, "celsius", 70.0))
    bench.act()
    assert bench.managers["ollama"].calls == stops


@pytest.mark.parametrize("scope", [{"services": ("a",)}, {"gpus": ("GPU-of-a",)}])
def test_a_window_holds_for_the_services_and_cards_that_it_names(
    make_bench: Make, scope: dict[str, object]
) -> None:
    bench = make_bench(services=("a", "b"), limits={"breaker_targets": 8})
    configure(bench, windows=(replace(ALWAYS, **scope),))
    for name, uuid in (("a", "GPU-of-a"), ("b", "GPU-of-b")):
        service = bench.world.services[name]
        bench.world.services[name] = replace(  # type: ignore[index]
            service, config=replace(service.config, gpus=(uuid,))
        )
        bench.cards[uuid] = replace(bench.card, uuid=uuid)
    for name in ("a", "b"):
        break_down(bench, name)
    bench.pass_time(30)
    assert bench.managers["a"].calls == []
    assert bench.managers["b"].calls == ["start 1002"]


def test_a_run_ends_where_a_window_opens(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    configure(bench, windows=(WindowConfig("work", "21:21", "22:00"),))
    bench.card.heat_by_power(full=86.0, capped=86.0)
    bench.fire(CRITICAL)
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("cancelled", "maintenance_window")
    assert bench.managers["ollama"].calls == []


# opt-outs


def test_a_card_that_is_opted_out_is_left_alone(make_bench: Make) -> None:
    bench = make_bench(gpus=2)
    configure(bench, gpus=replace(bench.config.gpus, opted_out=(bench.uuids[0],)))
    for card in bench.cards.values():
        card.heat_by_power(full=84.0, capped=60.0)
        bench.fire(WARNING, uuid=card.uuid)
    bench.act()
    assert bench.decisions == ["refuse:opted_out", "run:accepted"]
    assert {write.uuid for write in bench.control.writes} == {bench.uuids[1]}


def opt_out(bench: Bench, name: str) -> None:
    services = tuple(
        replace(service.config, remediate=service.name != name)
        for service in bench.world.services.values()
    )
    configure(bench, services=services)


def test_a_service_that_is_opted_out_is_not_restarted_but_its_card_is_capped(
    make_bench: Make,
) -> None:
    bench = make_bench(services=("ollama",))
    opt_out(bench, "ollama")
    bench.card.heat_by_power(full=86.0, capped=86.0)
    bench.fire(CRITICAL)
    bench.act()
    assert bench.written_watts == [100.0]
    assert (bench.run.state, bench.run.reason) == ("ineffective", "opted_out")
    assert bench.managers["ollama"].calls == []


def test_a_service_that_is_opted_out_is_not_started(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    opt_out(bench, "ollama")
    break_down(bench)
    bench.pass_time(90)
    assert bench.runs == []
    assert bench.decisions == ["refuse:opted_out"]


def test_a_stop_for_heat_stops_the_others_on_the_card(make_bench: Make) -> None:
    bench = make_bench(services=("a", "b"))
    opt_out(bench, "a")
    bench.card.celsius = 92.0
    bench.fire(SHUTDOWN)
    bench.clock.at(20, lambda: setattr(bench.card, "celsius", 70.0))
    bench.act()
    assert bench.managers["a"].calls == []
    assert bench.managers["b"].calls == ["stop 1001"]


# the clock


class SetClock:
    """Sets the wall clock of a bench and leaves the monotonic one alone."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bench, self._stepped, self._patch = bench, 0.0, monkeypatch
        self._before = bench.clock.now

    def by(self, seconds: float) -> None:
        self._stepped += seconds
        self._patch.setattr(self._bench.clock, "now", lambda: self._before() + self._stepped)


@pytest.mark.parametrize("ahead", [3600.0, 86_400.0, 400 * 86_400.0])
def test_a_run_that_lies_ahead_of_the_clock_happened_now_and_grows_old_from_now(
    make_bench: Make, ahead: float
) -> None:
    bench = make_bench()
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire("GPUTemperatureWarning")
    bench.act()
    ended = bench.run.ended_at
    assert ended is not None
    # A machine whose clock was set back while nothing ran.
    bench.clock.passed -= ahead
    ages = Ages()
    now = bench.clock.now()
    assert ages.dated(bench.run, bench.clock) == (now, now)
    bench.clock.advance(100)
    assert ages.dated(bench.run, bench.clock) == (now, now)


@pytest.mark.parametrize("step", [-DAY, -HOUR, HOUR, DAY])
def test_a_clock_that_is_set_makes_nothing_happen_twice_and_nothing_stick(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    bench = make_bench(services=("ollama",), limits={"cooldown": "10m"})
    clock = SetClock(bench, monkeypatch)
    break_down(bench)
    bench.pass_time(20)
    assert bench.run.state == "succeeded"
    bench.resolve(DOWN, service="ollama")
    clock.by(step)
    bench.pass_time(100)
    # The next firing within the cooldown waits for its end, and for no longer. The clock of whoever
    # sends it is not set back.
    break_down(bench, ago=min(step, 0.0) + 5.0)
    bench.pass_time(120)
    assert len(bench.runs) == 1
    assert bench.decisions[-1] == "defer:cooldown"
    bench.pass_time(600, step=5)
    assert [run.state for run in bench.runs] == ["succeeded", "succeeded"]
    assert bench.managers["ollama"].calls == ["start 1002", "start 1003"]
    (record,) = bench.events("clock_stepped")
    assert record["data"]["seconds"] == pytest.approx(step, abs=5)


@pytest.mark.parametrize("step", [-DAY, -HOUR])
def test_what_waits_does_not_wait_for_a_clock_that_was_set_back(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    bench = make_bench()
    clock = SetClock(bench, monkeypatch)
    bench.tick_housekeeper()
    bench.config.kill_switch.touch()
    hot(bench).act()
    assert bench.decisions == ["defer:kill_switch"]
    clock.by(step)
    bench.config.kill_switch.unlink()
    bench.pass_time(30)
    assert bench.runs[0].state == "succeeded"


@pytest.mark.parametrize("step", [-DAY, -HOUR, HOUR, DAY])
def test_an_approval_lasts_as_long_as_it_says(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    bench = make_bench(mode="approve", timing={"approval_expires": "15m"})
    clock = SetClock(bench, monkeypatch)
    hot(bench).act()
    bench.tick_housekeeper()
    clock.by(step)
    bench.pass_time(800, step=20)
    assert bench.runs[0].state == "awaiting_approval"
    bench.pass_time(140, step=20)
    assert bench.runs[0].reason == "expired"


def test_a_run_that_a_reboot_cut_off_acts_once_whatever_the_clock_says_then(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(services=("ollama",))
    clock = SetClock(bench, monkeypatch)
    break_down(bench)
    monkeypatch.setattr("remediator.engine.run_journal.boot_id", lambda: "before")
    bench.act()
    assert bench.managers["ollama"].calls == ["start 1002"]
    monkeypatch.setattr("remediator.engine.run_journal.boot_id", lambda: "after")
    bench.restart()
    clock.by(-DAY)
    bench.drivers["ollama"].forced = ServiceProbe("refused", "refused")
    bench.pass_time(50)
    assert bench.managers["ollama"].calls == ["start 1002"], "the same episode acts once"


# at the same moment


def test_runs_that_ask_at_the_same_moment_count_each_other(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(services=("a", "b"), limits={"destructive_per_hour": 1})
    for service in ("a", "b"):
        break_down(bench, service)
    bench.evaluate()
    first, second = bench.runs
    playbook = bench.playbooks.by_name[first.playbook]
    looked, together = step_gates.ask, threading.Barrier(2)

    def slowly(*asked: object) -> object:
        found = looked(*asked)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.3)
        return found

    monkeypatch.setattr(step_gates, "ask", slowly)
    said: list[str] = []

    def ask(run: Run) -> None:
        step = next(one for one in from_journal(run.plan) if one.action.destructive)
        try:
            step_gates.may_act(bench.world, playbook, run, step)
            said.append("yes")
        except RunEnded as end:
            said.append(end.reason)

    threads = [threading.Thread(target=ask, args=(run,)) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == ["rate_limit", "yes"]


def test_a_pause_before_a_step_opens_no_breaker(make_bench: Make) -> None:
    bench = make_bench(services=("a", "b"), limits={"breaker_targets": 1, "breaker_window": "1h"})
    break_down(bench, "a")
    bench.evaluate()
    (run,) = bench.runs
    with bench.store.transaction() as tx:
        tx.set_meta(PAUSED, "a person")
        other = reserve(tx, Target("service", "b"), bench.clock.now())
        tx.runs.mark_destructive(other.id)
        tx.runs.end(other.id, "succeeded", "verified", "", bench.clock.now())
    playbook = bench.playbooks.by_name[run.playbook]
    step = next(one for one in from_journal(run.plan) if one.action.destructive)
    with pytest.raises(RunEnded) as end:
        step_gates.may_act(bench.world, playbook, run, step)
    assert end.value.reason == "paused"
    assert bench.events("breaker_opened") == []
    with bench.store.transaction() as tx:
        tx.set_meta(PAUSED, None)
    with pytest.raises(RunEnded) as end:
        step_gates.may_act(bench.world, playbook, run, step)
    assert end.value.reason == "breaker_open"
    assert len(bench.events("breaker_opened")) == 1
