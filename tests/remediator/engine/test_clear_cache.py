"""A card that fills up: idle models go one by one, what that freed is read again, nobody is woken."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from remediator import actions
from remediator.actions import StepContext
from remediator.errors import ServiceError
from remediator.services import ServiceProbe
from remediator.store import Episode
from remediator.targets import THIS_HOST
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.memory_scene import GIB, MemoryScene

WARNING, PRESSURE = "GPUMemoryWarning", "HostMemoryPressure"
Make = Callable[..., Bench]


def scene(make_bench: Make, *services: str, **more: object) -> MemoryScene:
    one = MemoryScene(make_bench(services=services or ("ollama",), **more))
    for driver in one.bench.drivers.values():
        driver.can_unload = True
    return one


def unloads(one: MemoryScene, name: str = "ollama") -> list[str]:
    return one.bench.drivers[name].unloads


def test_the_model_used_longest_ago_goes_and_what_it_freed_is_read_again(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", old=17, new=20)
    bench.fire(WARNING)
    bench.act()
    assert unloads(one) == ["old"]
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    (step,) = bench.steps()
    assert (step.state, step.result["reason"]) == ("done", "unloaded")
    uuid = bench.uuids[0]
    assert step.result["expected_bytes"] == 17 * GIB
    assert step.result["used_bytes_before"] == {uuid: 37 * GIB}
    assert step.result["used_bytes_after"] == {uuid: 20 * GIB}
    assert step.result["freed_bytes"] == {uuid: 17 * GIB}
    assert step.sentence == "ollama unloaded old; freed 17.0 GiB of the expected 17.0 GiB"
    assert not bench.run.destructive
    assert bench.managers["ollama"].calls == []


def test_it_needs_no_second_key(make_bench: Make) -> None:
    one = scene(make_bench, allow=[])
    one.holds("ollama", old=17, new=20)
    one.bench.fire(WARNING)
    one.bench.act()
    assert one.bench.run.state == "succeeded"


def test_memory_that_comes_late_is_waited_for(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", old=17, new=20)
    bench.drivers["ollama"].when_unloaded = lambda model: bench.clock.at(
        bench.clock.passed + 6, one.refresh
    )
    bench.fire(WARNING)
    bench.act()
    assert bench.steps()[0].result["freed_bytes"] == {bench.uuids[0]: 17 * GIB}
    assert unloads(one) == ["old"], "the next one does not go while the first settles"


def test_memory_that_never_comes_back_is_not_claimed(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", old=17, new=20)
    bench.drivers["ollama"].when_unloaded = lambda model: None
    bench.fire(WARNING)
    bench.act()
    (step,) = bench.steps()
    assert step.result["expected_bytes"] == 37 * GIB
    assert step.result["freed_bytes"] == {bench.uuids[0]: 0}
    assert step.result["reason"] == "freed_nothing"
    assert step.sentence.endswith("freed 0 of the expected 37.0 GiB")
    assert (bench.run.state, bench.run.reason) == ("ineffective", "still_present")


def test_what_cannot_be_read_afterwards_is_not_zero(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", old=37)
    bench.drivers["ollama"].when_unloaded = lambda model: setattr(bench.gpus, "silent", True)
    bench.fire(WARNING)
    bench.act()
    (step,) = bench.steps()
    assert step.result["freed_bytes"] == {}
    assert "how much that freed of the expected 37.0 GiB could not be read" in step.sentence
    assert step.result["reason"] == "unloaded"
    assert (bench.run.state, bench.run.reason) == ("ineffective", "no_evidence")


def test_as_many_go_as_are_needed(make_bench: Make) -> None:
    one = scene(make_bench)
    one.holds("ollama", a=1, b=1, c=1, d=35)
    one.bench.fire(WARNING)
    one.bench.act()
    assert unloads(one) == ["a", "b"]


def test_a_model_in_use_is_left_and_recorded(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", busy=17, idle=20)
    bench.drivers["ollama"].in_use = {"busy"}
    bench.fire(WARNING)
    bench.act()
    assert unloads(one) == ["busy", "idle"]
    assert bench.drivers["ollama"].models == {"busy"}
    (step,) = bench.steps()
    assert (step.result["unloaded"], step.result["in_use"]) == (["idle"], ["busy"])
    assert bench.run.state == "succeeded"


def test_the_configured_model_used_last_stays_others_go_before_it(make_bench: Make) -> None:
    one = scene(make_bench)
    one.holds("ollama", first=9, second=9, third=9, stray=10.5)
    one.configure("ollama", "first", "second", "third:latest")
    one.bench.fire(WARNING)
    one.bench.act()
    assert unloads(one) == ["stray"]
    one.bench.resolve(WARNING)
    one.bench.pass_time(90)
    one.holds("ollama", first=12, second=12, third=13)
    one.bench.fire(WARNING, ago=0)
    one.bench.act()
    assert unloads(one) == ["stray", "first"]


def test_where_nobody_says_which_was_used_last_all_that_are_configured_stay(
    make_bench: Make,
) -> None:
    one = scene(make_bench)
    one.holds("ollama", first=18, second=19)
    one.configure("ollama", "first", "second")
    del one.bench.drivers["ollama"].expires["first"]
    one.bench.fire(WARNING)
    one.bench.act()
    assert unloads(one) == []


def test_a_card_that_went_silent_meanwhile_is_not_counted(make_bench: Make) -> None:
    one = scene(make_bench, gpus=2)
    bench = one.bench
    one.holds("ollama", old=17, new=20)
    other = bench.cards[bench.uuids[1]]
    other.age = 60
    bench.fire(WARNING)
    bench.act()
    assert set(bench.steps()[0].result["freed_bytes"]) == {bench.uuids[0]}


def test_what_the_service_is_there_for_does_not_go(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", big=37)
    one.configure("ollama", "big:latest")
    bench.fire(WARNING)
    bench.act()
    assert unloads(one) == []
    (step,) = bench.steps()
    assert (step.state, step.result["reason"]) == ("nothing", "no_idle_model")
    assert "big: the configuration names it" in step.sentence


def test_a_model_that_comes_back_is_in_demand_and_does_not_bounce(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", wanted=37)
    for _ in range(4):
        bench.fire(WARNING, ago=0)
        bench.pass_time(120)
        bench.resolve(WARNING)
        bench.pass_time(60)
        bench.drivers["ollama"].load("wanted", 1)
    assert unloads(one) == ["wanted"]
    bench.pass_time(3600)
    bench.fire(WARNING, ago=0)
    bench.act()
    assert unloads(one) == ["wanted", "wanted"], "an hour later it may be idle again"


def test_an_episode_acts_once(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", a=37)
    bench.fire(WARNING)
    bench.fire(WARNING, job="another-scrape")
    bench.act()
    one.holds("ollama", b=37)
    bench.pass_time(600)
    assert unloads(one) == ["a"]
    assert len(bench.runs) == 1


def test_a_server_that_cannot_is_said_and_another_one_is_asked(make_bench: Make) -> None:
    one = scene(make_bench, "chat", "vllm")
    bench = one.bench
    bench.drivers["vllm"].can_unload = False
    one.holds("chat", old=10)
    one.holds("vllm", llama=27)
    bench.fire(WARNING)
    bench.act()
    assert bench.run.state == "succeeded"
    assert unloads(one, "chat") == ["old"]
    chat, vllm = bench.steps()
    assert (vllm.state, vllm.result["reason"]) == ("nothing", "cannot_unload")
    assert chat.service == "chat"


def test_no_more_services_are_asked_than_it_takes(make_bench: Make) -> None:
    one = scene(make_bench, "a", "b")
    one.holds("a", one=19)
    one.holds("b", two=18)
    one.bench.fire(WARNING)
    one.bench.act()
    assert (unloads(one, "a"), unloads(one, "b")) == (["one"], [])
    assert one.bench.steps()[1].result["reason"] == "enough"


def test_a_server_that_refuses_has_failed_and_the_others_are_still_asked(make_bench: Make) -> None:
    def refuse(model: str, timeout: float) -> None:
        raise ServiceError("HTTP 500")

    one = scene(make_bench, "a", "b")
    bench = one.bench
    one.holds("a", one=19)
    one.holds("b", two=18)
    bench.drivers["a"].unload = refuse  # type: ignore[method-assign]
    bench.fire(WARNING)
    bench.act()
    assert unloads(one, "b") == ["two"]
    assert [step.state for step in bench.steps()] == ["failed", "done"]
    assert bench.run.state == "failed"
    assert bench.incident(WARNING) is None, "this alert calls nobody, nor does its playbook"


def test_a_server_that_is_silent_is_left_alone(make_bench: Make) -> None:
    one = scene(make_bench)
    one.holds("ollama", a=37)
    one.bench.drivers["ollama"].forced = ServiceProbe("silent", "no answer")
    one.bench.fire(WARNING)
    one.bench.act()
    assert unloads(one) == []
    assert one.bench.steps()[0].result["reason"] == "not_ready"


def test_a_warning_that_cannot_be_helped_wakes_nobody(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.others_hold(37)
    bench.fire(WARNING)
    bench.pass_time(600)
    assert bench.run.state == "ineffective"
    assert bench.incident(WARNING) is None
    (end,) = bench.events("run_finished")
    assert end["severity"] == "warning"


def test_a_card_that_no_service_uses_wakes_nobody_either(make_bench: Make) -> None:
    bench = make_bench()
    bench.card.memory_used = 37 * GIB
    bench.fire(WARNING)
    bench.act()
    assert bench.decisions == ["refuse:no_service"]
    assert bench.incident(WARNING) is None


def test_below_the_level_nothing_is_done(make_bench: Make) -> None:
    one = scene(make_bench)
    one.holds("ollama", a=36)
    one.bench.fire(WARNING)
    one.bench.act()
    assert one.bench.decisions == ["refute:below_threshold"]


def test_a_heavier_alert_about_the_card_comes_first(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", llama=20)
    one.learn()
    one.leak("ollama", 19)
    bench.fire(WARNING)
    bench.fire("GPUMemoryCritical")
    bench.evaluate()
    bench.pass_time(60)
    assert bench.managers["ollama"].calls == ["stop 1001", "start 1002"]
    states = {run.playbook: run.state for run in bench.runs}
    assert states == {"clear-cache": "cancelled", "reset-session": "succeeded"}


def test_a_pause_holds_it_back_before_the_first_model(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", a=37)
    bench.fire(WARNING)
    bench.evaluate()
    with bench.store.transaction() as tx:
        tx.set_meta("paused", "an operator")
    bench.execute()
    assert unloads(one) == []
    assert (bench.run.state, bench.run.reason) == ("cancelled", "paused")


@pytest.mark.parametrize("asked", [True, False])
def test_a_crash_between_two_models_goes_on_where_it_was(make_bench: Make, asked: bool) -> None:
    one = scene(make_bench)
    bench, driver = one.bench, one.bench.drivers["ollama"]
    one.holds("ollama", a=2, b=17, c=18)
    real = driver.unload

    def crash(model: str, timeout: float) -> None:
        if asked:
            real(model, timeout)
        raise KeyboardInterrupt

    driver.unload = crash  # type: ignore[method-assign]
    bench.fire(WARNING)
    with pytest.raises(KeyboardInterrupt):
        bench.act()
    driver.unload = real  # type: ignore[method-assign]
    one.leak("ollama", 4)
    bench.restart()
    bench.execute()
    assert bench.run.state == "succeeded"
    assert driver.models == {"c"}
    assert bench.steps()[0].result["unloaded"] == ["a", "b"]


def test_a_stop_in_between_records_what_went(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", a=1, b=17, c=20)
    bench.fire(WARNING)
    bench.evaluate()
    (run,) = bench.runs
    bench.drivers["ollama"].when_unloaded = lambda model: _cancel(bench, run.id)
    bench.execute()
    assert unloads(one) == ["a"]
    assert bench.steps()[0].result["unloaded"] == ["a"]
    assert bench.run.state == "cancelled"


def _cancel(bench: Bench, run: int) -> None:
    with bench.store.transaction() as tx:
        tx.runs.request_cancel(run, "superseded")
    bench.executor.wake(run)


def test_pressure_on_the_host_unloads_on_all_services(make_bench: Make) -> None:
    one = scene(make_bench, "a", "b")
    bench = one.bench
    one.holds("a", one=5)
    one.holds("b", two=5)
    bench.gpus.host_used_ratio = 0.87

    def free(model: str) -> None:
        bench.gpus.host_used_ratio -= 0.015
        one.refresh()

    for driver in bench.drivers.values():
        driver.when_unloaded = free
    one.fire_host(PRESSURE)
    bench.act()
    assert bench.run.target == THIS_HOST
    assert (unloads(one, "a"), unloads(one, "b")) == (["one"], ["two"])
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    assert bench.incident(PRESSURE, THIS_HOST).state == "recovering"


def test_pressure_that_stays_wakes_nobody(make_bench: Make) -> None:
    one = scene(make_bench)
    one.bench.gpus.host_used_ratio = 0.87
    one.fire_host(PRESSURE)
    one.bench.pass_time(300)
    assert one.bench.run.state == "ineffective"
    assert one.bench.incident(PRESSURE, THIS_HOST) is None


@pytest.mark.parametrize(
    ("ratio", "age", "decision"),
    [
        (0.84, 0.0, "refute:below_threshold"),
        (0.95, 60.0, "defer:no_fresh_reading"),
        (0.95, -60.0, "defer:no_fresh_reading"),
        (None, 0.0, "defer:no_fresh_reading"),
    ],
)
def test_the_host_is_read_again(
    make_bench: Make, ratio: float | None, age: float, decision: str
) -> None:
    one = scene(make_bench)
    one.bench.gpus.host_used_ratio, one.bench.gpus.host_age = ratio, age
    one.fire_host(PRESSURE)
    one.bench.act()
    assert one.bench.decisions == [decision]


def test_a_host_without_a_service_of_ours_has_nothing_to_unload(make_bench: Make) -> None:
    one = MemoryScene(make_bench())
    one.bench.gpus.host_used_ratio = 0.95
    one.fire_host(PRESSURE)
    one.bench.act()
    assert one.bench.decisions == ["refuse:no_service"]
    assert "uses this machine" in one.bench.events("decision")[0]["sentence"]


@pytest.mark.parametrize("alertname", ["HostMemoryWarning", "HostMemoryCritical"])
def test_the_hosts_other_levels_are_recorded_only(make_bench: Make, alertname: str) -> None:
    one = scene(make_bench)
    one.bench.gpus.host_used_ratio = 0.95
    one.fire_host(alertname)
    one.bench.act()
    assert one.bench.decisions == ["notify:no_playbook"]


def test_a_host_that_a_person_was_called_to_is_seen_good(make_bench: Make) -> None:
    one = scene(make_bench, playbooks={"clear-cache": {"pages": True}})
    bench = one.bench
    bench.gpus.host_used_ratio = 0.87
    one.fire_host(PRESSURE)
    bench.act()
    assert bench.incident(PRESSURE, THIS_HOST).state == "needs_human"
    with bench.store.transaction() as tx:
        episode: Episode = tx.episodes.open_all()[0]
        tx.episodes.end(episode.id, bench.clock.now(), "resolved")
    bench.gpus.host_used_ratio = 0.82
    bench.tick_housekeeper()
    assert bench.incident(PRESSURE, THIS_HOST) is not None, "82 % is still a warning"
    bench.gpus.host_used_ratio = None
    bench.tick_housekeeper()
    assert bench.incident(PRESSURE, THIS_HOST) is not None, "no reading is not good"
    bench.gpus.host_used_ratio = 0.7
    bench.tick_housekeeper()
    assert bench.incident(PRESSURE, THIS_HOST) is None


def test_draining_waits_for_the_requests_and_not_for_ever(make_bench: Make) -> None:
    one = scene(make_bench)
    bench, driver = one.bench, one.bench.drivers["ollama"]
    drain = actions.create({"action": "drain", "within": "20s"}, "test")
    context = StepContext(
        bench.world, bench.uuids[0], bench.world.services["ollama"], threading.Event()
    )
    assert drain.intend(context).reason == "cannot_tell"
    driver.forced = ServiceProbe("ready", "", (), requests_running=2)
    idle = ServiceProbe("ready", "", (), requests_running=0)
    bench.clock.at(7, lambda: setattr(driver, "forced", idle))
    assert not drain.intend(context).nothing
    assert drain.run(context, {}).reason == "idle"
    assert 7 <= bench.clock.passed < 8
    driver.forced = ServiceProbe("ready", "", (), requests_running=2)
    outcome = drain.run(context, {})
    assert (outcome.state, outcome.reason) == ("done", "still_busy")
    assert bench.clock.passed < 30
