"""A card that is critically full: a restart only where it gives something back, and never twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator import signals
from remediator.errors import ConfigError
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.memory_scene import GIB, MemoryScene

CRITICAL, MAX = "GPUMemoryCritical", "GPUMemoryMax"
Make = Callable[..., Bench]


def scene(make_bench: Make, *services: str, **more: object) -> MemoryScene:
    return MemoryScene(make_bench(services=services or ("ollama",), **more))


def restarts(bench: Bench, name: str = "ollama") -> list[str]:
    return bench.managers[name].calls


def one_restart(pid: int = 1001) -> list[str]:
    return [f"stop {pid}", f"start {pid + 1}"]


def test_a_leak_is_answered_by_a_restart_with_the_same_models(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", llama=16, qwen=8)
    assert one.learn() is not None
    one.leak("ollama", 15)
    bench.fire(CRITICAL)
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
    assert restarts(bench) == one_restart()
    assert bench.drivers["ollama"].loads == ["llama", "qwen"]
    assert bench.drivers["ollama"].canaries == ["llama", "qwen", "llama"], (
        "to warm both up, and as the proof"
    )
    assert [step.action for step in bench.steps()] == [
        "drain",
        "restart_service",
        "wait_ready",
        "load_models",
        "canary",
    ]
    assert "has grown by 15.0 GiB" in bench.events("decision")[0]["sentence"]
    assert bench.card.memory_used == 24 * GIB


def test_a_model_that_simply_is_that_big_is_refuted_and_nobody_is_called(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", big=39)
    one.learn()
    bench.fire(CRITICAL)
    bench.pass_time(600)
    assert bench.decisions == ["refute:by_design"]
    assert bench.incident(CRITICAL).state == "refuted"
    assert restarts(bench) == []


@pytest.mark.parametrize(("leak", "restarted"), [(3.9, False), (4.1, True)])
def test_growth_within_the_margin_is_how_servers_breathe(
    make_bench: Make, leak: float, restarted: bool
) -> None:
    one = scene(make_bench)
    one.holds("ollama", big=35)
    one.learn()
    one.leak("ollama", leak)
    one.bench.fire(CRITICAL)
    one.bench.act()
    assert bool(restarts(one.bench)) is restarted


def test_a_budget_earns_one_try_and_no_second_one(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    bench.card.budget = True
    one.holds("ollama", big=39)
    one.learn()
    bench.fire(CRITICAL)
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("ineffective", "still_present")
    assert "uses 39.0 GiB, above 38.0 GiB" in bench.run.sentence
    assert restarts(bench) == one_restart()
    assert bench.incident(CRITICAL).state == "needs_human"
    # A new episode, long after: the same footprint is no reason for the same try.
    bench.resolve(CRITICAL)
    one.learn()
    bench.pass_time(4000)
    bench.fire(CRITICAL, ago=0)
    bench.pass_time(20)
    assert bench.decisions[-1] == "defer:same_footprint"
    bench.pass_time(310)
    assert bench.decisions[-1] == "refuse:same_footprint"
    assert bench.incident(CRITICAL).state == "needs_human"
    assert restarts(bench) == one_restart()
    assert len(bench.runs) == 1


@pytest.mark.parametrize(("before", "tries"), [(39, 1), (36, 1), (34, 2)])
def test_what_a_restart_came_to_is_remembered_beyond_that_process(
    make_bench: Make, before: float, tries: int
) -> None:
    """A person or a crash may start the service anew; it is tried only if it needs more by far."""
    one = scene(make_bench)
    bench, manager = one.bench, one.bench.managers["ollama"]
    bench.card.budget = True
    one.holds("ollama", big=before)
    one.learn()
    one.leak("ollama", 39.5 - before)
    bench.fire(CRITICAL)
    bench.act()
    bench.resolve(CRITICAL)
    one.learn()
    bench.pass_time(4000)
    manager.stop(manager.identity, 1)
    manager.start(1)
    one.holds("ollama", big=39)
    one.learn()
    bench.fire(CRITICAL, ago=0)
    bench.pass_time(15)
    assert len(bench.runs) == tries
    assert bench.decisions[-1] == ("defer:same_footprint" if tries == 1 else "run:accepted")


def test_a_new_episode_right_after_the_try_waits_for_the_footprint(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    bench.card.budget = True
    one.holds("ollama", big=39)
    assert one.learn(looks=1) is None
    bench.fire(CRITICAL)
    bench.act()
    assert bench.run.state == "ineffective"
    bench.resolve(CRITICAL)
    bench.pass_time(120)
    bench.fire(CRITICAL, ago=0)
    bench.pass_time(30)
    assert bench.decisions[-1] == "defer:no_footprint"
    assert restarts(bench) == one_restart()


def test_growth_that_comes_back_is_answered_until_the_attempts_are_used_up(
    make_bench: Make,
) -> None:
    one = scene(make_bench, limits={"breaker_failures": 99})
    bench = one.bench
    one.holds("ollama", llama=20)
    for _ in range(4):
        one.learn()
        one.leak("ollama", 19)
        bench.fire(CRITICAL, ago=0)
        bench.pass_time(10)
        bench.resolve(CRITICAL)
        bench.pass_time(300)
    assert [run.state for run in bench.runs] == ["succeeded"] * 3
    assert bench.decisions[-1] == "refuse:attempts"


def test_two_levels_of_one_card_are_one_restart(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    bench.card.budget = True
    one.holds("ollama", big=40)
    one.learn()
    bench.fire(CRITICAL)
    bench.fire(MAX)
    bench.act()
    bench.pass_time(400)
    assert restarts(bench) == one_restart()
    (run,) = bench.runs
    assert run.state == "ineffective"
    assert "refuse:duplicate" in bench.decisions


def test_two_levels_at_once_wait_for_each_other(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", llama=20)
    one.learn()
    one.leak("ollama", 19.5)
    bench.fire(CRITICAL)
    bench.fire(MAX)
    bench.evaluate()
    assert sorted(bench.decisions) == ["defer:superseded", "run:accepted"]
    bench.execute()
    bench.pass_time(30)
    assert restarts(bench) == one_restart()


def test_only_the_service_that_grew_is_restarted(make_bench: Make) -> None:
    one = scene(make_bench, "chat", "embed")
    bench = one.bench
    one.holds("chat", llama=12)
    one.holds("embed", bge=10)
    one.learn("chat")
    one.learn("embed")
    one.leak("embed", 17)
    bench.fire(CRITICAL)
    bench.act()
    assert bench.run.state == "succeeded"
    assert restarts(bench, "embed") == one_restart(2001)
    assert restarts(bench, "chat") == []
    assert {step.service for step in bench.steps()} == {"embed"}


def test_a_budget_singles_out_none_of_several(make_bench: Make) -> None:
    one = scene(make_bench, "chat", "embed")
    bench = one.bench
    bench.card.budget = True
    one.holds("chat", llama=20)
    one.holds("embed", bge=19)
    one.learn("chat")
    one.learn("embed")
    bench.fire(CRITICAL)
    bench.act()
    assert bench.decisions == ["refuse:no_service"]
    assert restarts(bench, "chat") == restarts(bench, "embed") == []


def test_out_of_memory_since_the_models_were_loaded_is_evidence(make_bench: Make) -> None:
    one = scene(make_bench, "chat", "embed")
    bench = one.bench
    one.holds("chat", llama=29)
    one.holds("embed", bge=10)
    _out_of_memory(bench, "embed")
    one.learn("chat")
    one.learn("embed")
    bench.fire(CRITICAL)
    bench.act()
    assert bench.decisions == ["refute:by_design"], "what was before the load is over"
    _out_of_memory(bench, "chat")
    bench.pass_time(40)
    assert bench.decisions[-1] == "run:accepted"
    assert restarts(bench, "chat") == one_restart()
    assert restarts(bench, "embed") == []


def test_out_of_memory_long_ago_is_no_evidence_of_today(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", big=39)
    one.learn()
    _out_of_memory(bench, "ollama")
    bench.pass_time(3700)
    bench.fire(CRITICAL, ago=0)
    bench.act()
    assert bench.decisions == ["refute:by_design"]
    assert restarts(bench) == []


def test_out_of_memory_of_the_process_before_is_over(make_bench: Make) -> None:
    one = scene(make_bench)
    bench, manager = one.bench, one.bench.managers["ollama"]
    one.holds("ollama", big=39)
    one.learn()
    _out_of_memory(bench, "ollama")
    manager.stop(manager.identity, 1)
    manager.start(1)
    one.holds("ollama", big=39)
    bench.fire(CRITICAL)
    bench.act()
    assert bench.decisions == ["defer:no_footprint"]


def test_out_of_memory_again_after_our_restart_calls_a_person(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", big=39)
    one.learn()
    _out_of_memory(bench, "ollama")
    bench.fire(CRITICAL)
    bench.act()
    assert bench.run.state == "ineffective"
    bench.resolve(CRITICAL)
    one.learn()
    bench.pass_time(4000)
    _out_of_memory(bench, "ollama")
    bench.fire(CRITICAL, ago=0)
    bench.pass_time(20)
    assert bench.decisions[-1] == "defer:same_footprint"
    assert restarts(bench) == one_restart()


def _out_of_memory(bench: Bench, name: str) -> None:
    with bench.store.transaction() as tx:
        tx.inventory.count_out_of_memory(name, bench.clock.now())


def test_memory_of_others_restarts_nobody_and_calls_a_person(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    bench.card.budget = True
    one.holds("ollama", llama=10)
    one.learn()
    one.others_hold(29)
    bench.fire(CRITICAL)
    bench.pass_time(120)
    assert bench.decisions == ["defer:not_ours"]
    assert bench.incident(CRITICAL) is None
    bench.pass_time(200)
    assert bench.decisions[-1] == "refuse:not_ours"
    assert bench.incident(CRITICAL).state == "needs_human"
    assert restarts(bench) == []


def test_without_a_footprint_nothing_is_concluded(make_bench: Make) -> None:
    one = scene(make_bench)
    one.holds("ollama", big=39)
    one.bench.fire(CRITICAL)
    one.bench.pass_time(400)
    assert one.bench.decisions == ["defer:no_footprint", "refuse:no_footprint"]
    assert restarts(one.bench) == []


def test_a_footprint_with_other_models_says_nothing(make_bench: Make) -> None:
    one = scene(make_bench)
    one.holds("ollama", llama=20)
    one.learn()
    one.holds("ollama", llama=20, qwen=19)
    one.bench.fire(CRITICAL)
    one.bench.act()
    assert one.bench.decisions == ["defer:no_footprint"]


def test_a_card_that_is_full_for_a_moment_only_is_left_alone(make_bench: Make) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", llama=20)
    one.learn()
    one.leak("ollama", 19)
    bench.card.memory_held_for = 9
    bench.fire(CRITICAL)
    bench.act()
    assert bench.decisions == ["defer:too_brief"]
    bench.card.memory_held_for = 20
    bench.pass_time(3)
    assert restarts(bench) == one_restart()


def test_below_the_level_it_is_refuted(make_bench: Make) -> None:
    one = scene(make_bench)
    one.holds("ollama", llama=37)
    one.bench.fire(CRITICAL)
    one.bench.act()
    assert one.bench.decisions == ["refute:below_threshold"]


def test_a_card_that_no_service_uses_is_nobodys_to_restart(make_bench: Make) -> None:
    bench = make_bench()
    bench.card.memory_used = 39 * GIB
    bench.fire(CRITICAL)
    bench.act()
    assert bench.decisions == ["defer:no_service"]


def test_a_manager_that_does_not_answer_is_no_evidence(make_bench: Make) -> None:
    one = scene(make_bench)
    one.holds("ollama", llama=20)
    one.learn()
    one.leak("ollama", 19)
    one.bench.managers["ollama"].fails = "no answer"
    one.bench.fire(CRITICAL)
    one.bench.act()
    assert one.bench.decisions == ["defer:manager_silent"]


def test_without_the_permission_it_is_refused(make_bench: Make) -> None:
    one = scene(make_bench, allow=[])
    one.holds("ollama", llama=20)
    one.learn()
    one.leak("ollama", 19)
    one.bench.fire(CRITICAL)
    one.bench.act()
    assert one.bench.decisions == ["refuse:not_allowed"]


@pytest.mark.parametrize("margin", [-0.1, 1.0, 10.0])
def test_a_margin_is_a_share(margin: float) -> None:
    with pytest.raises(ConfigError, match=r"session\.margin"):
        signals.create({"signal": "session", "margin": margin}, "test")


def test_where_the_card_cannot_tell_processes_apart_its_only_service_has_it_all(
    make_bench: Make,
) -> None:
    one = scene(make_bench)
    bench = one.bench
    one.holds("ollama", llama=20)
    real = bench.card.reading
    bench.card.reading = lambda: real() | {"processes": None}  # type: ignore[method-assign]
    assert one.learn().used[bench.uuids[0]].by == "card"
    one.leak("ollama", 19)
    found = signals.create({"signal": "session"}, "test").read(
        bench.world, Target("gpu", bench.uuids[0])
    )
    assert (found.state, found.reason, found.services) == ("present", "grown", ("ollama",))
    # Measured in another way it says nothing.
    bench.card.reading = real  # type: ignore[method-assign]
    bench.fire(CRITICAL)
    bench.act()
    assert bench.decisions == ["defer:no_footprint"]
