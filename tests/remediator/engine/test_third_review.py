"""What a third reader found about memory, out of memory and hangs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.engine.oom_watch import OutOfMemoryWatch
from remediator.engine.prober import Prober
from remediator.errors import ServiceError, ServiceTimeout
from remediator.services import ServiceProbe
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.hang_scene import Scene
from tests.remediator.engine.memory_scene import MemoryScene
from tests.remediator.engine.reserved import reserve

Make = Callable[..., Bench]
HANG, CRITICAL, NO_MEMORY = "GPUHang", "GPUMemoryCritical", "LLMServiceOutOfMemory"


# A suspicion is as old as itself, not as the alert.


def test_one_queued_canary_after_an_hour_of_good_work_calls_nobody(make_bench: Make) -> None:
    scene = Scene(make_bench(services=("ollama",)), engines=())
    bench, ollama = scene.bench, scene.bench.drivers["ollama"]
    ollama.models = {"llama3:8b"}
    bench.fire(HANG)
    bench.pass_time(900)
    assert bench.decisions == ["refute:busy"]
    ollama.canary_error = ServiceTimeout("no answer")
    bench.pass_time(120)
    assert bench.decisions == ["refute:busy", "defer:suspect"]
    ollama.canary_error = None
    bench.pass_time(120)
    assert bench.decisions[-1] == "refute:busy"
    assert bench.incident(HANG).state == "refuted"


def test_a_suspicion_that_lasts_after_good_work_still_calls_a_person(make_bench: Make) -> None:
    scene = Scene(make_bench(services=("ollama",)), engines=())
    bench, ollama = scene.bench, scene.bench.drivers["ollama"]
    ollama.models = {"llama3:8b"}
    bench.fire(HANG)
    bench.pass_time(400)
    ollama.canary_error = ServiceTimeout("no answer")
    bench.pass_time(200)
    bench.restart()
    scene.wire()
    bench.pass_time(250)
    assert bench.decisions == ["refute:busy", "defer:suspect", "refuse:suspect"]
    assert bench.incident(HANG).state == "needs_human"


def test_another_model_on_a_card_that_is_always_full_calls_nobody(make_bench: Make) -> None:
    """Between two models the footprint is not known for a moment."""
    one = MemoryScene(make_bench(services=("ollama",)))
    bench = one.bench
    one.holds("ollama", big=39)
    one.learn()
    bench.fire(CRITICAL)
    bench.pass_time(600)
    assert bench.decisions == ["refute:by_design"]
    one.holds("ollama", other=39)
    bench.pass_time(31)
    assert bench.decisions[-1] == "defer:no_footprint"
    one.learn()
    bench.pass_time(31)
    assert bench.decisions[-1] == "refute:by_design"
    assert bench.incident(CRITICAL).state == "refuted"


# What a look costs a server.


def test_a_neighbour_of_one_that_is_stalling_is_not_asked_for_a_token_every_second(
    make_bench: Make,
) -> None:
    scene = Scene(make_bench(services=("ollama", "idle", "vllm")), engines=("idle", "vllm"))
    bench, ollama = scene.bench, scene.bench.drivers["ollama"]
    ollama.models = {"llama3:8b"}
    bench.drivers["idle"].running = 0
    scene.engine.stuck = True
    bench.fire(HANG)
    bench.pass_time(100)
    assert bench.decisions == ["defer:stalling"]
    assert ollama.canaries == bench.drivers["idle"].canaries == []
    bench.pass_time(60)
    assert scene.restarts == 1
    assert ollama.canaries == bench.drivers["idle"].canaries == []


@pytest.mark.parametrize(
    ("state", "said"), [("sleeping", "refute:healthy"), ("loading", "defer:starting")]
)
def test_a_server_that_sleeps_or_loads_is_asked_for_no_token(
    make_bench: Make, state: str, said: str
) -> None:
    """A request to an engine whose weights are gone may break it."""
    bench = make_bench(services=("vllm",))
    driver = bench.drivers["vllm"]
    driver.models = {"qwen"}
    driver.forced = ServiceProbe(state, "GET /is_sleeping says so", driver.probe().models)
    bench.fire(NO_MEMORY, service="vllm")
    bench.pass_time(60)
    assert driver.canaries == []
    assert bench.decisions == [said]


@pytest.mark.parametrize("error", [ServiceError("boom"), ServiceTimeout("no answer")])
def test_an_answer_that_proves_nothing_is_not_asked_for_every_second(
    make_bench: Make, error: ServiceError
) -> None:
    bench = make_bench(services=("vllm",))
    driver = bench.drivers["vllm"]
    driver.models, driver.canary_error = {"qwen"}, error
    bench.fire(NO_MEMORY, service="vllm")
    bench.pass_time(60)
    assert 2 <= len(driver.canaries) <= 5
    driver.canary_error = None
    bench.pass_time(20)
    assert bench.decisions[-1] == "refute:healthy"


# What may go, and whose memory it is.


def test_a_model_that_was_loaded_to_stay_is_not_unloaded(make_bench: Make) -> None:
    one = MemoryScene(make_bench(services=("ollama",)))
    driver = one.bench.drivers["ollama"]
    driver.can_unload = True
    one.holds("ollama", pinned=30, idle=7.5)
    driver.expires["pinned"] = 10_999_999_999.0
    one.bench.fire("GPUMemoryWarning")
    one.bench.act()
    assert driver.unloads == ["idle"]
    one.bench.resolve("GPUMemoryWarning")
    one.bench.pass_time(90)
    one.leak("ollama", 8)
    one.bench.fire("GPUMemoryWarning", ago=0)
    one.bench.act()
    assert driver.unloads == ["idle"]
    assert "pinned: it was loaded to stay" in one.bench.steps(one.bench.runs[-1].id)[0].sentence


@pytest.mark.parametrize("budget", [False, True])
def test_a_service_without_a_process_on_the_card_does_not_own_what_a_stranger_has(
    make_bench: Make, budget: bool
) -> None:
    """Its model runs on the CPU, or it has none; alone on the card it was taken for all of it."""
    one = MemoryScene(make_bench(services=("ollama",)))
    bench = one.bench
    bench.card.budget = budget
    one.holds("ollama", tiny=0)
    bench.card.memory_of, bench.card.memory_used = {}, 2**29
    one.learn()
    bench.card.memory_of, bench.card.memory_used = {999_999: 39 * 2**30}, 39 * 2**30 + 2**29
    bench.fire(CRITICAL)
    bench.pass_time(400)
    assert bench.runs == []
    assert bench.incident(CRITICAL).state == "needs_human"


@pytest.mark.parametrize("state", ["loading", "refused", "silent"])
def test_a_budget_is_no_reason_to_interrupt_a_load(make_bench: Make, state: str) -> None:
    one = MemoryScene(make_bench(services=("vllm",)))
    bench = one.bench
    bench.card.budget = True
    one.holds("vllm", big=39)
    bench.drivers["vllm"].forced = ServiceProbe(state, "it is coming up")
    bench.fire(CRITICAL)
    bench.pass_time(60)
    assert bench.decisions == ["defer:no_footprint"]
    assert bench.managers["vllm"].calls == []


# Two runs about one service.


def test_what_another_run_mended_in_a_moment_is_not_mended_again(make_bench: Make) -> None:
    """However short the wait for it was: what was seen before is of a process that is gone."""
    one = MemoryScene(make_bench(services=("ollama",)))
    bench, manager = one.bench, one.bench.managers["ollama"]
    one.holds("ollama", llama=20)
    one.learn()
    one.leak("ollama", 19)
    bench.fire(CRITICAL)
    (run,) = bench.evaluate()
    with bench.store.transaction() as tx:
        other = reserve(
            tx,
            Target("service", "ollama"),
            bench.clock.now(),
            playbook="recover-oom",
            weight=50,
            trigger="LLMServiceDown",
            locks=(Target("service", "ollama"),),
        )

    def mend() -> None:
        manager.stop(manager.identity, 1)
        manager.start(1)
        bench.drivers["ollama"].load("llama", 1)
        with bench.store.transaction() as tx:
            tx.runs.end(other.id, "succeeded", "verified", "", bench.clock.now())

    bench.clock.at(bench.clock.passed + 2, mend)
    bench.executor.execute(run)
    assert manager.calls == ["stop 1001", "start 1002"]
    assert bench.runs[0].state == "refused"


# What is counted.


def test_a_load_that_takes_long_is_counted_whatever_else_was_done_meanwhile(
    make_bench: Make,
) -> None:
    bench = make_bench(services=("ollama",))
    prober = Prober(bench.world, (OutOfMemoryWatch(bench.world),))
    said = "llama-server reported out-of-memory during startup"

    def counted() -> int:
        prober.probe(bench.world.services["ollama"])
        with bench.store.reading() as tx:
            return tx.inventory.service("ollama").out_of_memory

    with bench.store.transaction() as tx:
        tx.inventory.remember_models("ollama", ["m"])

    def refuse(model: str, timeout: float) -> None:
        for _ in range(8):
            failed_to_load(bench, said)
            bench.clock.advance(1)
        assert counted() == 8, "newer ones are counted first"
        raise ServiceError(said)

    bench.drivers["ollama"].load = refuse  # type: ignore[method-assign]
    bench.managers["ollama"].die()
    bench.fire("LLMServiceDown", service="ollama")
    bench.act()
    assert counted() == counted() == 9


def failed_to_load(bench: Bench, said: str) -> None:
    """Another run, of a card of its own."""
    now = bench.clock.now()
    common = {"now": now, "boot_id": ""}
    with bench.store.transaction() as tx:
        run = tx.runs.create(
            episode_id=None,
            playbook="cool-down",
            weight=20,
            safe=False,
            trigger="GPUTemperatureCritical",
            target=Target("gpu", "GPU-1"),
            locks=(),
            state="running",
            plan=[],
            expires_at=None,
            **common,
        )
        step = {"rung": 0, "gpu": None, "service": "ollama", "intent": {}, "sentence": ""}
        tx.runs.intend(run.id, 0, action="load_models", **step, **common)
        tx.runs.finish_step(run.id, 0, "failed", {}, said, now)
        tx.runs.end(run.id, "failed", "error", said, now)


# What on-call must hear.


def test_a_service_that_its_manager_starts_again_after_each_kill_is_no_closed_case(
    make_bench: Make,
) -> None:
    """The alert fires on; as long as the remediator calls it refuted nobody is paged."""
    bench = make_bench(services=("ollama",))
    bench.drivers["ollama"].models = {"m"}
    kills = [lambda: count_one(bench)] * 3
    for number, kill in enumerate(kills):
        bench.clock.at(180.0 * number, kill)
    bench.pass_time(10)
    bench.fire(NO_MEMORY, service="ollama")
    bench.pass_time(60)
    assert bench.incident(NO_MEMORY, Target("service", "ollama")).state == "refuted"
    bench.pass_time(150)
    assert bench.decisions == ["refute:healthy", "refute:out_of_memory"]
    assert bench.incident(NO_MEMORY, Target("service", "ollama")) is None
    bench.pass_time(300)
    assert bench.runs == []
    bench.resolve(NO_MEMORY, service="ollama")
    bench.pass_time(60)
    bench.fire(NO_MEMORY, service="ollama", ago=0)
    bench.pass_time(60)
    assert bench.decisions[-1] == "refute:healthy"


def count_one(bench: Bench) -> None:
    with bench.store.transaction() as tx:
        tx.inventory.count_out_of_memory("ollama", bench.clock.now())


def test_a_service_that_somebody_starts_while_things_settle_calls_nobody(make_bench: Make) -> None:
    """It loads for longer than one looks again, as a vLLM does."""
    bench = make_bench(services=("vllm",))
    manager, driver = bench.managers["vllm"], bench.drivers["vllm"]
    manager.die()

    def started() -> None:
        driver.forced = ServiceProbe("refused", "the connection was refused")
        manager.start(1)

    bench.clock.at(bench.clock.passed + 5, started)
    bench.clock.at(bench.clock.passed + 100, lambda: setattr(driver, "forced", None))
    bench.fire("LLMServiceDown", service="vllm")
    bench.act()
    assert (bench.run.state, bench.run.reason) == ("refused", "starting")
    bench.pass_time(120)
    assert bench.decisions == ["run:accepted", "defer:starting", "refute:healthy"]
    assert manager.calls == ["start 1002"]
    assert bench.incident("LLMServiceDown", Target("service", "vllm")).state == "refuted"


def test_a_stalled_service_that_somebody_restarts_meanwhile_calls_nobody(make_bench: Make) -> None:
    scene = Scene(make_bench(services=("vllm",)))
    bench, manager = scene.bench, scene.bench.managers["vllm"]
    scene.engine.stuck = True
    bench.pass_time(130)
    bench.fire(HANG)
    (run,) = bench.evaluate()
    manager.stop(manager.identity, 1)
    manager.start(1)
    scene.engine.forced = ServiceProbe("refused", "the connection was refused")
    bench.executor.execute(run)
    assert (bench.run.state, bench.run.reason) == ("refused", "loading")
    assert manager.calls == ["stop 1001", "start 1002"]


def test_what_was_taken_for_the_same_fault_is_looked_into_once_that_is_over(
    make_bench: Make,
) -> None:
    bench = make_bench(services=("ollama",))
    manager, driver = bench.managers["ollama"], bench.drivers["ollama"]
    driver.models, driver.canary_error = {"m"}, ServiceError("CUDA error: out of memory")
    start = manager.start

    def mended(timeout: float) -> object:
        driver.canary_error = None
        return start(timeout)

    manager.start = mended  # type: ignore[method-assign]
    bench.fire(NO_MEMORY, service="ollama")
    bench.act()
    assert bench.run.state == "succeeded"
    bench.pass_time(90)
    manager.die()
    bench.fire("LLMServiceDown", service="ollama", ago=0)
    bench.pass_time(30)
    assert bench.decisions[-1] == "refuse:duplicate"
    bench.resolve(NO_MEMORY, service="ollama")
    bench.pass_time(120)
    assert [run.state for run in bench.runs] == ["succeeded", "succeeded"]
    assert manager.identity is not None


def test_a_restart_that_stops_slowly_is_not_taken_over_as_a_service_that_is_down(
    make_bench: Make,
) -> None:
    one = MemoryScene(make_bench(services=("ollama",)))
    bench, manager = one.bench, one.bench.managers["ollama"]
    one.holds("ollama", llama=20)
    one.learn()
    one.leak("ollama", 19)
    bench.fire(CRITICAL)
    (run,) = bench.evaluate()
    stop = manager.stop

    def slowly(*arguments: object) -> None:
        driver = bench.drivers["ollama"]
        driver.forced = ServiceProbe("refused", "the connection was refused")
        bench.clock.advance(30)
        bench.fire("LLMServiceDown", service="ollama", ago=10)
        assert bench.evaluate() == []
        driver.forced = None
        stop(*arguments)

    manager.stop = slowly  # type: ignore[method-assign]
    bench.executor.execute(run)
    assert (bench.run.state, bench.run.reason) == ("succeeded", "verified")
